// Kernels of neighborhood attention for one instruction set: included by neighborhood_<isa>.cpp,
// which defines MMLOCALATTN_ISA and MMLOCALATTN_VECTOR_BYTES and sets the compiler's target.
//
//   s_ij = <q_i, k_j> + bias[j - i]     p_ij = 2^(s_ij - lse_i)     o_i = sum_j p_ij v_j
//   ds_ij = p_ij (<do_i, v_j> - delta_i)     dq_i = sum_j ds_ij k_j
//   dk_j = sum_i ds_ij q_i     dv_j = sum_i p_ij do_i
//
// Shift-planar: the keys of a piece are packed into planes, one per row and channel, and the lanes
// of a vector are neighboring queries of a row. Their windows are one window shifted, so a tap of
// all of them is one load from a plane (at borders a load and a permutation), which the kRows rows
// of a tile share. Nothing of the size of the attention matrix leaves the caches, and no
// multiplication is wasted on positions outside the windows.
#pragma once

#include "layout_isa.h"
#include "pairs_isa.h"

namespace mmlocalattn {
namespace cpu {
namespace MMLOCALATTN_ISA {
namespace {

// A tile is kRows rows of N queries. Accumulators of kRows x kTaps (or kChannels) vectors stay in
// registers.
constexpr int kRows = MMLOCALATTN_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int kTaps = 6;
constexpr int kChannels = 4;

// Taps of a query that are worked on at a time, so that their logits stay near; a row of taps is
// never split.
constexpr int64_t kChunkTaps = 96;

// Planes of the keys of a piece: channel d of column x in row u is data[u * row + d * plane + x].
template <typename T>
struct Planes {
  T* data;
  int64_t row, plane;

  MMLOCALATTN_INLINE const T* at(int64_t u, int64_t d, int64_t x) const {
    return data + u * row + d * plane + x;
  }
};

MMLOCALATTN_INLINE int64_t num_planes(int64_t dim) { return round_up(dim, kChannels); }

// Loads of a tap may reach one vector past the last key: what is there goes to lanes that nobody
// reads. An odd number of cache lines spreads the planes over the sets of a cache.
template <typename In>
Planes<Compute<In>> make_planes(const Piece<In>& piece, Arena<Compute<In>>& arena) {
  using T = Compute<In>;
  constexpr int64_t kLine = kVectorBytes / static_cast<int64_t>(sizeof(T));
  const int64_t lines = (piece.key_cols() + kLine - 1) / kLine + 1;
  const int64_t plane = (lines | 1) * kLine, row = plane * num_planes(piece.dim);
  return {arena.take(row * piece.key_rows()), row, plane};
}

template <typename In>
void fill_planes(const Piece<In>& piece, const Map<const In>& map,
                 const Planes<Compute<In>>& planes) {
  constexpr int N = kLanes<Compute<In>>;
  const int64_t first = piece.first_col(), cols = piece.key_cols(), rows = piece.key_rows();
  for (int64_t u = 0; u < rows; ++u) {
    for (int64_t x = 0; x < cols; x += N) {
      if (u + 1 < rows) {
        prefetch(map, piece.first_row() + u + 1, first + x, smaller(N, cols - x), piece.dim);
      }
      pack<N>(map, piece.first_row() + u, first + x, first + cols - 1, piece.dim,
              num_planes(piece.dim), planes.data + u * planes.row + x, planes.plane);
    }
  }
}

// Prefetches the rows of a tile, if there are any.
template <bool kWrite = false, typename In, typename M>
MMLOCALATTN_INLINE void prefetch_tile(const Piece<In>& piece, const Map<M>& map, int64_t y,
                                      int64_t x) {
  const int64_t count = smaller(kLanes<Compute<In>>, piece.x_end - x);
  for (int64_t end = smaller(y + kRows, piece.y_end); y < end; ++y) {
    prefetch<kWrite>(map, y, x, count, piece.dim);
  }
}

// Neighboring columns of queries, one a lane, and where their taps are.
template <typename T, int N>
struct Columns {
  int64_t x, count;
  int64_t base;        // of the keys of a piece, the first tap of the first lane
  int64_t taps, keys;  // of a row: seen by each lane, by all of them
  bool is_shift;       // lane i has its first tap at base + i
  Index<T, N> source;  // first tap of each lane, from base
  int64_t table_base;  // smallest column of a relative position table for a first tap
  Index<T, N> table_source;

