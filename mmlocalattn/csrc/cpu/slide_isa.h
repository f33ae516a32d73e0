// Kernels of slide attention for one instruction set: included by slide_<isa>.cpp, which defines
// MMLOCALATTN_ISA and MMLOCALATTN_VECTOR_BYTES and sets the compiler's target.
//
// Copies i and taps j of a window run over k * k; w = weight, b = bias, r = position bias, q has
// the factor scale. At position x and channel c, in forward
//
//   s_i = sum_cj q_c k_c(x + j) w_cij + sum_c q_c (b_ci + r_i)       p_i = exp(s_i - lse)
//   o_c = sum_j v_c(x + j) B_cj + sum_i p_i b_ci                     B_cj = sum_i p_i w_cij
//
// and in backward
//
//   dp_i = sum_cj do_c v_c(x + j) w_cij + sum_c do_c b_ci    ds_i = p_i (dp_i - sum_l p_l dp_l)
//   A_cj = sum_i ds_i w_cij                      dq_c = scale (sum_j k_c(x + j) A_cj + ...)
//   dk_c(x + j) += q_c A_cj                      dv_c(x + j) += do_c B_cj
//   dw_cij += ds_i q_c k_c(x + j) + p_i do_c v_c(x + j)
//
// so that no copy is ever formed. The lanes of a vector are neighboring positions of a row; w are
// scalars, which multiplications take from memory. Keys and values of a piece are packed into
// planes, one a channel, with zeros outside the map. Backward first computes p and ds of all
// positions whose windows meet a piece, then goes channel by channel.
#pragma once

#include "layout_isa.h"
#include "slide.h"

namespace mmlocalattn {
namespace cpu {
namespace MMLOCALATTN_ISA {
namespace {

// Sums that stay in registers.
constexpr int kMostSums = MMLOCALATTN_VECTOR_BYTES == 64 ? 26 : 13;

constexpr double kLog2E = 1.44269504088896340736, kLn2 = 0.69314718055994530942;

// Calls body(begin, size) with constants, for blocks of about equal size that cover kCount.
template <int kCount, int kBegin = 0, typename Body>
MMLOCALATTN_INLINE void for_each_block(const Body& body) {
  constexpr int kRest = kCount - kBegin, kBlocks = (kRest + kMostSums - 1) / kMostSums;
  constexpr int kSize = (kRest + kBlocks - 1) / kBlocks;
  body(std::integral_constant<int, kBegin>(), std::integral_constant<int, kSize>());
  if constexpr (kBlocks > 1) for_each_block<kCount, kBegin + kSize>(body);
}

// Channels of a rectangle of positions: channel d of (row, x), counted from its corner, is
// data[d * plane + row * line + x].
template <typename T>
struct Rectangle {
  T* data;
  int64_t rows, line, plane;

