// Slide attention, backward. The formulas are in forward.h.
#if defined(MMLOCALATTN_SLIDE_BACKWARD_H) == defined(MMLOCALATTN_TOGGLE)
#ifdef MMLOCALATTN_SLIDE_BACKWARD_H
#undef MMLOCALATTN_SLIDE_BACKWARD_H
#else
#define MMLOCALATTN_SLIDE_BACKWARD_H
#endif

#include "cpu/slide/tile.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

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

  BackwardScratch(const Piece<In>& piece, Arena<T>& arena)
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

// Makes p and ds of the products of a vector of positions, and what they give to the gradient of
// the position bias.
template <int kKernel, typename In>
MMLOCALATTN_INLINE void weigh_back(const BackwardScratch<kKernel, In>& scratch, int64_t row,
                                   int64_t vector) {
  using T = Compute<In>;
  constexpr int N = kLanes<T>, kTaps = kKernel * kKernel;
  const Windows<kKernel, In>& windows = scratch.windows;
  const Piece<In>& piece = windows.piece;
  const int64_t y = windows.y + row, x = windows.x + vector * N;
  const int64_t last = smaller(x + N, piece.width) - 1, place = scratch.copies(row, vector);
  const T* query = scratch.query.at(row, vector * N);
  Vec<T, N> channels{}, delta{}, total{}, most{}, rest{}, position{};
  for (int64_t d = 0; d < piece.dim; ++d) channels += load<N>(query + d * scratch.query.plane);
  Index<T, N> inside{};
  for (int64_t i = 0; i <= last - x; ++i) {
    const T* logsumexp = piece.logsumexp.at(y, x + i);
    most[i] = logsumexp[0], rest[i] = logsumexp[1];
    inside[i] = -1;
  }
  T *weights = scratch.weights + place, *grads = scratch.grad_logits + place;
  const Vec<T, N> own =
      scratch.owns_row(row) ? channels * load<N>(scratch.own + vector * N) : Vec<T, N>{};
  for (int i = 0; i < kTaps; ++i) {
    const Vec<T, N> logit = load<N>(weights + i * N) + channels * piece.position_bias[i];
    // A logit can exceed the log-sum-exp by its rounding error only.
    const Vec<T, N> weight = exp<N>(logit - most - rest);
    store(weights + i * N, inside ? weight : Vec<T, N>{});
    total += weight;
    delta += weight * load<N>(grads + i * N);
  }
  delta /= total;
  for (int i = 0; i < kTaps; ++i) {
    const Vec<T, N> grad = load<N>(weights + i * N) * (load<N>(grads + i * N) - delta);
    store(grads + i * N, inside ? grad : Vec<T, N>{});
    position += grad * piece.position_bias[i];
    T* sum = scratch.grad_position_bias + i * N;
    store(sum, load<N>(sum) + own * load<N>(grads + i * N));
  }
  store(scratch.grad_position + (row * windows.vectors + vector) * N, position);
}

// p and ds of kVectors vectors of positions.
template <int kKernel, int kVectors, typename In>
void weigh_vectors(const BackwardScratch<kKernel, In>& scratch, int64_t row, int64_t vector) {
  constexpr int N = kLanes<Compute<In>>, kStep = kVectors * N;
  const Windows<kKernel, In>& windows = scratch.windows;
  const Piece<In>& piece = windows.piece;
  const int64_t y = windows.y + row, i = vector * N, x = windows.x + i, dim = piece.dim;
  const int64_t end = smaller(x + kStep, piece.width), place = scratch.copies(row, vector);
  const Rectangle<Compute<In>>&query = scratch.query, &grad_output = scratch.grad_output;
  windows.prefetch_next(row, i, kStep);
  if (row + 1 < windows.rows) prefetch(piece.grad_output, y + 1, x, end - x, dim);
  for (int v = 0; v < kStep; v += N) {
    pack<N>(piece.query, y, x + v, end - 1, dim, dim, query.at(row, i + v), query.plane);
    pack<N>(piece.grad_output, y, x + v, end - 1, dim, dim, grad_output.at(row, i + v),
            grad_output.plane);
  }
  multiply_copies<kKernel, kVectors>(piece, y, query.at(row, i), query.plane,
                                     windows.keys.at(row, i), windows.keys,
                                     scratch.weights + place);
  multiply_copies<kKernel, kVectors>(piece, y, grad_output.at(row, i), grad_output.plane,
                                     windows.values.at(row, i), windows.values,
                                     scratch.grad_logits + place);
  for (int v = 0; v < kVectors; ++v) weigh_back(scratch, row, vector + v);
}

