// Slide attention, forward, and the formulas of both directions.
//
// Copies i and taps j of a window run over k * k; w = weight, b = bias, r = position bias, q has
// the factor scale. At position x and channel c, in forward
//
//   s_i = sum_c q_c (b_ci + sum_j w_cij k_c(x + j) + r_i)            p_i = exp(s_i - lse)
//   o_c = sum_i p_i (b_ci + sum_j w_cij v_c(x + j))
//
// and in backward
//
//   dp_i = sum_c do_c (b_ci + sum_j w_cij v_c(x + j))
//   ds_i = p_i (dp_i - delta)                    delta = sum_i p_i dp_i / sum_i p_i
//   A_cj = sum_i ds_i w_cij                      dq_c = scale (sum_j k_c(x + j) A_cj + ...)
//   B_cj = sum_i p_i w_cij
//   dk_c(x + j) += q_c A_cj                      dv_c(x + j) += do_c B_cj
//   dw_cij += ds_i q_c k_c(x + j) + p_i do_c v_c(x + j)
//
// The lanes of a vector are neighboring positions of a row; w are scalars. Copies and B are formed
// channel by channel in registers, of kVectorsAtOnce vectors. Keys and values of a piece are packed
// into planes, one a channel, with zeros outside the map. The sum of p_i is 1 but for rounding,
// which the quotient does not see. Backward first computes p and ds of all positions whose windows
// meet a piece, then goes channel by channel.
#if defined(MMLOCALATTN_SLIDE_FORWARD_H) == defined(MMLOCALATTN_TOGGLE)
#ifdef MMLOCALATTN_SLIDE_FORWARD_H
#undef MMLOCALATTN_SLIDE_FORWARD_H
#else
#define MMLOCALATTN_SLIDE_FORWARD_H
#endif

#include "cpu/slide/tile.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

// Makes weights of the products of a vector of queries and writes their log-sum-exp; returns the
// sum of the weights. The scale may be negative and logits large: the maximum is subtracted first.
template <int kTaps, typename In, int N = kLanes<Compute<In>>>
MMLOCALATTN_INLINE Vec<Compute<In>, N> weigh(const Piece<In>& piece, int64_t y, int64_t x,
                                             int64_t count, const Compute<In>* query,
                                             int64_t query_plane, Compute<In>* weights) {
  using T = Compute<In>;
  Vec<T, N> channels{};
  for (int64_t d = 0; d < piece.dim; ++d) channels += load<N>(query + d * query_plane);
  Vec<T, N> most = load<N>(weights) + channels * piece.position_bias[0];
  for (int i = 0; i < kTaps; ++i) {
    const Vec<T, N> logit = load<N>(weights + i * N) + channels * piece.position_bias[i];
    most = max(most, logit);
    store(weights + i * N, logit);
  }
  Vec<T, N> total{};
  for (int i = 0; i < kTaps; ++i) {
    const Vec<T, N> weight = exp<N>(load<N>(weights + i * N) - most);
    total += weight;
    store(weights + i * N, weight);
  }
  const Vec<T, N> rest = log<N>(total);
  for (int64_t i = 0; i < count; ++i) {
    T* logsumexp = piece.logsumexp.at(y, x + i);
    logsumexp[0] = most[i], logsumexp[1] = rest[i];
  }
  return total;
}

// Scratch for kVectors vectors of queries: channels in planes of kVectors * N values.
template <typename T>
struct ForwardScratch {
  T *query, *sums, *weights;  // weights: (vectors, copies, N)
};

template <int kKernel, int kVectors, typename In>
void forward_vectors(const Windows<kKernel, In>& windows, int64_t row, int64_t x,
                     const ForwardScratch<Compute<In>>& scratch) {
  using T = Compute<In>;
  constexpr int N = kLanes<T>, kTaps = kKernel * kKernel, kStep = kVectors * N;
  const Piece<In>& piece = windows.piece;
  const int64_t y = windows.y + row, dim = piece.dim, first = windows.x + x;
  const int64_t end = smaller(first + kStep, piece.cols.end);
  prefetch<true>(piece.output, y, first, end - first, dim);
  windows.prefetch_next(row, x, kStep);
  for (int v = 0; v < kStep; v += N) {
    pack<N>(piece.query, y, first + v, end - 1, dim, dim, scratch.query + v, kStep);
  }
  multiply_copies<kKernel, kVectors>(piece, y, scratch.query, kStep, windows.keys.at(row, x),
                                     windows.keys, scratch.weights);
  T factor[kStep];
  for (int v = 0; v < kStep; v += N) {
    store(factor + v, T(1) / weigh<kTaps>(piece, y, first + v, smaller(N, end - first - v),
                                          scratch.query + v, kStep, scratch.weights + v * kTaps));
  }
  const T* values = windows.values.at(row, x);
  for (int64_t d = 0; d < dim; ++d, values += windows.values.plane) {
    Vec<T, N> sum[kVectors][2]{};  // two, so that none waits for the one before
    form_copies<kKernel, kVectors>(piece, y, d, values, windows.values.line,
                                   [&](int i, int v, Vec<T, N> copy) MMLOCALATTN_LAMBDA {
                                     sum[v][i % 2] +=
                                         copy * load<N>(scratch.weights + (v * kTaps + i) * N);
                                   });
    for (int v = 0; v < kVectors; ++v) {
      store(scratch.sums + d * kStep + v * N, sum[v][0] + sum[v][1]);
    }
  }
  for (int v = 0; v < kStep; v += N) {
    unpack<N>(piece.output, y, first + v, end - 1, dim, dim, scratch.sums + v, kStep, factor + v);
  }
}

template <int kKernel, typename In>
int64_t forward_piece(const Piece<In>& piece, Compute<In>* memory) {
  using T = Compute<In>;
  constexpr int N = kLanes<T>;
  Arena<T> arena{memory};
  const Windows<kKernel, In> windows(piece, piece.rows.begin, piece.rows.end, piece.cols.begin,
                                     piece.cols.end, arena);
  constexpr int kStep = kVectorsAtOnce * N;
  const ForwardScratch<T> scratch{arena.take(piece.dim * kStep), arena.take(piece.dim * kStep),
                                  arena.take(kKernel * kKernel * kStep)};
  if (!memory) return arena.used;
  for (int64_t row = 1 - kKernel; row < windows.rows; ++row) {
    windows.fill(row + kKernel - 1);
    if (row < 0) continue;
    for_each_vectors(windows.vectors, [&](int64_t i, auto count) MMLOCALATTN_LAMBDA {
      forward_vectors<kKernel, count>(windows, row, i * N, scratch);
    });
  }
  return arena.used;
}

template <typename In>
int64_t forward(const Piece<In>& piece, Compute<In>* memory) {
  return with_kernel(
      piece, [&](auto kernel) MMLOCALATTN_LAMBDA { return forward_piece<kernel>(piece, memory); });
}

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA

#endif