  // Whole vectors may begin at any of `cols` columns. Planes are an odd number of cache lines, so
  // that those of a position spread over the sets of a cache.
  Rectangle(int64_t dim, int64_t rows, int64_t cols, Arena<T>& arena) : rows(rows) {
    constexpr int64_t kLine = kVectorBytes / static_cast<int64_t>(sizeof(T));
    line = round_up(cols, kLine) + kLine;
    plane = (rows * line / kLine | 1) * kLine;
    data = arena.take(dim * plane);
  }
  MMLOCALATTN_INLINE T* at(int64_t row, int64_t x) const { return data + row * line + x; }
};

// Fills a rectangle whose corner is (y, x) with positions of a map, 0 outside the map.
template <typename In, typename T = Compute<In>>
void fill_rectangle(const Map<const In>& map, const SlidePiece<In>& piece, int64_t y, int64_t x,
                    int64_t cols, const Rectangle<T>& out) {
  constexpr int N = kLanes<T>;
  const int64_t begin = larger(x, 0), end = smaller(x + cols, piece.width);
  for (int64_t row = 0; row < out.rows; ++row) {
    const bool inside = y + row >= 0 && y + row < piece.height;
    for (int64_t i = begin; inside && i < end; i += N) {
      if (y + row + 1 < piece.height) prefetch(map, y + row + 1, i, smaller(N, end - i), piece.dim);
      pack<N>(map, y + row, i, end - 1, piece.dim, piece.dim, out.at(row, i - x), out.plane);
    }
    const int64_t first = inside ? begin - x : cols, last = inside ? end - x : cols;
    for (int64_t d = 0; d < piece.dim; ++d) {
      T* line = out.at(row, 0) + d * out.plane;
      for (int64_t i = 0; i < first; ++i) line[i] = 0;
      for (int64_t i = last; i < out.line; ++i) line[i] = 0;
    }
  }
}

// out[i] = sum_cj q_c keys_c(j) w_cij + sum_c q_c b_ci of N positions; `keys` is their first tap.
template <int kKernel, typename T>
void multiply_copies(const T* query, int64_t query_plane, const T* keys, const Rectangle<T>& shape,
                     int64_t dim, const T* table, T* out) {
  constexpr int N = kLanes<T>, kTaps = kKernel * kKernel;
  for_each_block<kTaps>([&](auto begin, auto size) __attribute__((always_inline)) {
    constexpr int kSize = size;
    Vec<T, N> sum[kSize];
    for (int i = 0; i < kSize; ++i) sum[i] = Vec<T, N>{};
    const T *q = query, *k = keys, *weight = table + begin;
    for (int64_t d = 0; d < dim; ++d, q += query_plane, k += shape.plane) {
      const Vec<T, N> own = load<N>(q);
      for (int a = 0; a < kKernel; ++a) {
        for (int b = 0; b < kKernel; ++b, weight += kTaps) {
          const Vec<T, N> product = own * load<N>(k + a * shape.line + b);
#pragma GCC unroll 32
          for (int i = 0; i < kSize; ++i) sum[i] += product * weight[i];
        }
      }
#pragma GCC unroll 32
      for (int i = 0; i < kSize; ++i) sum[i] += own * weight[i];
      weight += kTaps;
    }
    for (int i = 0; i < kSize; ++i) store(out + (begin + i) * N, sum[i]);
  });
}

// Calls use(j, sum_i weights_i w_cij) for all taps j of N positions, and the bias as tap k * k.
template <int kKernel, bool kBias, typename T, typename Use>
MMLOCALATTN_INLINE void mix_copies(const T* weights, const T* table, const Use& use) {
  constexpr int N = kLanes<T>, kTaps = kKernel * kKernel;
  for_each_block<kTaps + kBias>([&](auto begin, auto size) __attribute__((always_inline)) {
    constexpr int kSize = size;
    Vec<T, N> sum[kSize];
    for (int j = 0; j < kSize; ++j) sum[j] = Vec<T, N>{};
#pragma GCC unroll 1
    for (int i = 0; i < kTaps; ++i) {
      Vec<T, N> weight = load<N>(weights + i * N);
      pin(weight);
#pragma GCC unroll 32
      for (int j = 0; j < kSize; ++j) sum[j] += weight * table[i * (kTaps + 1) + begin + j];
    }
#pragma GCC unroll 32
    for (int j = 0; j < kSize; ++j) use(begin + j, sum[j]);
  });
}

// What forward and backward share: keys and values of the positions from (y, x) on, for whole
// vectors of queries.
template <int kKernel, typename In, typename T = Compute<In>>
struct Windows {
  static constexpr int N = kLanes<T>, kTaps = kKernel * kKernel, kRadius = kKernel / 2;

  const SlidePiece<In>& piece;
  int64_t y, x, rows, vectors;
  Rectangle<T> keys, values;

  Windows(const SlidePiece<In>& piece, int64_t y_begin, int64_t y_end, int64_t x_begin,
          int64_t x_end, Arena<T>& arena)
      : piece(piece),
        y(y_begin),
        x(x_begin),
        rows(y_end - y_begin),
        vectors((x_end - x_begin + N - 1) / N),
        keys(piece.dim, rows + 2 * kRadius, vectors * N + 2 * kRadius, arena),
        values(piece.dim, rows + 2 * kRadius, vectors * N + 2 * kRadius, arena) {}

