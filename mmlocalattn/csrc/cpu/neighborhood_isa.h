// Kernels of neighborhood attention for one instruction set: included by neighborhood_<isa>.cpp,
// which defines MMLOCALATTN_ISA and MMLOCALATTN_VECTOR_BYTES and sets the compiler's target.
//
//   s_ij = <q_i, k_j> + bias[j - i]     p_ij = exp(s_ij - lse_i)     o_i = sum_j p_ij v_j
//   ds_ij = p_ij (<do_i, v_j> - delta_i)     dq_i = sum_j ds_ij k_j
//   dk_j = sum_i ds_ij q_i     dv_j = sum_i p_ij do_i
//
// Lanes are neighboring columns: their windows are one window shifted, so a tap of all of them is
// one load from a planar map (at borders and dilation groups' ends a load and a permutation). Two
// rows of one dilation group share each load. Forward works through a window in chunks of rows that
// stay in L1, with online softmax; nothing of the size of the attention matrix goes to memory.
// Every sum has a fixed order: results do not depend on the number of threads.
#pragma once

#include "simd.h"

namespace mmlocalattn {
namespace cpu {
namespace MMLOCALATTN_ISA {
namespace {

// As many accumulators as registers hold: vectors per block of taps or channels, for each of two
// rows.
constexpr int kBlock = MMLOCALATTN_VECTOR_BYTES == 64 ? 8 : 4;

// How the lanes of a column block find a tap.
template <typename T>
struct Lanes {
  int64_t base, step, plane;
  Index<T> source;

  // Lanes of channel d of tap b in a row of a planar map.
  template <bool kPermute>
  MMLOCALATTN_INLINE Vec<T> load_tap(const T* row, int64_t d, int64_t b) const {
    const Vec<T> x = load(row + d * plane + base + b * step);
    if constexpr (kPermute) return permute<T>(x, source);
    return x;
  }
};

// out[t][j] = <x[t], tap b + j> for kTaps taps of one row of a map; x[t] are the lanes' own
// channels.
template <int kRows, int kTaps, bool kPermute, typename T>
MMLOCALATTN_INLINE void dots(const T* const (&x)[2], const T* row, const Lanes<T>& lane, int64_t b,
                             int64_t dim, T* const (&out)[2]) {
  Vec<T> sum[kRows][kTaps];
  for (int t = 0; t < kRows; ++t) {
    for (int j = 0; j < kTaps; ++j) sum[t][j] = Vec<T>{};
  }
  for (int64_t d = 0; d < dim; ++d) {
    Vec<T> own[kRows];
    for (int t = 0; t < kRows; ++t) own[t] = load(x[t] + d * lane.plane);
    for (int j = 0; j < kTaps; ++j) {
      Vec<T> tap = lane.template load_tap<kPermute>(row, d, b + j);
      if (kRows > 1) pin<T>(tap);
      for (int t = 0; t < kRows; ++t) sum[t][j] += own[t] * tap;
    }
  }
  for (int t = 0; t < kRows; ++t) {
    for (int j = 0; j < kTaps; ++j) store(out[t] + (b + j) * lanes<T>, sum[t][j]);
  }
}

// Calls body with taps as a constant, 1 <= taps <= kBlock.
template <int kTaps = kBlock, typename Body>
MMLOCALATTN_INLINE void with_constant(int64_t taps, const Body& body) {
  if (taps == kTaps) return body(std::integral_constant<int, kTaps>());
  if constexpr (kTaps > 1) with_constant<kTaps - 1>(taps, body);
}

// out[t][b] = <x[t], tap b> for all taps of one row of a map, in blocks of about equal size.
template <int kRows, bool kPermute, typename T>
void dots_of_row(const T* const (&x)[2], const T* row, const Lanes<T>& lane, int64_t taps,
                 int64_t dim, T* const (&out)[2]) {
  for (int64_t b = 0, blocks = (taps + kBlock - 1) / kBlock; blocks > 0; --blocks) {
    const int64_t size = (taps - b + blocks - 1) / blocks;
    with_constant(size, [&](auto constant) __attribute__((always_inline)) {
      dots<kRows, constant, kPermute>(x, row, lane, b, dim, out);
    });
    b += size;
  }
}

// Logits (or other products) of a chunk of rows of taps: out[t] + (row - begin) * taps + b vectors.
struct Chunk {
  int64_t begin, end;  // rows of taps, counted as in RowPair
};

MMLOCALATTN_INLINE int64_t clamp(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}

// A pair of rows at one column block.
template <typename T>
struct Work {
  const Neighborhood<T>& problem;
  const RowPair& pair;
  const ColumnBlock& block;
  Lanes<T> lane;
  Index<T> count;  // taps of each lane