// One channel of kVectors vectors of positions: its gradient of the query, and what it gives to the
// keys and values of its windows. `d` counts all channels, `block` those of the block.
template <int kKernel, int kVectors, typename In>
MMLOCALATTN_INLINE void give_vectors(const BackwardScratch<kKernel, In>& scratch, int64_t row,
                                     int64_t vector, int64_t d, int64_t block) {
  using T = Compute<In>;
  constexpr int N = kLanes<T>, kTaps = kKernel * kKernel;
  const Windows<kKernel, In>& windows = scratch.windows;
  const int64_t x = vector * N, place = scratch.copies(row, vector);
  const T *query = scratch.query.at(row, x) + d * scratch.query.plane,
          *grad_output = scratch.grad_output.at(row, x) + d * scratch.grad_output.plane,
          *keys = windows.keys.at(row, x) + d * windows.keys.plane,
          *position = scratch.grad_position + (row * windows.vectors + vector) * N;
  T *grad_query = scratch.grad_query.at(row, x) + block * scratch.grad_query.plane,
    *given_keys = scratch.given_keys + scratch.kMargin + x,
    *given_values = scratch.given_values + scratch.kMargin + x;
  Vec<T, N> sum[kVectors][2]{};  // two, as in forward
  for (int v = 0; v < kVectors; ++v) sum[v][0] = load<N>(position + v * N);
  mix_copies<kKernel, kVectors, true>(
      windows.piece, d, scratch.grad_logits + place,
      [&](int j, int v, Vec<T, N> mix) MMLOCALATTN_LAMBDA {
        if (j == kTaps) {
          sum[v][0] += mix;
        } else {
          const T* key = keys + j / kKernel * windows.keys.line + j % kKernel;
          sum[v][j % 2] += mix * load<N>(key + v * N);
          store(given_keys + j * scratch.given_line + v * N, mix * load<N>(query + v * N));
        }
      });
  for (int v = 0; v < kVectors; ++v) store(grad_query + v * N, sum[v][0] + sum[v][1]);
  mix_copies<kKernel, kVectors, false>(windows.piece, d, scratch.weights + place,
                                       [&](int j, int v, Vec<T, N> mix) MMLOCALATTN_LAMBDA {
                                         store(given_values + j * scratch.given_line + v * N,
                                               mix * load<N>(grad_output + v * N));
                                       });
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
      const auto add = [&](Vec<T, N> own, const T* partner, const T* factors) MMLOCALATTN_LAMBDA {
#pragma GCC unroll 32
        for (int t = 0; t < kTapsAtOnce; ++t) {
          Vec<T, N> product = own;
          if (kTapsAtOnce > 1 || j < kTaps) product *= load<N>(partner + t);
#pragma GCC unroll 32
          for (int c = 0; c < kCopies; ++c) sum[c][t] += product * load<N>(factors + c * N);
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
  constexpr int kCopies = kTaps * kKernel <= kMostProducts ? kTaps : kKernel;
  constexpr int kFit = kMostProducts / kCopies, kAtOnce = kFit < kKernel ? kFit : kKernel;
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
void write_block(const Piece<In>& piece, const Map<In>& map, const Rectangle<T>& grad, int64_t y,
                 int64_t x, int64_t d, int64_t count) {
  constexpr int N = kLanes<T>;
  T factor[N];
  store(factor, fill<N>(T(1)));
  for (int64_t row = piece.rows.begin; row < piece.rows.end; ++row) {
    for (int64_t i = piece.cols.begin; i < piece.cols.end; i += N) {
      if (row + 1 < piece.rows.end) {
        prefetch<true>(map, row + 1, i, smaller(N, piece.cols.end - i), d + count);
      }
      unpack<N>(map, row, i, piece.cols.end - 1, d + count, d + count,
                grad.at(row - y, i - x) - d * grad.plane, grad.plane, factor, d);
    }
  }
}

template <int kKernel, typename In>
int64_t backward_piece(const Piece<In>& piece, Compute<In>* memory) {
  using T = Compute<In>;
  constexpr int N = kLanes<T>, kTaps = kKernel * kKernel;
  Arena<T> arena{memory};
  const BackwardScratch<kKernel, In> scratch(piece, arena);
  if (!memory) return arena.used;
  const Windows<kKernel, In>& windows = scratch.windows;
  for (int64_t i = 0; i < windows.vectors * N; ++i) {
    const int64_t x = windows.x + i;
    scratch.own[i] = x >= piece.cols.begin && x < piece.cols.end;
  }
  for (int64_t i = 0; i < kTaps * N; ++i) scratch.grad_position_bias[i] = 0;
  for (int64_t i = 0; i < kTaps * scratch.given_line; ++i) {
    scratch.given_keys[i] = scratch.given_values[i] = 0;
  }
  for (int64_t row = 1 - kKernel; row < windows.rows; ++row) {
    windows.fill(row + kKernel - 1);
    if (row < 0) continue;
    for_each_vectors(windows.vectors, [&](int64_t i, auto count) MMLOCALATTN_LAMBDA {
      weigh_vectors<kKernel, count>(scratch, row, i);
    });
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
        for_each_vectors(windows.vectors, [&](int64_t vector, auto size) MMLOCALATTN_LAMBDA {
          give_vectors<kKernel, size>(scratch, row, vector, d + i, i);
        });
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

template <typename In>
int64_t backward(const Piece<In>& piece, Compute<In>* memory) {
  return with_kernel(
      piece, [&](auto kernel) MMLOCALATTN_LAMBDA { return backward_piece<kernel>(piece, memory); });
}

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA

#endif
