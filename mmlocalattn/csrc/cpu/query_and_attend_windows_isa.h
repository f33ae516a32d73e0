// What is computed window by window: the output, and delta for the gradients.
#pragma once

#include "query_and_attend_tile_isa.h"

namespace mmlocalattn {
namespace cpu {
namespace MMLOCALATTN_ISA {
namespace {

// The windows of a piece, an even number of rows of them.
template <typename T>
Area output_area(const WindowPiece<T>& piece) {
  return make_area<Compute<T>>(piece.rows.windows(), piece.cols.windows(), piece.y_begin,
                               round_up(piece.y_end - piece.y_begin, 2), piece.x_begin,
                               piece.x_end - piece.x_begin, 1);
}

// What they see.
template <typename T>
Area input_area(const WindowPiece<T>& piece, const Area& output) {
  using C = Compute<T>;
  const auto &rows = piece.rows, &cols = piece.cols;
  return make_area<C>(
      rows.length, cols.length, output.first_row * rows.stride - rows.low(),
      (output.rows - 1) * rows.stride + rows.kernel, output.first_col * cols.stride - cols.low(),
      round_up(output.cols, kLanes<C>) + (cols.kernel - 1) / cols.stride, cols.stride);
}

// Where the taps of a window are in the planes of its input, from its own place there.
template <typename T>
void tap_offsets(const WindowPiece<T>& piece, const Area& input, int64_t* offsets) {
  for (int64_t j = 0; j < piece.taps(); ++j) {
    const int64_t row = j / piece.cols.kernel, col = j % piece.cols.kernel;
    offsets[j] = row * input.line + col % input.step * input.class_size() + col / input.step;
  }
}

// What the windows of one head are computed from.
template <typename T>
struct Windows {
  using C = Compute<T>;