  MMLOCALATTN_INLINE Work(const Neighborhood<T>& problem, const RowPair& pair,
                          const ColumnBlock& block)
      : problem(problem), pair(pair), block(block) {
    lane.base = block.base, lane.step = problem.cols.dilation, lane.plane = problem.plane;
    for (int i = 0; i < lanes<T>; ++i) lane.source[i] = block.source[i], count[i] = block.count[i];
  }

  // A row of a planar map: of the pair, or of taps.
  MMLOCALATTN_INLINE int64_t own(int t) const {
    return pair.y[t] * problem.dim * problem.plane + block.x;
  }
  MMLOCALATTN_INLINE int64_t row(int64_t u) const {
    return (pair.first + u * problem.rows.dilation) * problem.dim * problem.plane;
  }
  MMLOCALATTN_INLINE int64_t rows_of_taps() const { return pair.end[pair.rows - 1]; }
  MMLOCALATTN_INLINE int64_t begin(int t, Chunk chunk) const {
    return clamp(pair.begin[t], chunk.begin, chunk.end);
  }
  MMLOCALATTN_INLINE int64_t end(int t, Chunk chunk) const {
    return clamp(pair.end[t], chunk.begin, chunk.end);
  }

  // Place of (row u, tap b) in the logits of a chunk.
  MMLOCALATTN_INLINE int64_t place(Chunk chunk, int64_t u, int64_t b = 0) const {
    return ((u - chunk.begin) * block.taps + b) * lanes<T>;
  }

  // out[t] = products of the pair's own vectors in `owns` with the taps in `map`, for the rows of a
  // chunk.
  MMLOCALATTN_INLINE void products(const T* owns, const T* map, Chunk chunk,
                                   T* const (&out)[2]) const {
    for (int64_t u = chunk.begin; u < chunk.end; ++u) {
      const bool sees[2] = {pair.begin[0] <= u && u < pair.end[0],
                            pair.rows == 2 && pair.begin[1] <= u && u < pair.end[1]};
      const int first = sees[0] ? 0 : 1;
      const T* x[2] = {owns + own(first), owns + own(pair.rows - 1)};
      T* to[2] = {out[first] + place(chunk, u), out[1] + place(chunk, u)};
      if (sees[0] && sees[1]) {
        block.is_shift ? dots_of_row<2, false>(x, map + row(u), lane, block.taps, problem.dim, to)
                       : dots_of_row<2, true>(x, map + row(u), lane, block.taps, problem.dim, to);
      } else {
        block.is_shift ? dots_of_row<1, false>(x, map + row(u), lane, block.taps, problem.dim, to)
                       : dots_of_row<1, true>(x, map + row(u), lane, block.taps, problem.dim, to);
      }
    }
  }

  // sum[t] = factor[t] * sum[t] + weighted taps of a chunk, for all channels; sum[t] is (dim)
  // vectors.
  MMLOCALATTN_INLINE void accumulate(const T* map, Chunk chunk, T* const (&weight)[2],
                                     const Vec<T> (&factor)[2], T* const (&sum)[2]) const {
    block.is_shift ? accumulate_rows<false>(map, chunk, weight, factor, sum)
                   : accumulate_rows<true>(map, chunk, weight, factor, sum);
  }

 private:
  template <bool kPermute>
  void accumulate_rows(const T* map, Chunk chunk, T* const (&weight)[2], const Vec<T> (&factor)[2],
                       T* const (&sum)[2]) const {
    for (int64_t d = 0; d < problem.dim;) {
      const int64_t rest = problem.dim - d;
      const int64_t size = rest >= kBlock       ? kBlock
                           : rest >= kBlock / 2 ? kBlock / 2
                           : rest >= 2          ? 2
                                                : 1;
      if (size == kBlock)
        accumulate_channels<kBlock, kPermute>(map, chunk, weight, factor, d, sum);
      else if (size == kBlock / 2)
        accumulate_channels<kBlock / 2, kPermute>(map, chunk, weight, factor, d, sum);
      else if (size == 2)
        accumulate_channels<2, kPermute>(map, chunk, weight, factor, d, sum);
      else
        accumulate_channels<1, kPermute>(map, chunk, weight, factor, d, sum);
      d += size;
    }
  }