  template <typename In>
  Columns(const Piece<In>& piece, int64_t x) : x(x), count(0), source{}, table_source{} {
    const int64_t *first_tap = piece.cols.first_tap + x,
                  *table_column = piece.cols.table_column + x;
    int64_t table_end = table_column[0];
    base = first_tap[0] - piece.first_col();
    taps = piece.cols.kernel;
    table_base = table_column[0];
    is_shift = true;
    // A vector of keys, and one of a table, must hold the first taps of all lanes.
    for (; count < N && x + count < piece.x_end; ++count) {
      const int64_t low = smaller(table_base, table_column[count]),
                    high = larger(table_end, table_column[count]);
      if (first_tap[count] - first_tap[0] >= N || (piece.bias && high - low >= N)) break;
      table_base = low, table_end = high;
      source[count] = first_tap[count] - first_tap[0];
      is_shift = is_shift && source[count] == count;
    }
    for (int64_t i = count; is_shift && i < N; ++i) source[i] = i;
    for (int64_t i = 0; piece.bias && i < count; ++i)
      table_source[i] = table_column[i] - table_base;
    keys = source[count - 1] + taps;
  }
};

// Rows of a tile with the rows of keys that they see, counted from the first of the piece.
struct Rows {
  int64_t y, count;
  int64_t begin[kRows], end[kRows];  // nondecreasing; empty for rows past the count

  template <typename In>
  MMLOCALATTN_INLINE Rows(const Piece<In>& piece, int64_t y)
      : y(y), count(smaller(kRows, piece.y_end - y)) {
    for (int t = 0; t < kRows; ++t) {
      begin[t] = piece.rows.start(smaller(y + t, piece.y_end - 1)) - piece.first_row();
      end[t] = begin[t] + piece.rows.kernel;
    }
  }
  MMLOCALATTN_INLINE int64_t first() const { return begin[0]; }
  MMLOCALATTN_INLINE int64_t last() const { return end[count - 1]; }

  // The rows that see u are [visible_begin, visible_end).
  MMLOCALATTN_INLINE int visible_begin(int64_t u) const {
    int t = 0;
    while (end[t] <= u) ++t;
    return t;
  }
  MMLOCALATTN_INLINE int visible_end(int64_t u) const {
    int t = static_cast<int>(count);
    while (begin[t - 1] > u) --t;
    return t;
  }
};

// Rows of keys that are worked on at a time.
struct Chunk {
  int64_t begin, end;
};

MMLOCALATTN_INLINE int64_t most_chunk_rows(int64_t taps) { return larger(1, kChunkTaps / taps); }

// Splits the rows of keys of a tile into chunks of about equal size.
template <typename Body>
MMLOCALATTN_INLINE void for_each_chunk(const Rows& rows, int64_t taps, const Body& body) {
  const int64_t most = most_chunk_rows(taps);
  int64_t chunks = (rows.last() - rows.first() + most - 1) / most;
  for (int64_t u = rows.first(); chunks > 0; --chunks) {
    const int64_t size = (rows.last() - u + chunks - 1) / chunks;
    body(Chunk{u, u + size});
    u += size;
  }
}

// Logits, or their gradients, of a tile and a chunk: vectors of N queries, one a tap. Around every
// row of taps there is a vector of zeros for loops that step over the keys of a tile two by two.
template <typename T, int N>
struct Logits {
  T* data;
  int64_t row, tile_row;  // values of a row of taps, of a row of the tile