  const WindowPiece<T>& piece;
  const Area &input, &output;
  const int64_t* offsets;
  Scores<C> scores;
  const C* values;
  C* weights;  // (2, taps, N) of a vector of windows and the one below it
};

// Stores the log-sum-exp of a query's windows, whose total is 2^most times `total`.
template <typename C, int N>
MMLOCALATTN_INLINE void store_logsumexp(C* to, Vec<C, N> most, Vec<C, N> total, C most_score,
                                        C most_bias) {
  store(to, (most + log2<N>(total) + most_bias) * C(0.69314718055994530942) + most_score);
}

// The weights sum_q scale_q p_q of a vector of windows that begin at `place` of the input, and
// their log-sum-exps, `step` apart. From the largest logit of each window.
template <typename T>
void find_exact_weights(const Windows<T>& windows, int64_t head, int64_t place, Compute<T>* weights,
                        Compute<T>* logsumexp, int64_t step) {
  using C = Compute<T>;
  constexpr int N = kLanes<C>;
  const int64_t taps = windows.piece.taps(), *offsets = windows.offsets;
  for (int64_t q = 0; q < windows.piece.queries; ++q) {
    const auto table = windows.piece.table(q, head);
    const C* t = windows.scores.t + q * windows.scores.t_step + place;
    Vec<C, N> most = load<N>(t + offsets[0]) + table.bias[0], total{};
    for (int64_t j = 1; j < taps; ++j) most = max(load<N>(t + offsets[j]) + table.bias[j], most);
    for (int64_t j = 0; j < taps; ++j) {
      total += exp2<N>(load<N>(t + offsets[j]) + table.bias[j] - most);
    }
    const Vec<C, N> inverse = C(1) / total;
    store_logsumexp<C, N>(logsumexp + q * step, most, total, windows.scores.most[q],
                          table.most_bias);
    for (int64_t j = 0; j < taps; ++j) {
      const auto scaled =
          exp2<N>(load<N>(t + offsets[j]) + table.bias[j] - most) * inverse * table.scale[j];
      store(weights + j * N, q == 0 ? scaled : load<N>(weights + j * N) + scaled);
    }
  }
}

// Calls body(row, is_first, is_second) for the rows of taps of two windows, one below the other:
// rows of the input from where the first begins. The flags, types, say which of them see the row.
template <typename Body>
MMLOCALATTN_INLINE void for_tap_rows(int64_t kernel, int64_t stride, const Body& body) {
  for (int64_t row = 0; row < kernel + stride; ++row) {
    if (row >= stride && row < kernel) {
      body(row, std::true_type(), std::true_type());
    } else if (row < kernel) {
      body(row, std::true_type(), std::false_type());
    } else if (row >= stride) {
      body(row, std::false_type(), std::true_type());
    }
  }
}

// The same from shared powers, for two rows of windows: what they load serves both. The
// log-sum-exps of the second row are `line` further.
template <typename T>
void find_shared_weights(const Windows<T>& windows, int64_t head, int64_t place,
                         Compute<T>* logsumexp, int64_t step, int64_t line) {
  using C = Compute<T>;
  constexpr int N = kLanes<C>;
  using V = Vec<C, N>;
  const auto& piece = windows.piece;
  const int64_t cols = piece.cols.kernel, *offsets = windows.offsets;
  for (int64_t q = 0; q < piece.queries; ++q) {
    const auto table = piece.table(q, head);
    const C* power = windows.scores.power + q * windows.scores.power_step + place;
    const int64_t second = -piece.rows.stride * cols;  // from the taps of the first to the second
    V total[2] = {}, odd_total[2] = {};  // two sums, so that none waits for the one before
    for_tap_rows(piece.rows.kernel, piece.rows.stride, [&](int64_t row, auto sees0, auto sees1) {
      const C *from = power + row * windows.input.line, *factor = table.bias_factor + row * cols;
      for (int64_t col = 0; col < cols; col += 2) {
        auto value = load<N>(from + offsets[col]);
        pin(value);
        if (sees0.value) total[0] += value * factor[col];
        if (sees1.value) total[1] += value * factor[second + col];
        if (col + 1 == cols) break;
        auto odd_value = load<N>(from + offsets[col + 1]);
        pin(odd_value);
        if (sees0.value) odd_total[0] += odd_value * factor[col + 1];
        if (sees1.value) odd_total[1] += odd_value * factor[second + col + 1];
      }
    });
    V inverse[2];
    for (int i = 0; i < 2; ++i) {
      total[i] += odd_total[i];
      inverse[i] = C(1) / total[i];
      store_logsumexp<C, N>(logsumexp + q * step + i * line, V{}, total[i], windows.scores.most[q],
                            table.most_bias);
    }
    C* weights[2] = {windows.weights, windows.weights + piece.taps() * N + second * N};
    for_tap_rows(piece.rows.kernel, piece.rows.stride, [&](int64_t row, auto sees0, auto sees1) {
      const C *from = power + row * windows.input.line, *factor = table.scale_factor + row * cols;
      for (int64_t col = 0; col < cols; ++col) {
        auto value = load<N>(from + offsets[col]);
        pin(value);
        const int64_t to = (row * cols + col) * N;
        if (sees0.value) {
          const auto weight = value * inverse[0] * factor[col];
          store(weights[0] + to, q == 0 ? weight : load<N>(weights[0] + to) + weight);
        }
        if (sees1.value) {
          const auto weight = value * inverse[1] * factor[second + col];
          store(weights[1] + to, q == 0 ? weight : load<N>(weights[1] + to) + weight);
        }
      }
    });
  }
}

// The weighted sums of kChannels planes from `values` on, for two rows of windows.
template <typename T>
MMLOCALATTN_INLINE void sum_values(const Windows<T>& windows, const Compute<T>* values,
                                   Compute<T>* out, int64_t out_step, int64_t second_out) {
  using C = Compute<T>;
  constexpr int N = kLanes<C>;
  Vec<C, N> sum[2][kChannels] = {};
  const auto& piece = windows.piece;
  const int64_t cols = piece.cols.kernel, step = windows.input.plane_size();
  const int64_t second = (piece.taps() - piece.rows.stride * cols) * N;
  for_tap_rows(piece.rows.kernel, piece.rows.stride, [&](int64_t row, auto sees0, auto sees1) {
    const C *from = values + row * windows.input.line, *weights = windows.weights + row * cols * N;
    for (int64_t col = 0; col < cols; ++col, weights += N) {
      const C* tap = from + windows.offsets[col];
      Vec<C, N> weight[2];
      if (sees0.value) weight[0] = load<N>(weights);
      if (sees1.value) weight[1] = load<N>(weights + second);
#pragma GCC unroll 8
      for (int d = 0; d < kChannels; ++d) {
        auto value = load<N>(tap + d * step);
        pin(value);
        if (sees0.value) sum[0][d] += weight[0] * value;
        if (sees1.value) sum[1][d] += weight[1] * value;
      }
    }
  });
#pragma GCC unroll 8
  for (int d = 0; d < kChannels; ++d) {
    store(out + d * out_step, sum[0][d]);
    store(out + d * out_step + second_out, sum[1][d]);
  }
}

template <bool kExact, typename T>
void forward_head(const Windows<T>& windows, int64_t head, Compute<T>* lines,
                  Compute<T>* logsumexp) {
  constexpr int N = kLanes<Compute<T>>;
  const auto& piece = windows.piece;
  const auto &input = windows.input, &output = windows.output;
  const int64_t channels = padded_channels(piece), stride = piece.rows.stride,
                step = piece.heads * output.plane_size();
  for (int64_t row = 0; row < output.rows; row += 2) {
    for (int64_t x = 0; x < output.cols; x += N) {
      const int64_t place = row * stride * input.line + x;
      Compute<T>* lse = logsumexp + row * output.line + x;
      if constexpr (kExact) {
        find_exact_weights(windows, head, place, windows.weights, lse, step);
        find_exact_weights(windows, head, place + stride * input.line,
                           windows.weights + piece.taps() * N, lse + output.line, step);
      } else {
        find_shared_weights(windows, head, place, lse, step, output.line);
      }
      for (int64_t d = 0; d < channels; d += kChannels) {
        sum_values(windows, windows.values + d * input.plane_size() + place,
                   lines + d * output.line + x, output.line, channels * output.line);
      }
    }
    for (int64_t i = 0; i < 2; ++i) {
      unpack_row(piece.output, output, row + i, 0, head, piece.dim, piece.ordinals,
                 lines + i * channels * output.line, output.line);
    }
  }
}

template <typename T>
struct ForwardScratch {
  using C = Compute<T>;