  template <int kDims, bool kPermute>
  MMLOCALATTN_INLINE void accumulate_channels(const T* map, Chunk chunk, T* const (&weight)[2],
                                              const Vec<T> (&factor)[2], int64_t d,
                                              T* const (&out)[2]) const {
    Vec<T> sum[2][kDims];
    for (int t = 0; t < 2; ++t) {
      for (int i = 0; i < kDims; ++i) sum[t][i] = load(out[t] + (d + i) * lanes<T>) * factor[t];
    }
    const int64_t first_end = end(0, chunk),
                  second_begin = pair.rows == 2 ? begin(1, chunk) : chunk.end;
    // Rows that the first of the pair sees alone, that both see, that the second sees alone.
    add_rows<kDims, kPermute, true, false>(map, chunk, begin(0, chunk),
                                           second_begin < first_end ? second_begin : first_end,
                                           weight, d, sum);
    if (pair.rows == 2) {
      add_rows<kDims, kPermute, true, true>(map, chunk, second_begin, first_end, weight, d, sum);
      add_rows<kDims, kPermute, false, true>(map, chunk,
                                             first_end > second_begin ? first_end : second_begin,
                                             end(1, chunk), weight, d, sum);
    }
    for (int t = 0; t < 2; ++t) {
      for (int i = 0; i < kDims; ++i) store(out[t] + (d + i) * lanes<T>, sum[t][i]);
    }
  }

  template <int kDims, bool kPermute, bool kFirst, bool kSecond>
  MMLOCALATTN_INLINE void add_rows(const T* map, Chunk chunk, int64_t from, int64_t to,
                                   T* const (&weight)[2], int64_t d,
                                   Vec<T> (&sum)[2][kDims]) const {
    for (int64_t u = from; u < to; ++u) {
      const T* taps = map + row(u);
      const T *first = weight[0] + place(chunk, u), *second = weight[1] + place(chunk, u);
      for (int64_t b = 0; b < block.taps; ++b, first += lanes<T>, second += lanes<T>) {
        for (int i = 0; i < kDims; ++i) {
          Vec<T> tap = lane.template load_tap<kPermute>(taps, d + i, b);
          if (kFirst && kSecond) pin<T>(tap);
          if constexpr (kFirst) sum[0][i] += load(first) * tap;
          if constexpr (kSecond) sum[1][i] += load(second) * tap;
        }
      }
    }
  }
};

// Scratch: two rows of logits, twice, then two accumulators, twice.
template <typename T>
struct Scratch {
  T *logits[2], *grads[2], *sums[2], *more_sums[2];