  Logits(int64_t taps, Arena<T>& arena)
      : row((taps + 1) * N), tile_row(most_chunk_rows(taps) * row + N) {
    data = arena.take(kRows * tile_row);
  }
  MMLOCALATTN_INLINE T* at(int64_t t, Chunk chunk, int64_t u) const {
    return data + t * tile_row + (u - chunk.begin) * row + N;
  }
  void clear() const {
    for (int64_t i = 0; i < kRows * tile_row; ++i) data[i] = 0;
  }
};

// out[t][j] = factor * <own[t], tap j> for kNumTaps taps of one row of keys.
template <int kNumRows, int kNumTaps, bool kPermute, bool kPairs, int N, typename T>
MMLOCALATTN_INLINE void dots(const T* own, int64_t own_step, const T* keys, int64_t plane,
                             Index<T, N> source, int64_t planes, T factor, T* out,
                             int64_t out_step) {
  Vec<T, N> sum[kNumRows][kNumTaps];
  for (int t = 0; t < kNumRows; ++t) {
    for (int j = 0; j < kNumTaps; ++j) sum[t][j] = Vec<T, N>{};
  }
  for (int64_t d = 0; d < planes; ++d, own += N, keys += plane) {
    Vec<T, N> query[kNumRows];
    for (int t = 0; t < kNumRows; ++t) query[t] = load<N>(own + t * own_step);
    for (int j = 0; j < kNumTaps; ++j) {
      Vec<T, N> tap = load<N>(keys + j);
      if (kPermute) tap = permute<T, N>(tap, source);
      if (kNumRows > 1) pin(tap);
      for (int t = 0; t < kNumRows; ++t) {
        sum[t][j] = multiply_add<kPairs, N>(sum[t][j], query[t], tap);
      }
    }
  }
  for (int t = 0; t < kNumRows; ++t) {
    for (int j = 0; j < kNumTaps; ++j) {
      store(out + t * out_step + j * N, kPairs ? sum[t][j] * factor : sum[t][j]);
    }
  }
}

// A tile at one place: what forward and backward share. kPairs: every lane of the queries, keys,
// values and weights is a pair of bfloat16, see pairs_isa.h.
template <typename T, int N, bool kPairs = false>
struct Tile {
  const Columns<T, N>& columns;
  const Rows& rows;
  int64_t dim;

  // Logits of a chunk: products of the tile's own vectors, planar (kRows, num_planes, N), with all
  // taps. Pairs are multiplied by `factor`.
  void products(const T* own, const Planes<T>& keys, Chunk chunk, const Logits<T, N>& out,
                T factor = 1) const {
    const int64_t planes = kPairs ? num_planes(dim) / 2 : dim;
    const int64_t own_step = num_planes(dim) * N;
    for (int64_t u = chunk.begin; u < chunk.end; ++u) {
      const int first = rows.visible_begin(u);
      const T* row = keys.at(u, 0, columns.base);
      with_constant<kRows>(
          rows.visible_end(u) - first, [&](auto num_rows) __attribute__((always_inline)) {
            int64_t blocks = (columns.taps + kTaps - 1) / kTaps;
            for (int64_t b = 0; blocks > 0; --blocks) {
              const int64_t size = (columns.taps - b + blocks - 1) / blocks;
              with_constant<kTaps>(size, [&](auto num_taps) __attribute__((always_inline)) {
                T* to = out.at(first, chunk, u) + b * N;
                if (columns.is_shift) {
                  dots<num_rows, num_taps, false, kPairs, N>(own + first * own_step, own_step,
                                                             row + b, keys.plane, columns.source,
                                                             planes, factor, to, out.tile_row);
                } else {
                  dots<num_rows, num_taps, true, kPairs, N>(own + first * own_step, own_step,
                                                            row + b, keys.plane, columns.source,
                                                            planes, factor, to, out.tile_row);
                }
              });
              b += size;
            }
          });
    }
  }

  // sums[t] = factor[t] * sums[t] + the taps of a chunk, weighted; sums is (kRows, num_planes, N).
  // The first chunk finds no sums yet.
  void accumulate(const Planes<T>& taps, Chunk chunk, const Logits<T, N>& weights,
                  const Vec<T, N> (&factor)[kRows], T* sums) const {
    for (int64_t d = 0; d < dim; d += kChannels) {
      if (columns.is_shift) {
        accumulate_channels<false>(taps, chunk, weights, factor, d, sums);
      } else {
        accumulate_channels<true>(taps, chunk, weights, factor, d, sums);
      }
    }
  }