  void fill_keys_values() const {
    const int64_t cols = vectors * N + 2 * kRadius;
    fill_rectangle(piece.key, piece, y - kRadius, x - kRadius, cols, keys);
    fill_rectangle(piece.value, piece, y - kRadius, x - kRadius, cols, values);
  }
};

// The scale may be negative and logits large: the maximum is subtracted first.
template <int kKernel, typename In>
void forward_vector(const Windows<kKernel, In>& windows, int64_t row, int64_t x, Compute<In>* query,
                    Compute<In>* weights, Compute<In>* sums) {
  using T = Compute<In>;
  constexpr int N = kLanes<T>, kTaps = kKernel * kKernel;
  const SlidePiece<In>& piece = windows.piece;
  const int64_t y = windows.y + row, dim = piece.dim, first = windows.x + x;
  const int64_t last = smaller(first + N, piece.cols.end) - 1;
  pack<N>(piece.query, y, first, last, dim, dim, query, N);
  multiply_copies<kKernel>(query, N, windows.keys.at(row, x), windows.keys, dim, piece.copies_last,
                           weights);
  Vec<T, N> channels{};
  for (int64_t d = 0; d < dim; ++d) channels += load<N>(query + d * N);
  Vec<T, N> most = load<N>(weights) + channels * piece.position_bias[0];
  for (int i = 0; i < kTaps; ++i) {
    const Vec<T, N> logit = load<N>(weights + i * N) + channels * piece.position_bias[i];
    most = max(most, logit);
    store(weights + i * N, logit);
  }
  Vec<T, N> total{};
  for (int i = 0; i < kTaps; ++i) {
    const Vec<T, N> weight = exp2<N>((load<N>(weights + i * N) - most) * T(kLog2E));
    total += weight;
    store(weights + i * N, weight);
  }
  const T *values = windows.values.at(row, x), *table = piece.taps_last;
  for (int64_t d = 0; d < dim; ++d, values += windows.values.plane, table += kTaps * (kTaps + 1)) {
    Vec<T, N> sum{};
    mix_copies<kKernel, true>(
        weights, table, [&](int j, Vec<T, N> mix) __attribute__((always_inline)) {
          sum += j < kTaps ? mix * load<N>(values + j / kKernel * windows.values.line + j % kKernel)
                           : mix;
        });
    store(sums + d * N, sum);
  }
  T factor[N];
  store(factor, T(1) / total);
  unpack<N>(piece.output, y, first, last, dim, dim, sums, N, factor);
  for (int64_t i = 0; i <= last - first; ++i) {
    *piece.logsumexp.at(y, first + i) = most[i] + log2(total[i]) * T(kLn2);
  }
}

template <int kKernel, typename In>
int64_t forward(const SlidePiece<In>& piece, Compute<In>* memory) {
  using T = Compute<In>;
  constexpr int N = kLanes<T>;
  Arena<T> arena{memory};
  const Windows<kKernel, In> windows(piece, piece.rows.begin, piece.rows.end, piece.cols.begin,
                                     piece.cols.end, arena);
  T *query = arena.take(piece.dim * N), *sums = arena.take(piece.dim * N),
    *weights = arena.take(kKernel * kKernel * N);
  if (!memory) return arena.used;
  windows.fill_keys_values();
  for (int64_t row = 0; row < windows.rows; ++row) {
    for (int64_t i = 0; i < windows.vectors; ++i) {
      if (row + 1 < windows.rows) {
        prefetch(piece.query, windows.y + row + 1, windows.x + i * N,
                 smaller(N, piece.cols.end - windows.x - i * N), piece.dim);
      }
      forward_vector<kKernel>(windows, row, i * N, query, weights, sums);
    }
  }
  return arena.used;
}

// Scratch of backward beside the windows. A position is one whose queries reach the own keys; their
// p and ds lie vector by vector, (rows, vectors, taps, N).
template <int kKernel, typename In, typename T = Compute<In>>
struct BackwardScratch {
  static constexpr int N = kLanes<T>, kTaps = kKernel * kKernel;
  static constexpr int64_t kBlock = kVectorBytes / sizeof(T);  // channels of gradients at a time
  static constexpr int64_t kMargin = kBlock;                   // columns around those of a row