  Scores<C> scores;
  C *values, *weights, *lines, *logsumexp;
  Arena<C> arena;

  ForwardScratch(const WindowPiece<T>& piece, const Area& input, const Area& output, C* memory)
      : arena{memory} {
    scores = take_scores(piece, input, arena);
    values = arena.take(padded_channels(piece) * input.plane_size());
    weights = arena.take(2 * piece.taps() * kLanes<C>);
    lines = arena.take(2 * padded_channels(piece) * output.line);
    logsumexp = arena.take(piece.queries * piece.heads * output.plane_size());
  }
};

template <typename T>
void forward(const WindowPiece<T>& piece, Compute<T>* memory) {
  const Area output = output_area(piece), input = input_area(piece, output);
  const ForwardScratch<T> scratch(piece, input, output, memory);
  int64_t offsets[kMostTaps];
  tap_offsets(piece, input, offsets);
  pack_scores(piece, input, scratch.scores.t);
  for (int64_t head = 0; head < piece.heads; ++head) {
    pack_area<T>(piece.values, input, head, piece.dim, padded_channels(piece), 0, piece.ordinals,
                 scratch.values);
    Windows<T> windows{piece,          input,          output,         offsets,
                       scratch.scores, scratch.values, scratch.weights};
    windows.scores.t += head * input.plane_size();
    Compute<T>* logsumexp = scratch.logsumexp + head * output.plane_size();
    if (prepare(piece, input, head, windows.scores)) {
      forward_head<false>(windows, head, scratch.lines, logsumexp);
    } else {
      forward_head<true>(windows, head, scratch.lines, logsumexp);
    }
  }
  for (int64_t q = 0; q < piece.queries; ++q) {
    unpack_area(piece.logsumexp, output, q, piece.heads, piece.ordinals,
                scratch.logsumexp + q * piece.heads * output.plane_size());
  }
}

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

// Replaces the log-sum-exps by delta. `grad_output` is in planes of the windows.
template <bool kExact, typename T>
void delta_head(const Windows<T>& windows, int64_t head, const Compute<T>* grad_output,
                Compute<T>* logsumexp) {
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
        const C *t = scores.t + q * scores.t_step + place,
                *power = scores.power + q * scores.power_step + place;
        C* to = logsumexp + q * piece.heads * output.plane_size() + at;
        const auto exponent = log2_inverse<C, N>(load<N>(to), scores.most[q], table.most_bias);
        Vec<C, N> delta{};
        for (int64_t j = 0; j < piece.taps(); ++j) {
          const auto product = load<N>(windows.weights + j * N);
          const int64_t tap = windows.offsets[j];
          if constexpr (kExact) {
            delta +=
                exp2<N>(load<N>(t + tap) + table.bias[j] + exponent) * product * table.scale[j];
          } else {
            delta += load<N>(power + tap) * product * table.scale_factor[j];
          }
        }
        store(to, kExact ? delta : delta * exp2<N>(exponent));
      }
    }
  }
}

template <typename T>
struct DeltaScratch : ForwardScratch<T> {
  Compute<T>* grad_output;