  template <bool kPermute>
  MMLOCALATTN_INLINE void accumulate_channels(const Planes<T>& taps, Chunk chunk,
                                              const Logits<T, N>& weights,
                                              const Vec<T, N> (&factor)[kRows], int64_t d,
                                              T* sums) const {
    const int64_t step = num_planes(dim) * N;
    Vec<T, N> sum[kRows][kChannels];
    for (int t = 0; t < kRows; ++t) {
      for (int i = 0; i < kChannels; ++i) {
        sum[t][i] = Vec<T, N>{};
        if (chunk.begin > rows.first())
          sum[t][i] = load<N>(sums + t * step + (d + i) * N) * factor[t];
      }
    }
    for (int64_t u = chunk.begin; u < chunk.end; ++u) {
      const int first = rows.visible_begin(u), last = rows.visible_end(u);
      const T *row = taps.at(u, d, columns.base), *weight = weights.at(0, chunk, u);
      // The first row of the tile that sees u, and the one after the last, as constants.
      with_constant<kRows>(last, [&](auto end) __attribute__((always_inline)) {
        with_constant<end>(first + 1, [&](auto begin) __attribute__((always_inline)) {
          add_row<begin - 1, end, kPermute>(row, taps.plane, weight, weights.tile_row, sum);
        });
      });
    }
    for (int t = 0; t < kRows; ++t) {
      for (int i = 0; i < kChannels; ++i) store(sums + t * step + (d + i) * N, sum[t][i]);
    }
  }

  template <int kBegin, int kEnd, bool kPermute>
  MMLOCALATTN_INLINE void add_row(const T* row, int64_t plane, const T* weight, int64_t weight_step,
                                  Vec<T, N> (&sum)[kRows][kChannels]) const {
    constexpr int kStep = kPairs ? 2 : 1;
    for (int64_t b = 0; b < columns.taps; b += kStep, row += kStep, weight += N) {
      Vec<T, N> weights[kRows];
      for (int t = kBegin; t < kEnd; ++t) weights[t] = load<N>(weight + t * weight_step);
      for (int i = 0; i < kChannels; ++i) {
        Vec<T, N> tap = load<N>(row + i * plane);
        if (kPermute) tap = permute<T, N>(tap, columns.source);
        if (kEnd - kBegin > 1) pin(tap);
        for (int t = kBegin; t < kEnd; ++t) {
          sum[t][i] = multiply_add<kPairs, N>(sum[t][i], weights[t], tap);
        }
      }
    }
  }

  // Rows of keys of a chunk that row t of the tile sees.
  MMLOCALATTN_INLINE Chunk visible(int t, Chunk chunk) const {
    return {clamp(rows.begin[t], chunk.begin, chunk.end),
            clamp(rows.end[t], chunk.begin, chunk.end)};
  }

  // Row of a relative position table for row u of the keys.
  template <typename In>
  MMLOCALATTN_INLINE int64_t table_row(const Piece<In>& piece, int t, int64_t u) const {
    return piece.rows.first_offset(rows.y + t) + u - rows.begin[t];
  }

  template <typename In>
  void add_bias(const Piece<In>& piece, Chunk chunk, const Logits<T, N>& logits) const {
    for (int t = 0; t < rows.count; ++t) {
      const Chunk seen = visible(t, chunk);
      for (int64_t u = seen.begin; u < seen.end; ++u) {
        const T* table = piece.bias + table_row(piece, t, u) * (2 * columns.taps - 1);
        T* logit = logits.at(t, chunk, u);
        for (int64_t b = 0; b < columns.taps; ++b, logit += N) {
          const Vec<T, N> bias = load<N>(table + columns.table_base + b);
          store(logit, load<N>(logit) + permute<T, N>(bias, columns.table_source));
        }
      }
    }
  }
};

// Scratch of the forward kernel for vectors of N queries.
template <typename In, int N, typename T = Compute<In>>
struct ForwardScratch {
  T* query;
  T* sums;
  Logits<T, N> logits;