  MMLOCALATTN_INLINE Scratch(const Neighborhood<T>& problem, int64_t taps_of_chunk, T* scratch) {
    const int64_t logits_size = taps_of_chunk * lanes<T>, sums_size = problem.dim * lanes<T>;
    for (int t = 0; t < 2; ++t) {
      logits[t] = scratch + t * logits_size;
      grads[t] = scratch + (2 + t) * logits_size;
      sums[t] = scratch + 4 * logits_size + t * sums_size;
      more_sums[t] = scratch + 4 * logits_size + (2 + t) * sums_size;
    }
  }
};

// Rows of taps in a chunk, and the taps that its logits have room for.
MMLOCALATTN_INLINE int64_t chunk_rows(int64_t taps) {
  return taps < kChunkTaps ? kChunkTaps / taps : 1;
}

template <typename T>
MMLOCALATTN_INLINE Vec<T> fill(T x) {
  return Vec<T>{} + x;
}

// Lanes of a row of a relative position table, for the tap b of each: entry offset + sign * b.
template <typename T>
MMLOCALATTN_INLINE Vec<T> bias_of_tap(const ColumnBlock& block, const T* table_row, int64_t b,
                                      int sign) {
  Vec<T> bias{};
  for (int i = 0; i < block.lanes; ++i) {
    if (b < block.count[i]) bias[i] = table_row[block.offset[i] + sign * b];
  }
  return bias;
}

template <typename T>
MMLOCALATTN_INLINE void add_bias(const Work<T>& work, Chunk chunk, int sign,
                                 T* const (&logits)[2]) {
  const int64_t width = 2 * work.problem.cols.kernel - 1;
  for (int t = 0; t < work.pair.rows; ++t) {
    for (int64_t u = work.begin(t, chunk); u < work.end(t, chunk); ++u) {
      const T* table_row =
          work.problem.bias + (work.pair.offset[t] + sign * (u - work.pair.begin[t])) * width;
      for (int64_t b = 0; b < work.block.taps; ++b) {
        T* logit = logits[t] + work.place(chunk, u, b);
        store(logit, load(logit) + bias_of_tap(work.block, table_row, b, sign));
      }
    }
  }
}

template <typename T>
void clear(const Neighborhood<T>& problem, T* const (&sums)[2]) {
  for (int t = 0; t < 2; ++t) {
    for (int64_t i = 0; i < problem.dim * lanes<T>; ++i) sums[t][i] = 0;
  }
}

// Writes (dim) vectors to the pair's own place in a planar map. Blocks are written from left to
// right, so lanes past the last column of a block are overwritten by the next or lie beyond the
// width.
template <typename T>
MMLOCALATTN_INLINE void write(const Work<T>& work, int t, const T* sums, Vec<T> factor, T* map) {
  T* out = map + work.own(t);
  for (int64_t d = 0; d < work.problem.dim; ++d) {
    store(out + d * work.problem.plane, load(sums + d * lanes<T>) * factor);
  }
}

template <typename T>
void forward(const Neighborhood<T>& problem, const RowPair& pair, T* scratch_memory) {
  constexpr int kLanes = lanes<T>;
  for (int64_t i = 0; i < problem.num_blocks; ++i) {
    const Work<T> work(problem, pair, problem.blocks[i]);
    const int64_t taps = work.block.taps, step = chunk_rows(taps);
    const Scratch<T> scratch(problem, step * taps, scratch_memory);
    clear(problem, scratch.sums);
    Vec<T> most[2] = {fill<T>(-3e38), fill<T>(-3e38)}, total[2] = {Vec<T>{}, Vec<T>{}};
    for (int64_t u = 0; u < work.rows_of_taps(); u += step) {
      const int64_t rest = work.rows_of_taps() - u;
      const Chunk chunk{u, u + (step < rest ? step : rest)};
      work.products(problem.query, problem.key, chunk, scratch.logits);
      if (problem.bias) add_bias(work, chunk, 1, scratch.logits);
      Vec<T> factor[2] = {fill<T>(1), fill<T>(1)};
      for (int t = 0; t < pair.rows; ++t) {
        T* first = scratch.logits[t] + work.place(chunk, work.begin(t, chunk));
        T* last = scratch.logits[t] + work.place(chunk, work.end(t, chunk));
        Vec<T> next = most[t];
        for (T* logit = first; logit < last; logit += kLanes) next = max<T>(next, load(logit));
        factor[t] = exp(most[t] - next);
        most[t] = next;
        Vec<T> sum{};
        for (T* logit = first; logit < last; logit += kLanes) {
          const Vec<T> weight = exp(load(logit) - next);
          store(logit, weight);
          sum += weight;
        }
        total[t] = total[t] * factor[t] + sum;
      }
      work.accumulate(problem.value, chunk, scratch.logits, factor, scratch.sums);
    }
    for (int t = 0; t < pair.rows; ++t) {
      write(work, t, scratch.sums[t], T(1) / total[t], problem.output);
      store(problem.logsumexp + pair.y[t] * problem.plane + work.block.x,
            most[t] + log<T>(total[t]));
    }
  }
}

// Adds the gradients of the logits to those of the bias.
template <typename T>
MMLOCALATTN_INLINE void add_bias_grads(const Work<T>& work, Chunk chunk, T* const (&grads)[2]) {
  const int64_t width = 2 * work.problem.cols.kernel - 1;
  for (int t = 0; t < work.pair.rows; ++t) {
    for (int64_t u = work.begin(t, chunk); u < work.end(t, chunk); ++u) {
      T* table_row =
          work.problem.grad_bias + (work.pair.offset[t] + u - work.pair.begin[t]) * width;
      for (int64_t b = 0; b < work.block.taps; ++b) {
        const T* grad = grads[t] + work.place(chunk, u, b);
        for (int i = 0; i < work.block.lanes; ++i) table_row[work.block.offset[i] + b] += grad[i];
      }
    }
  }
}

template <typename T>
void backward_query(const Neighborhood<T>& problem, const RowPair& pair, T* scratch_memory) {
  for (int64_t i = 0; i < problem.num_blocks; ++i) {
    const Work<T> work(problem, pair, problem.blocks[i]);
    const int64_t taps = work.block.taps, step = chunk_rows(taps);
    const Scratch<T> scratch(problem, step * taps, scratch_memory);
    const Vec<T> one[2] = {fill<T>(1), fill<T>(1)};
    clear(problem, scratch.sums);
    for (int64_t u = 0; u < work.rows_of_taps(); u += step) {
      const int64_t rest = work.rows_of_taps() - u;
      const Chunk chunk{u, u + (step < rest ? step : rest)};
      work.products(problem.query, problem.key, chunk, scratch.logits);
      if (problem.bias) add_bias(work, chunk, 1, scratch.logits);
      work.products(problem.grad_output, problem.value, chunk, scratch.grads);
      for (int t = 0; t < pair.rows; ++t) {
        const int64_t place = pair.y[t] * problem.plane + work.block.x;
        const Vec<T> logsumexp = load(problem.logsumexp + place),
                     delta = load(problem.delta + place);
        const int64_t last = work.place(chunk, work.end(t, chunk));
        for (int64_t j = work.place(chunk, work.begin(t, chunk)); j < last; j += lanes<T>) {
          const Vec<T> weight = exp(load(scratch.logits[t] + j) - logsumexp);
          store(scratch.grads[t] + j, weight * (load(scratch.grads[t] + j) - delta));
        }
      }
      if (problem.grad_bias) add_bias_grads(work, chunk, scratch.grads);
      work.accumulate(problem.key, chunk, scratch.grads, one, scratch.sums);
    }
    for (int t = 0; t < pair.rows; ++t) write(work, t, scratch.sums[t], one[t], problem.output);
  }
}

template <typename T>
void backward_key_value(const Neighborhood<T>& problem, const RowPair& pair, T* scratch_memory) {
  for (int64_t i = 0; i < problem.num_blocks; ++i) {
    const Work<T> work(problem, pair, problem.blocks[i]);
    const int64_t taps = work.block.taps, step = chunk_rows(taps);
    const Scratch<T> scratch(problem, step * taps, scratch_memory);
    const Vec<T> one[2] = {fill<T>(1), fill<T>(1)};
    clear(problem, scratch.sums);
    clear(problem, scratch.more_sums);
    Lanes<T> lane = work.lane;
    for (int64_t u = 0; u < work.rows_of_taps(); u += step) {
      const int64_t rest = work.rows_of_taps() - u;
      const Chunk chunk{u, u + (step < rest ? step : rest)};
      work.products(problem.key, problem.query, chunk, scratch.logits);
      if (problem.bias) add_bias(work, chunk, -1, scratch.logits);
      work.products(problem.value, problem.grad_output, chunk, scratch.grads);
      for (int t = 0; t < pair.rows; ++t) {
        for (int64_t v = work.begin(t, chunk); v < work.end(t, chunk); ++v) {
          const int64_t row = (pair.first + v * problem.rows.dilation) * problem.plane;
          for (int64_t b = 0; b < taps; ++b) {
            const Vec<T> logsumexp = lane.template load_tap<true>(problem.logsumexp + row, 0, b);
            const Vec<T> delta = lane.template load_tap<true>(problem.delta + row, 0, b);
            T *logit = scratch.logits[t] + work.place(chunk, v, b),
              *grad = scratch.grads[t] + work.place(chunk, v, b);
            Vec<T> weight = exp(load(logit) - logsumexp),
                   grad_logit = weight * (load(grad) - delta);
            if (!work.block.is_shift) {
              const Index<T> tap = Index<T>{} + static_cast<typename Vector<T>::integer>(b);
              weight = tap < work.count ? weight : Vec<T>{};
              grad_logit = tap < work.count ? grad_logit : Vec<T>{};
            }
            store(logit, weight);
            store(grad, grad_logit);
          }
        }
      }
      work.accumulate(problem.grad_output, chunk, scratch.logits, one, scratch.sums);
      work.accumulate(problem.query, chunk, scratch.grads, one, scratch.more_sums);
    }
    for (int t = 0; t < pair.rows; ++t) {
      write(work, t, scratch.sums[t], one[t], problem.grad_value);
      write(work, t, scratch.more_sums[t], one[t], problem.grad_key);
    }
  }
}

}  // namespace
}  // namespace MMLOCALATTN_ISA
}  // namespace cpu
}  // namespace mmlocalattn