  Windows<kKernel, In> windows;
  Rectangle<T> query, grad_output;
  T *weights, *grad_logits;
  T* grad_position;                               // sum_i ds_i r_i, (rows, vectors, N)
  T* own;                                         // 1 for own columns, else 0, (vectors, N)
  T* grad_position_bias;                          // (taps, N)
  Rectangle<T> grad_query, grad_key, grad_value;  // of a block of channels
  // Of one row and channel: what its queries give to each tap, between margins of zeros.
  int64_t given_line;
  T *given_keys, *given_values;

  BackwardScratch(const SlidePiece<In>& piece, Arena<T>& arena)
      : windows(piece, piece.rows.reach_begin, piece.rows.reach_end, piece.cols.reach_begin,
                piece.cols.reach_end, arena),
        query(piece.dim, windows.rows, windows.vectors * N, arena),
        grad_output(piece.dim, windows.rows, windows.vectors * N, arena),
        weights(arena.take(windows.rows * windows.vectors * kTaps * N)),
        grad_logits(arena.take(windows.rows * windows.vectors * kTaps * N)),
        grad_position(arena.take(windows.rows * windows.vectors * N)),
        own(arena.take(windows.vectors * N)),
        grad_position_bias(arena.take(kTaps * N)),
        grad_query(kBlock, windows.rows, windows.vectors * N, arena),
        grad_key(kBlock, windows.keys.rows, windows.vectors * N, arena),
        grad_value(kBlock, windows.keys.rows, windows.vectors * N, arena),
        given_line(windows.vectors * N + 2 * kMargin),
        given_keys(arena.take(kTaps * given_line)),
        given_values(arena.take(kTaps * given_line)) {}