  ForwardScratch(const Piece<In>& piece, Arena<T>& arena)
      : query(arena.take(kRows * num_planes(piece.dim) * N)),
        sums(arena.take(kRows * num_planes(piece.dim) * N)),
        logits(piece.cols.kernel, arena) {}
};

template <int N, typename In>
int64_t forward_columns(const Piece<In>& piece, int64_t x, const Planes<Compute<In>>& keys,
                        const Planes<Compute<In>>& values, const ForwardScratch<In, N>& scratch) {
  using T = Compute<In>;
  constexpr bool kPairs = has_pairs<In>;
  const Columns<T, N> columns(piece, x);
  const int64_t step = num_planes(piece.dim) * N;
  Map<const In> query = piece.query;
  if (kPairs) query.factor = 1;  // so that it is rounded once only; the logits get the factor
  for (int64_t y = piece.y_begin; y < piece.y_end; y += kRows) {
    const Rows rows(piece, y);
    const Tile<T, N, kPairs> tile{columns, rows, piece.dim};
    for (int t = 0; t < rows.count; ++t) {
      T* planes = scratch.query + t * step;
      pack<N>(query, y + t, x, x + columns.count - 1, piece.dim, num_planes(piece.dim), planes, N);
      if constexpr (kPairs) pair_channels<N>(planes, num_planes(piece.dim), N, N);
    }
    prefetch_tile<true>(piece, piece.output, y, x);
    prefetch_tile(piece, piece.query, y + kRows, x);
    Vec<T, N> most[kRows], total[kRows];
    for (int t = 0; t < kRows; ++t) {
      // Not -inf: a bias of -inf then masks its tap instead of making NaN.
      most[t] = fill<N>(T(-3e38)), total[t] = Vec<T, N>{};
    }
    for_each_chunk(rows, columns.taps, [&](Chunk chunk) {
      tile.products(scratch.query, keys, chunk, scratch.logits, piece.query.factor);
      if (piece.bias) tile.add_bias(piece, chunk, scratch.logits);
      Vec<T, N> factor[kRows];
      for (int t = 0; t < kRows; ++t) factor[t] = fill<N>(T(1));
      for (int t = 0; t < rows.count; ++t) {
        const Chunk seen = tile.visible(t, chunk);
        Vec<T, N> next = most[t], sum{};
        for (int64_t u = seen.begin; u < seen.end; ++u) {
          const T* logit = scratch.logits.at(t, chunk, u);
          for (int64_t b = 0; b < columns.taps; ++b) next = max(load<N>(logit + b * N), next);
        }
        factor[t] = exp2<N>(most[t] - next);
        most[t] = next;
        for (int64_t u = seen.begin; u < seen.end; ++u) {
          T* logit = scratch.logits.at(t, chunk, u);
          for (int64_t b = 0; b < columns.taps; ++b, logit += N) {
            const Vec<T, N> weight = exp2<N>(load<N>(logit) - next);
            store(logit, weight);
            sum += weight;
          }
          if constexpr (kPairs) pair_taps<N>(logit - columns.taps * N, columns.taps);
        }
        total[t] = total[t] * factor[t] + sum;
      }
      tile.accumulate(values, chunk, scratch.logits, factor, scratch.sums);
    });
    for (int t = 0; t < rows.count; ++t) {
      T factor[N];
      store(factor, T(1) / total[t]);
      unpack<N>(piece.output, y + t, x, x + columns.count - 1, piece.dim, num_planes(piece.dim),
                scratch.sums + t * step, N, factor);
      for (int64_t i = 0; i < columns.count; ++i) {
        *piece.logsumexp.at(y + t, x + i) =
            (most[t][i] + log2(total[t][i])) * T(0.69314718055994530942);
      }
    }
  }
  return columns.count;
}

// Prefetches where a piece begins; the loops over it prefetch the rest.
template <typename In>
void prefetch_piece(const Piece<In>& piece) {
  for (const auto* map : {&piece.key, &piece.value}) {
    prefetch(*map, piece.first_row(), piece.first_col(), piece.key_cols(), piece.dim);
  }
  prefetch_tile(piece, piece.query, piece.y_begin, piece.x_begin);
}

// Calls body(x, N) for columns of queries, which returns how many of N it has worked on: whole
// vectors, and half of one where that is enough for the rest.
template <typename In, typename Body>
MMLOCALATTN_INLINE void for_each_columns(const Piece<In>& piece, const Body& body) {
  constexpr int N = kLanes<Compute<In>>;
  for (int64_t x = piece.x_begin; x < piece.x_end;) {
    if constexpr (N > 4) {
      if (piece.x_end - x <= N / 2) {
        x += body(x, std::integral_constant<int, N / 2>());
        continue;
      }
    }
    x += body(x, std::integral_constant<int, N>());
  }
}

template <typename In>
int64_t forward_scratch(const Piece<In>& piece) {
  Arena<Compute<In>> arena{nullptr};
  make_planes(piece, arena), make_planes(piece, arena);
  ForwardScratch<In, kLanes<Compute<In>>>(piece, arena);
  return arena.used;
}

template <typename In>
void forward(const Piece<In>& piece, Compute<In>* memory) {
  Arena<Compute<In>> arena{memory};
  const auto keys = make_planes(piece, arena), values = make_planes(piece, arena);
  fill_planes(piece, piece.key, keys);
  fill_planes(piece, piece.value, values);
  if constexpr (has_pairs<In>) {
    constexpr int N = kLanes<Compute<In>>;
    for (int64_t u = 0; u < piece.key_rows(); ++u) {
      pair_channels<N>(keys.data + u * keys.row, num_planes(piece.dim), keys.plane,
                       piece.key_cols());
      pair_columns<N>(values.data + u * values.row, num_planes(piece.dim), values.plane,
                      piece.key_cols());
    }
  }
  for_each_columns(piece, [&](int64_t x, auto lanes) {
    auto rest = arena;
    return forward_columns<lanes>(piece, x, keys, values, ForwardScratch<In, lanes>(piece, rest));
  });
}

// Scratch of the backward kernel for vectors of N queries: planar tiles, channels-last tiles, and
// the gradients of the biases of N columns, (2 * rows.kernel - 1, cols.kernel, N).
template <typename In, int N, typename T = Compute<In>>
struct BackwardScratch {
  T *query, *grad_output, *sums;
  T *query_vectors, *grad_output_vectors;
  Logits<T, N> weights, grads;
  T* grad_bias;

