// Slide attention, forward, and the formulas of both directions.
//
// Copies i and taps j of a window run over k * k; w = weight, b = bias, r = position bias, q has
// the factor scale. At position x and channel c, in forward
//
//   s_i = sum_cj q_c k_c(x + j) w_cij + sum_c q_c (b_ci + r_i)       p_i = exp(s_i - lse)
//   o_c = sum_j v_c(x + j) B_cj + sum_i p_i b_ci                     B_cj = sum_i p_i w_cij
//
// and in backward
//
//   dp_i = sum_cj do_c v_c(x + j) w_cij + sum_c do_c b_ci
//   ds_i = p_i (dp_i - delta)                    delta = sum_i p_i dp_i / sum_i p_i
//   A_cj = sum_i ds_i w_cij                      dq_c = scale (sum_j k_c(x + j) A_cj + ...)
//   dk_c(x + j) += q_c A_cj                      dv_c(x + j) += do_c B_cj
//   dw_cij += ds_i q_c k_c(x + j) + p_i do_c v_c(x + j)
//
// so that no copy is ever formed. The lanes of a vector are neighboring positions of a row; w are
// scalars, which multiplications take from memory. Keys and values of a piece are packed into
// planes, one a channel, with zeros outside the map. The sum of p_i is 1 but for rounding, which
// the quotient does not see. Backward first computes p and ds of all
// positions whose windows meet a piece, then goes channel by channel.
#if defined(MMLOCALATTN_SLIDE_FORWARD_H) == defined(MMLOCALATTN_TOGGLE)
#ifdef MMLOCALATTN_SLIDE_FORWARD_H
#undef MMLOCALATTN_SLIDE_FORWARD_H
#else
#define MMLOCALATTN_SLIDE_FORWARD_H
#endif

#include "cpu/slide/tile.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

// The scale may be negative and logits large: the maximum is subtracted first.
template <int kKernel, typename In>
void forward_vector(const Windows<kKernel, In>& windows, int64_t row, int64_t x, Compute<In>* query,
                    Compute<In>* weights, Compute<In>* sums) {
  using T = Compute<In>;
  constexpr int N = kLanes<T>, kTaps = kKernel * kKernel;
  const Piece<In>& piece = windows.piece;
  const int64_t y = windows.y + row, dim = piece.dim, first = windows.x + x;
  const int64_t last = smaller(first + N, piece.cols.end) - 1;
  prefetch<true>(piece.output, y, first, last + 1 - first, dim);
  pack<N>(piece.query, y, first, last, dim, dim, query, N);
  multiply_copies<kKernel>(piece, y, query, N, windows.keys.at(row, x), windows.keys, weights);
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
    const Vec<T, N> weight = exp<N>(load<N>(weights + i * N) - most);
    total += weight;
    store(weights + i * N, weight);
  }
  const T* values = windows.values.at(row, x);
  for (int64_t d = 0; d < dim; ++d, values += windows.values.plane) {
    Vec<T, N> sum[kKernel]{};  // several, so that none waits for the one before
    mix_copies<kKernel, true>(piece, d, weights, [&](int j, Vec<T, N> mix) MMLOCALATTN_LAMBDA {
      sum[j % kKernel] +=
          j < kTaps ? mix * load<N>(values + j / kKernel * windows.values.line + j % kKernel) : mix;
    });
    for (int i = 1; i < kKernel; ++i) sum[0] += sum[i];
    store(sums + d * N, sum[0]);
  }
  T factor[N];
  store(factor, T(1) / total);
  unpack<N>(piece.output, y, first, last, dim, dim, sums, N, factor);
  const Vec<T, N> rest = log<N>(total);
  for (int64_t i = 0; i <= last - first; ++i) {
    T* logsumexp = piece.logsumexp.at(y, first + i);
    logsumexp[0] = most[i], logsumexp[1] = rest[i];
  }
}

template <int kKernel, typename In>
int64_t forward_piece(const Piece<In>& piece, Compute<In>* memory) {
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

template <typename In>
int64_t forward(const Piece<In>& piece, Compute<In>* memory) {
  return with_kernel(
      piece, [&](auto kernel) MMLOCALATTN_LAMBDA { return forward_piece<kernel>(piece, memory); });
}

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA

#endif
