// query_and_attend, backward: delta, which the gradients need of each window.
#if defined(MMLOCALATTN_QUERY_AND_ATTEND_DELTA_H) == defined(MMLOCALATTN_TOGGLE)
#ifdef MMLOCALATTN_QUERY_AND_ATTEND_DELTA_H
#undef MMLOCALATTN_QUERY_AND_ATTEND_DELTA_H
#else
#define MMLOCALATTN_QUERY_AND_ATTEND_DELTA_H
#endif

#include "cpu/query_and_attend/forward.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

// <grad_output, value> of each tap, for kChannels planes of both; added to those of earlier planes.
template <typename T>
MMLOCALATTN_INLINE void multiply_values(const Windows<T>& windows, const Compute<T>* values,
                                        const Compute<T>* grad_output, int64_t grad_step,
                                        bool is_first) {
  using C = Compute<T>;
  constexpr int N = kLanes<C>;
  Vec<C, N> grad[kChannels];
#pragma GCC unroll 8
  for (int d = 0; d < kChannels; ++d) grad[d] = load<N>(grad_output + d * grad_step);
  const int64_t taps = windows.piece.taps(), step = windows.input.plane_size();
  for (int64_t j = 0; j < taps; ++j) {
    C* product = windows.weights + j * N;
    const C* tap = values + windows.offsets[j];
    Vec<C, N> sum = is_first ? Vec<C, N>{} : load<N>(product);
#pragma GCC unroll 8
    for (int d = 0; d < kChannels; ++d) sum += grad[d] * load<N>(tap + d * step);
    store(product, sum);
  }
}

// Fills in delta of the windows of a head, as the quotient by the sum of the weights: that is 1 but
// for rounding, which peaked weights would show. `grad_output` is in planes of the windows.
template <bool kExact, typename T>
void delta_head(const Windows<T>& windows, int64_t head, const Compute<T>* grad_output,
                const Compute<T>* logsumexp, Compute<T>* deltas) {
  using C = Compute<T>;
  constexpr int N = kLanes<C>;
  const auto& piece = windows.piece;
  const auto &input = windows.input, &output = windows.output;
  for (int64_t row = 0; row < output.rows; ++row) {
    for (int64_t x = 0; x < output.cols; x += N) {
      const int64_t place = row * piece.rows.stride * input.line + x, at = row * output.line + x;
      for (int64_t d = 0; d < padded_channels(piece); d += kChannels) {
        multiply_values(windows, windows.values + d * input.plane_size() + place,
                        grad_output + d * output.plane_size() + at, output.plane_size(), d == 0);
      }
      for (int64_t q = 0; q < piece.queries; ++q) {
        const auto& scores = windows.scores;
        const auto table = piece.table(q, head);
        const C* from = kExact ? scores.scores + q * scores.score_step + place
                               : scores.power + q * scores.power_step + place;
        const int64_t plane = q * piece.heads * output.plane_size();
        const auto most = load<N>(logsumexp + 2 * plane + at);
        Vec<C, N> delta{}, total{};
        for (int64_t j = 0; j < piece.taps(); ++j) {
          const auto product = load<N>(windows.weights + j * N);
          const auto score = load<N>(from + windows.offsets[j]);
          if constexpr (kExact) {
            const auto weight = exp<N>(score - most + table.bias[j]);
            total += weight;
            delta += weight * product * table.scale[j];
          } else {
            total += score * table.bias_factor[j];
            delta += score * product * table.scale_factor[j];
          }
        }
        store(deltas + plane + at, delta / total);
      }
    }
  }
}

template <typename T>
struct DeltaScratch : ForwardScratch<T> {
  Compute<T>*grad_output, *delta;

  DeltaScratch(const Piece<T>& piece, const Area& input, const Area& output, Compute<T>* memory)
      : ForwardScratch<T>(piece, input, output, memory),
        grad_output(this->arena.take(padded_channels(piece) * output.plane_size())),
        delta(this->arena.take(piece.queries * piece.heads * output.plane_size())) {}
};

template <typename T>
int64_t backward_windows(const Piece<T>& piece, Compute<T>* memory) {
  const Area output = output_area(piece), input = input_area(piece, output);
  const DeltaScratch<T> scratch(piece, input, output, memory);
  if (!memory) return scratch.arena.used;
  int64_t offsets[kMostTaps];
  tap_offsets(piece, input, offsets);
  pack_scores(piece, input, scratch.scores.scores);
  pack_logsumexp(piece, output, /*outside=*/Compute<T>(0), scratch.logsumexp);
  for (int64_t head = 0; head < piece.heads; ++head) {
    pack_area<T>(piece.values, input, head, piece.dim, padded_channels(piece), 0, piece.ordinals,
                 scratch.values);
    pack_area<T>(piece.grad_output, output, head, piece.dim, padded_channels(piece), 0,
                 piece.ordinals, scratch.grad_output);
    Windows<T> windows{piece,          input,          output,         offsets,
                       scratch.scores, scratch.values, scratch.weights};
    windows.scores.scores += head * input.plane_size();
    const Compute<T>* logsumexp = scratch.logsumexp + 2 * head * output.plane_size();
    Compute<T>* delta = scratch.delta + head * output.plane_size();
    if (prepare(piece, input, head, windows.scores)) {
      delta_head<false>(windows, head, scratch.grad_output, logsumexp, delta);
    } else {
      delta_head<true>(windows, head, scratch.grad_output, logsumexp, delta);
    }
  }
  for (int64_t q = 0; q < piece.queries; ++q) {
    unpack_area(piece.delta, output, q, piece.heads, piece.ordinals,
                scratch.delta + q * piece.heads * output.plane_size());
  }
  return scratch.arena.used;
}

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA

#endif