  BackwardScratch(const Piece<In>& piece, Arena<T>& arena)
      : query(arena.take(kRows * num_planes(piece.dim) * N)),
        grad_output(arena.take(kRows * num_planes(piece.dim) * N)),
        sums(arena.take(kRows * num_planes(piece.dim) * N)),
        query_vectors(arena.take(kRows * N * padded_dim<In>(piece.dim))),
        grad_output_vectors(arena.take(kRows * N * padded_dim<In>(piece.dim))),
        weights(piece.cols.kernel, arena),
        grads(piece.cols.kernel, arena),
        grad_bias(piece.grad_bias ? arena.take(grad_bias_size(piece)) : nullptr) {}

  static int64_t grad_bias_size(const Piece<In>& piece) {
    return (2 * piece.rows.kernel - 1) * piece.cols.kernel * N;
  }
};

// Adds what the queries of a tile give to the gradients of two neighboring keys in row u: kVectors
// SIMD vectors of channels from d on. `tap` is the place of the first key among the taps of each
// lane.
template <int kVectors, int N, typename In, typename T = Compute<In>>
MMLOCALATTN_INLINE void add_to_keys(const BackwardScratch<In, N>& scratch, const Tile<T, N>& tile,
                                    int64_t vector_step, Chunk chunk, int64_t u, const int64_t* tap,
                                    int64_t begin, int64_t end, int64_t d, T* grad) {
  constexpr int M = kLanes<T>;
  Vec<T, M> key[2][kVectors], value[2][kVectors];
  for (int j = 0; j < 2; ++j) {
    for (int c = 0; c < kVectors; ++c) {
      key[j][c] = load<M>(grad + 2 * j * vector_step + c * M);
      value[j][c] = load<M>(grad + (2 * j + 1) * vector_step + c * M);
    }
  }
  for (int t = tile.rows.visible_begin(u), last = tile.rows.visible_end(u); t < last; ++t) {
    const T *weights = scratch.weights.at(t, chunk, u), *grads = scratch.grads.at(t, chunk, u);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t vector = (t * N + i) * vector_step + d;
      const T *weight = weights + tap[i], *grad_logit = grads + tap[i];
      for (int c = 0; c < kVectors; ++c) {
        Vec<T, M> query = load<M>(scratch.query_vectors + vector + c * M),
                  grad_output = load<M>(scratch.grad_output_vectors + vector + c * M);
        pin(query), pin(grad_output);
        for (int j = 0; j < 2; ++j) {
          key[j][c] += grad_logit[j * N] * query;
          value[j][c] += weight[j * N] * grad_output;
        }
      }
    }
  }
  for (int j = 0; j < 2; ++j) {
    for (int c = 0; c < kVectors; ++c) {
      store(grad + 2 * j * vector_step + c * M, key[j][c]);
      store(grad + (2 * j + 1) * vector_step + c * M, value[j][c]);
    }
  }
}

// Gradients of the keys and values of a chunk.
template <int N, typename In, typename T = Compute<In>>
void add_key_value(const Piece<In>& piece, const BackwardScratch<In, N>& scratch,
                   const Tile<T, N>& tile, Chunk chunk) {
  constexpr int M = kLanes<T>;
  const Columns<T, N>& columns = tile.columns;
  const int64_t vector_step = padded_dim<In>(piece.dim), row = piece.grad_cols() * 2 * vector_step;
  int64_t begin = 0, end = 0, tap[N];
  for (int64_t key = 0; key < columns.keys; key += 2) {
    // Lanes that see one of the keys `key` and `key` + 1.
    while (columns.source[begin] + columns.taps <= key) ++begin;
    while (end < columns.count && columns.source[end] <= key + 1) ++end;
    for (int64_t i = begin; i < end; ++i) tap[i] = (key - columns.source[i]) * N + i;
    for (int64_t u = chunk.begin; u < chunk.end; ++u) {
      T* grad = piece.grad_key_value + u * row + (columns.base + key) * 2 * vector_step;
      int64_t d = 0;
      for (; d + 2 * M <= vector_step; d += 2 * M) {
        add_to_keys<2, N, In>(scratch, tile, vector_step, chunk, u, tap, begin, end, d, grad + d);
      }
      for (; d < vector_step; d += M) {
        add_to_keys<1, N, In>(scratch, tile, vector_step, chunk, u, tap, begin, end, d, grad + d);
      }
    }
  }
}

template <int N, typename In>
int64_t backward_columns(const Piece<In>& piece, int64_t x, const Planes<Compute<In>>& keys,
                         const Planes<Compute<In>>& values, const BackwardScratch<In, N>& scratch) {
  using T = Compute<In>;
  const Columns<T, N> columns(piece, x);
  const int64_t planes = num_planes(piece.dim), step = planes * N;
  const int64_t vector_step = padded_dim<In>(piece.dim);
  scratch.weights.clear(), scratch.grads.clear();
  if (piece.grad_bias) {
    for (int64_t i = 0; i < scratch.grad_bias_size(piece); ++i) scratch.grad_bias[i] = 0;
  }
  for (int64_t y = piece.y_begin; y < piece.y_end; y += kRows) {
    const Rows rows(piece, y);
    const Tile<T, N> tile{columns, rows, piece.dim};
    Vec<T, N> logsumexp[kRows], delta[kRows], one[kRows];
    for (int t = 0; t < kRows; ++t) one[t] = fill<N>(T(1));
    for (int t = 0; t < rows.count; ++t) {
      pack<N>(piece.query, y + t, x, x + columns.count - 1, piece.dim, planes,
              scratch.query + t * step, N);
      pack<N>(piece.grad_output, y + t, x, x + columns.count - 1, piece.dim, planes,
              scratch.grad_output + t * step, N);
      pack<N>(as_input(piece.output), y + t, x, x + columns.count - 1, piece.dim, planes,
              scratch.sums + t * step, N);
      copy_vectors(piece.query, y + t, x, columns.count, piece.dim, vector_step,
                   scratch.query_vectors + t * N * vector_step);
      copy_vectors(piece.grad_output, y + t, x, columns.count, piece.dim, vector_step,
                   scratch.grad_output_vectors + t * N * vector_step);
      delta[t] = logsumexp[t] = Vec<T, N>{};
      for (int64_t i = t * step; i < (t + 1) * step; i += N) {
        delta[t] += load<N>(scratch.grad_output + i) * load<N>(scratch.sums + i);
      }
      for (int64_t i = 0; i < columns.count; ++i) {
        logsumexp[t][i] = *piece.logsumexp.at(y + t, x + i) * T(1.44269504088896340736);
      }
    }
    if (piece.rounded_grad_query.grid.data) {
      prefetch_tile<true>(piece, piece.rounded_grad_query, y, x);
    } else {
      prefetch_tile<true>(piece, piece.grad_query, y, x);
    }
    prefetch_tile(piece, piece.query, y + kRows, x);
    prefetch_tile(piece, piece.grad_output, y + kRows, x);
    prefetch_tile(piece, piece.output, y + kRows, x);
    for_each_chunk(rows, columns.taps, [&](Chunk chunk) {
      tile.products(scratch.query, keys, chunk, scratch.weights);
      if (piece.bias) tile.add_bias(piece, chunk, scratch.weights);
      tile.products(scratch.grad_output, values, chunk, scratch.grads);
      for (int t = 0; t < rows.count; ++t) {
        const Chunk seen = tile.visible(t, chunk);
        for (int64_t u = seen.begin; u < seen.end; ++u) {
          T *weight = scratch.weights.at(t, chunk, u), *grad = scratch.grads.at(t, chunk, u);
          T* grad_bias = piece.grad_bias
                             ? scratch.grad_bias + tile.table_row(piece, t, u) * columns.taps * N
                             : nullptr;
          for (int64_t b = 0; b < columns.taps * N; b += N) {
            // A logit can exceed the log-sum-exp by its rounding error only.
            const Vec<T, N> p = exp2<N>(load<N>(weight + b) - logsumexp[t]);
            const Vec<T, N> ds = p * (load<N>(grad + b) - delta[t]);
            store(weight + b, p);
            store(grad + b, ds);
            if (grad_bias) store(grad_bias + b, load<N>(grad_bias + b) + ds);
          }
        }
      }
      tile.accumulate(keys, chunk, scratch.grads, one, scratch.sums);
      add_key_value<N>(piece, scratch, tile, chunk);
    });
    for (int t = 0; t < rows.count; ++t) {
      T factor[N];
      store(factor, one[t]);
      const T* sums = scratch.sums + t * step;
      const int64_t last = x + columns.count - 1;
      if (piece.rounded_grad_query.grid.data) {
        unpack<N>(piece.rounded_grad_query, y + t, x, last, piece.dim, planes, sums, N, factor);
      } else {
        unpack<N>(piece.grad_query, y + t, x, last, piece.dim, planes, sums, N, factor);
      }
    }
  }
  if (!piece.grad_bias) return columns.count;
  for (int64_t a = 0; a < 2 * piece.rows.kernel - 1; ++a) {
    T* table = piece.grad_bias + a * (2 * columns.taps - 1);
    for (int64_t b = 0; b < columns.taps; ++b) {
      const T* grad = scratch.grad_bias + (a * columns.taps + b) * N;
      for (int64_t i = 0; i < columns.count; ++i) {
        table[piece.cols.table_column[x + i] + b] += grad[i];
      }
    }
  }
  return columns.count;
}

template <typename In>
int64_t backward_scratch(const Piece<In>& piece) {
  Arena<Compute<In>> arena{nullptr};
  make_planes(piece, arena), make_planes(piece, arena);
  BackwardScratch<In, kLanes<Compute<In>>>(piece, arena);
  return arena.used;
}

template <typename In>
void backward(const Piece<In>& piece, Compute<In>* memory) {
  Arena<Compute<In>> arena{memory};
  const auto keys = make_planes(piece, arena), values = make_planes(piece, arena);
  fill_planes(piece, piece.key, keys);
  fill_planes(piece, piece.value, values);
  for (int64_t i = 0; i < piece.grad_size(); ++i) piece.grad_key_value[i] = 0;
  for_each_columns(piece, [&](int64_t x, auto lanes) {
    auto rest = arena;
    return backward_columns<lanes>(piece, x, keys, values, BackwardScratch<In, lanes>(piece, rest));
  });
}

template <typename In>
Kernels<In> make_kernels() {
  return {&forward_scratch<In>, &backward_scratch<In>, &prefetch_piece<In>,
          &forward<In>,         &backward<In>,         &write_vectors<Compute<In>>,
          &write_vectors<In>,   &rotate<In, In>,       &rotate<Compute<In>, In>};
}

}  // namespace
}  // namespace MMLOCALATTN_ISA
}  // namespace cpu
}  // namespace mmlocalattn