  bool owns_row(int64_t row) const {
    const Reach& rows = windows.piece.rows;
    return windows.y + row >= rows.begin && windows.y + row < rows.end;
  }
  int64_t copies(int64_t row, int64_t vector) const {
    return (row * windows.vectors + vector) * kTaps * N;
  }
};

// p and ds of a vector of positions, and what they give to the gradient of the position bias.
template <int kKernel, typename In>
void weigh_vector(const BackwardScratch<kKernel, In>& scratch, int64_t row, int64_t vector) {
  using T = Compute<In>;
  constexpr int N = kLanes<T>, kTaps = kKernel * kKernel;
  const Windows<kKernel, In>& windows = scratch.windows;
  const SlidePiece<In>& piece = windows.piece;
  const int64_t y = windows.y + row, x = windows.x + vector * N, dim = piece.dim;
  const int64_t last = smaller(x + N, piece.width) - 1, place = scratch.copies(row, vector);
  T *query = scratch.query.at(row, vector * N),
    *grad_output = scratch.grad_output.at(row, vector * N);
  pack<N>(piece.query, y, x, last, dim, dim, query, scratch.query.plane);
  pack<N>(piece.grad_output, y, x, last, dim, dim, grad_output, scratch.grad_output.plane);
  Vec<T, N> channels{}, delta{}, logsumexp{}, position{};
  for (int64_t d = 0; d < dim; ++d) channels += load<N>(query + d * scratch.query.plane);
  Index<T, N> inside{};
  for (int64_t i = 0; i <= last - x; ++i) {
    logsumexp[i] = *piece.logsumexp.at(y, x + i);
    inside[i] = -1;
  }
  T *weights = scratch.weights + place, *grads = scratch.grad_logits + place;
  multiply_copies<kKernel>(query, scratch.query.plane, windows.keys.at(row, vector * N),
                           windows.keys, dim, piece.copies_last, weights);
  multiply_copies<kKernel>(grad_output, scratch.grad_output.plane,
                           windows.values.at(row, vector * N), windows.values, dim,
                           piece.copies_last, grads);
  const Vec<T, N> own =
      scratch.owns_row(row) ? channels * load<N>(scratch.own + vector * N) : Vec<T, N>{};
  for (int i = 0; i < kTaps; ++i) {
    const Vec<T, N> logit = load<N>(weights + i * N) + channels * piece.position_bias[i];
    // A logit can exceed the log-sum-exp by its rounding error only.
    const Vec<T, N> weight = exp2<N>((logit - logsumexp) * T(kLog2E));
    store(weights + i * N, inside ? weight : Vec<T, N>{});
    delta += weight * load<N>(grads + i * N);
  }
  for (int i = 0; i < kTaps; ++i) {
    const Vec<T, N> grad = load<N>(weights + i * N) * (load<N>(grads + i * N) - delta);
    store(grads + i * N, inside ? grad : Vec<T, N>{});
    position += grad * piece.position_bias[i];
    T* sum = scratch.grad_position_bias + i * N;
    store(sum, load<N>(sum) + own * load<N>(grads + i * N));
  }
  store(scratch.grad_position + (row * windows.vectors + vector) * N, position);
}

// One channel of a row of positions: its gradient of the query, and what it gives to the keys and
// values of its windows. `d` counts all channels, `block` those of the block.
template <int kKernel, typename In>
void give_row(const BackwardScratch<kKernel, In>& scratch, int64_t row, int64_t d, int64_t block) {
  using T = Compute<In>;
  constexpr int N = kLanes<T>, kTaps = kKernel * kKernel;
  const Windows<kKernel, In>& windows = scratch.windows;
  const T* table = windows.piece.taps_last + d * kTaps * (kTaps + 1);
  const int64_t line = windows.keys.line;
  for (int64_t vector = 0; vector < windows.vectors; ++vector) {
    const int64_t x = vector * N, place = scratch.copies(row, vector);
    const Vec<T, N> query = load<N>(scratch.query.at(row, x) + d * scratch.query.plane);
    const Vec<T, N> grad_output =
        load<N>(scratch.grad_output.at(row, x) + d * scratch.grad_output.plane);
    const T* keys = windows.keys.at(row, x) + d * windows.keys.plane;
    T *given_keys = scratch.given_keys + scratch.kMargin + x,
      *given_values = scratch.given_values + scratch.kMargin + x;
    Vec<T, N> grad_query = load<N>(scratch.grad_position + (row * windows.vectors + vector) * N);
    mix_copies<kKernel, true>(scratch.grad_logits + place, table,
                              [&](int j, Vec<T, N> mix) __attribute__((always_inline)) {
                                if (j == kTaps) {
                                  grad_query += mix;
                                } else {
                                  grad_query +=
                                      mix * load<N>(keys + j / kKernel * line + j % kKernel);
                                  store(given_keys + j * scratch.given_line, mix * query);
                                }
                              });
    store(scratch.grad_query.at(row, x) + block * scratch.grad_query.plane, grad_query);
    mix_copies<kKernel, false>(scratch.weights + place, table,
                               [&](int j, Vec<T, N> mix) __attribute__((always_inline)) {
                                 store(given_values + j * scratch.given_line, mix * grad_output);
                               });
  }
}

// Adds what a row of positions has given to the keys (or values) of one channel.
template <int kKernel, typename In, typename T = Compute<In>>
void take_row(const BackwardScratch<kKernel, In>& scratch, int64_t row, int64_t block,
              const T* given, const Rectangle<T>& grad) {
  constexpr int N = kLanes<T>;
  for (int a = 0; a < kKernel; ++a) {
    T* sums = grad.at(row + a, 0) + block * grad.plane;
    for (int64_t x = 0; x < scratch.windows.vectors * N; x += N) {
      Vec<T, N> sum = load<N>(sums + x);
      const T* from = given + a * kKernel * scratch.given_line + scratch.kMargin + x + kKernel / 2;
      for (int b = 0; b < kKernel; ++b) sum += load<N>(from + b * scratch.given_line - b);
      store(sums + x, sum);
    }
  }
}

// Sums dw of one channel over the own positions, for kCopies copies and kTapsAtOnce taps, from
// copy i and tap j on; the tap k * k is the bias.
template <int kKernel, int kCopies, int kTapsAtOnce, typename In>
void add_grad_weight(const BackwardScratch<kKernel, In>& scratch, int64_t d, int i, int j) {
  using T = Compute<In>;
  constexpr int N = kLanes<T>, kTaps = kKernel * kKernel;
  const Windows<kKernel, In>& windows = scratch.windows;
  Vec<T, N> sum[kCopies][kTapsAtOnce];
#pragma GCC unroll 32
  for (int c = 0; c < kCopies; ++c) {
#pragma GCC unroll 32
    for (int t = 0; t < kTapsAtOnce; ++t) sum[c][t] = Vec<T, N>{};
  }
  const int64_t first = windows.piece.rows.begin - windows.y,
                end = windows.piece.rows.end - windows.y;
  const int64_t tap = j / kKernel * windows.keys.line + j % kKernel;
  for (int64_t row = first; row < end; ++row) {
    for (int64_t vector = 0; vector < windows.vectors; ++vector) {
      const int64_t x = vector * N, place = scratch.copies(row, vector) + i * N;
      const Vec<T, N> own = load<N>(scratch.own + x);
      const T *keys = windows.keys.at(row, x) + d * windows.keys.plane + tap,
              *values = windows.values.at(row, x) + d * windows.values.plane + tap;
      const auto add = [&](Vec<T, N> own, const T* partner, const T* factors)
                           __attribute__((always_inline)) {
#pragma GCC unroll 32
                             for (int t = 0; t < kTapsAtOnce; ++t) {
                               Vec<T, N> product = own;
                               if (kTapsAtOnce > 1 || j < kTaps) product *= load<N>(partner + t);
#pragma GCC unroll 32
                               for (int c = 0; c < kCopies; ++c)
                                 sum[c][t] += product * load<N>(factors + c * N);
                             }
                           };
      add(own * load<N>(scratch.query.at(row, x) + d * scratch.query.plane), keys,
          scratch.grad_logits + place);
      add(own * load<N>(scratch.grad_output.at(row, x) + d * scratch.grad_output.plane), values,
          scratch.weights + place);
    }
  }
  T* grad = windows.piece.grad_weight + (d * kTaps + i) * (kTaps + 1) + j;
#pragma GCC unroll 32
  for (int c = 0; c < kCopies; ++c) {
#pragma GCC unroll 32
    for (int t = 0; t < kTapsAtOnce; ++t) grad[c * (kTaps + 1) + t] += sum_lanes<T, N>(sum[c][t]);
  }
}

// All copies and taps of a channel, in blocks whose sums stay in registers.
template <int kKernel, typename In>
void add_grad_weights(const BackwardScratch<kKernel, In>& scratch, int64_t d) {
  constexpr int kTaps = kKernel * kKernel;
  constexpr int kCopies = kTaps * kKernel <= kMostSums + 1 ? kTaps : kKernel;
  constexpr int kFit = (kMostSums + 2) / kCopies, kAtOnce = kFit < kKernel ? kFit : kKernel;
  for (int i = 0; i < kTaps; i += kCopies) {
    for (int a = 0; a < kKernel; ++a) {
      int b = 0;
      for (; b + kAtOnce <= kKernel; b += kAtOnce) {
        add_grad_weight<kKernel, kCopies, kAtOnce>(scratch, d, i, a * kKernel + b);
      }
      if constexpr (kKernel % kAtOnce > 0) {
        add_grad_weight<kKernel, kCopies, kKernel % kAtOnce>(scratch, d, i, a * kKernel + b);
      }
    }
    add_grad_weight<kKernel, kCopies, 1>(scratch, d, i, kTaps);
  }
}

// Writes the own positions of a block of channels from d on. The corner of the rectangle is
// (y, x) of the map.
template <typename In, typename T = Compute<In>>
void write_block(const SlidePiece<In>& piece, const Map<In>& map, const Rectangle<T>& grad,
                 int64_t y, int64_t x, int64_t d, int64_t count) {
  constexpr int N = kLanes<T>;
  T factor[N];
  store(factor, fill<N>(T(1)));
  for (int64_t row = piece.rows.begin; row < piece.rows.end; ++row) {
    for (int64_t i = piece.cols.begin; i < piece.cols.end; i += N) {
      unpack<N>(map, row, i, piece.cols.end - 1, d + count, d + count,
                grad.at(row - y, i - x) - d * grad.plane, grad.plane, factor, d);
    }
  }
}

template <int kKernel, typename In>
int64_t backward(const SlidePiece<In>& piece, Compute<In>* memory) {
  using T = Compute<In>;
  constexpr int N = kLanes<T>, kTaps = kKernel * kKernel;
  Arena<T> arena{memory};
  const BackwardScratch<kKernel, In> scratch(piece, arena);
  if (!memory) return arena.used;
  const Windows<kKernel, In>& windows = scratch.windows;
  windows.fill_keys_values();
  for (int64_t i = 0; i < windows.vectors * N; ++i) {
    const int64_t x = windows.x + i;
    scratch.own[i] = x >= piece.cols.begin && x < piece.cols.end;
  }
  for (int64_t i = 0; i < kTaps * N; ++i) scratch.grad_position_bias[i] = 0;
  for (int64_t i = 0; i < kTaps * scratch.given_line; ++i) {
    scratch.given_keys[i] = scratch.given_values[i] = 0;
  }
  for (int64_t row = 0; row < windows.rows; ++row) {
    for (int64_t i = 0; i < windows.vectors; ++i) weigh_vector(scratch, row, i);
  }
  for (int i = 0; i < kTaps; ++i) {
    piece.grad_position_bias[i] += sum_lanes<T, N>(load<N>(scratch.grad_position_bias + i * N));
  }
  constexpr int64_t kBlock = BackwardScratch<kKernel, In>::kBlock;
  for (int64_t d = 0; d < piece.dim; d += kBlock) {
    const int64_t count = smaller(kBlock, piece.dim - d);
    for (const auto* grad : {&scratch.grad_key, &scratch.grad_value}) {
      for (int64_t i = 0; i < count * grad->plane; ++i) grad->data[i] = 0;
    }
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t row = 0; row < windows.rows; ++row) {
        give_row(scratch, row, d + i, i);
        take_row(scratch, row, i, scratch.given_keys, scratch.grad_key);
        take_row(scratch, row, i, scratch.given_values, scratch.grad_value);
      }
      add_grad_weights(scratch, d + i);
    }
    write_block(piece, piece.grad_query, scratch.grad_query, windows.y, windows.x, d, count);
    const int64_t y = windows.y - kKernel / 2;
    write_block(piece, piece.grad_key, scratch.grad_key, y, windows.x, d, count);
    write_block(piece, piece.grad_value, scratch.grad_value, y, windows.x, d, count);
  }
  return arena.used;
}

// Calls run(kernel) with the kernel of a piece as a constant.
template <typename In, typename Run>
auto with_kernel(const SlidePiece<In>& piece, const Run& run) {
  if (piece.kernel == 3) return run(std::integral_constant<int, 3>());
  if (piece.kernel == 5) return run(std::integral_constant<int, 5>());
  return run(std::integral_constant<int, 7>());
}

template <typename In>
SlideKernels<In> make_slide_kernels() {
  using Piece = SlidePiece<In>;
  return {[](const Piece& piece) {
            return with_kernel(piece, [&](auto k) { return forward<k>(piece, nullptr); });
          },
          [](const Piece& piece) {
            return with_kernel(piece, [&](auto k) { return backward<k>(piece, nullptr); });
          },
          [](const Piece& piece, Compute<In>* memory) {
            with_kernel(piece, [&](auto k) { return forward<k>(piece, memory); });
          },
          [](const Piece& piece, Compute<In>* memory) {
            with_kernel(piece, [&](auto k) { return backward<k>(piece, memory); });
          }};
}

}  // namespace
}  // namespace MMLOCALATTN_ISA
}  // namespace cpu
}  // namespace mmlocalattn