  DeltaScratch(const WindowPiece<T>& piece, const Area& input, const Area& output,
               Compute<T>* memory)
      : ForwardScratch<T>(piece, input, output, memory),
        grad_output(this->arena.take(padded_channels(piece) * output.plane_size())) {}
};

template <typename T>
void backward_windows(const WindowPiece<T>& piece, Compute<T>* memory) {
  const Area output = output_area(piece), input = input_area(piece, output);
  const DeltaScratch<T> scratch(piece, input, output, memory);
  int64_t offsets[kMostTaps];
  tap_offsets(piece, input, offsets);
  pack_scores(piece, input, scratch.scores.t);
  const auto& logsumexp = piece.logsumexp;
  for (int64_t q = 0; q < piece.queries; ++q) {
    pack_area<Compute<T>>({logsumexp.data, logsumexp.row, logsumexp.column, logsumexp.item}, output,
                          q, piece.heads, piece.heads, 0, piece.ordinals,
                          scratch.logsumexp + q * piece.heads * output.plane_size());
  }
  for (int64_t head = 0; head < piece.heads; ++head) {
    pack_area<T>(piece.values, input, head, piece.dim, padded_channels(piece), 0, piece.ordinals,
                 scratch.values);
    pack_area<T>(piece.grad_output, output, head, piece.dim, padded_channels(piece), 0,
                 piece.ordinals, scratch.grad_output);
    Windows<T> windows{piece,          input,          output,         offsets,
                       scratch.scores, scratch.values, scratch.weights};
    windows.scores.t += head * input.plane_size();
    Compute<T>* delta = scratch.logsumexp + head * output.plane_size();
    if (prepare(piece, input, head, windows.scores)) {
      delta_head<false>(windows, head, scratch.grad_output, delta);
    } else {
      delta_head<true>(windows, head, scratch.grad_output, delta);
    }
  }
  for (int64_t q = 0; q < piece.queries; ++q) {
    unpack_area(piece.delta, output, q, piece.heads, piece.ordinals,
                scratch.logsumexp + q * piece.heads * output.plane_size());
  }
}

}  // namespace
}  // namespace MMLOCALATTN_ISA
}  // namespace cpu
}  // namespace mmlocalattn
