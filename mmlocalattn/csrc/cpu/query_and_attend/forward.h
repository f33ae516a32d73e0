// query_and_attend, forward: what is computed window by window. The formulas are in tile.h.
#if defined(MMLOCALATTN_QUERY_AND_ATTEND_FORWARD_H) == defined(MMLOCALATTN_TOGGLE)
#ifdef MMLOCALATTN_QUERY_AND_ATTEND_FORWARD_H
#undef MMLOCALATTN_QUERY_AND_ATTEND_FORWARD_H
#else
#define MMLOCALATTN_QUERY_AND_ATTEND_FORWARD_H
#endif

#include "cpu/query_and_attend/tile.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

// Windows below each other that are computed together: what they load serves all of them.
constexpr int kWindowRows = MMLOCALATTN_VECTOR_BYTES == 64 ? 3 : 2;

// The windows of a piece, whole groups of kWindowRows rows.
template <typename T>
Area output_area(const Piece<T>& piece) {
  return make_area<Compute<T>>(piece.rows.windows(), piece.cols.windows(), piece.y_begin,
                               round_up(piece.y_end - piece.y_begin, kWindowRows), piece.x_begin,
                               piece.x_end - piece.x_begin, 1);
}

// What they see.
template <typename T>
Area input_area(const Piece<T>& piece, const Area& output) {
  using C = Compute<T>;
  const auto &rows = piece.rows, &cols = piece.cols;
  return make_area<C>(
      rows.length, cols.length, output.first_row * rows.stride - rows.low(),
      (output.rows - 1) * rows.stride + rows.kernel, output.first_col * cols.stride - cols.low(),
      round_up(output.cols, kLanes<C>) + (cols.kernel - 1) / cols.stride, cols.stride);
}

// Where the taps of a window are in the planes of its input, from its own place there.
template <typename T>
void tap_offsets(const Piece<T>& piece, const Area& input, int64_t* offsets) {
  for (int64_t j = 0; j < piece.taps(); ++j) {
    const int64_t row = j / piece.cols.kernel, col = j % piece.cols.kernel;
    offsets[j] = row * input.line + col % input.step * input.class_size() + col / input.step;
  }
}

// What the windows of one head are computed from.
template <typename T>
struct Windows {
  using C = Compute<T>;

  const Piece<T>& piece;
  const Area &input, &output;
  const int64_t* offsets;
  Scores<C> scores;
  const C* values;
  C* weights;  // of kWindowRows vectors of windows, see ExactWeights and SharedWeights
};

// Stores the two numbers, `plane` apart, of the log-sum-exp of windows whose total is e^most times
// `total`.
template <typename C, int N>
MMLOCALATTN_INLINE void store_logsumexp(C* to, int64_t plane, Vec<C, N> most, Vec<C, N> total) {
  store(to, most);
  store(to + plane, log<N>(total));
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
    const C* scores = windows.scores.scores + q * windows.scores.score_step + place;
    Vec<C, N> most = load<N>(scores + offsets[0]) + table.bias[0], total{};
    for (int64_t j = 1; j < taps; ++j) {
      most = max(load<N>(scores + offsets[j]) + table.bias[j], most);
    }
    for (int64_t j = 0; j < taps; ++j) {
      total += exp<N>(load<N>(scores + offsets[j]) - most + table.bias[j]);
    }
    const Vec<C, N> inverse = C(1) / total;
    store_logsumexp<C, N>(logsumexp + q * step, windows.output.plane_size(), most, total);
    for (int64_t j = 0; j < taps; ++j) {
      const auto scaled =
          exp<N>(load<N>(scores + offsets[j]) - most + table.bias[j]) * inverse * table.scale[j];
      store(weights + j * N, q == 0 ? scaled : load<N>(weights + j * N) + scaled);
    }
  }
}

// Calls body(row, begin, end) for the rows of taps of kWindowRows windows, one below the other:
// rows of the input from where the first begins, which windows [begin, end) see. These are
// constants.
template <typename Body>
MMLOCALATTN_INLINE void for_tap_rows(const StridedAxis& rows, const Body& body) {
  for (int64_t row = 0; row < rows.kernel + (kWindowRows - 1) * rows.stride; ++row) {
    const int64_t begin = row < rows.kernel ? 0 : (row - rows.kernel) / rows.stride + 1,
                  end = smaller(row / rows.stride + 1, kWindowRows);
    if (begin == end) continue;  // between windows that do not touch
    with_constant<kWindowRows>(end, [&](auto end) MMLOCALATTN_LAMBDA {
      with_constant<decltype(end)::value>(begin + 1, [&](auto after) MMLOCALATTN_LAMBDA {
        body(row, std::integral_constant<int, decltype(after)::value - 1>(), end);
      });
    });
  }
}

// Where a tap row's table entries and weights are for the second window, from those of the first.
template <typename T>
MMLOCALATTN_INLINE int64_t next_window(const Piece<T>& piece) {
  return -piece.rows.stride * piece.cols.kernel;
}

// Weights that find_exact_weights() wrote.
template <typename T>
struct ExactWeights {
  using C = Compute<T>;
  static constexpr int N = kLanes<C>;

  const Piece<T>& piece;
  const C* weights;

  template <int kBegin, int kEnd>
  MMLOCALATTN_INLINE void load_tap(int64_t, int64_t tap, Vec<C, N> (&weight)[kWindowRows]) const {
    const int64_t step = piece.taps() + next_window(piece);
    for (int i = kBegin; i < kEnd; ++i) weight[i] = load<N>(weights + (tap + i * step) * N);
  }
  MMLOCALATTN_INLINE Vec<C, N> factor(int) const { return fill<N>(C(1)); }
};

// Weights from shared powers, computed where they are used: that takes less time than to store and
// load them. With total_q = sum_j power e^bias of query q they are
//   sum_q power e^bias scale / total_q = 1 / total_0 sum_q power e^bias scale (total_0 / total_q).
// `numbers` holds 1 / total_0 and the ratios of the other queries, (queries, kWindowRows, line).
template <typename T, typename Queries>
struct SharedWeights {
  using C = Compute<T>;
  static constexpr int N = kLanes<C>;

  const Windows<T>& windows;
  int64_t head, place;
  Queries queries;  // a constant if they are few
  const C* numbers;
  int64_t line;

  template <int kBegin, int kEnd>
  MMLOCALATTN_INLINE void load_tap(int64_t offset, int64_t tap,
                                   Vec<C, N> (&weight)[kWindowRows]) const {
    const int64_t step = next_window(windows.piece);
    const auto add_query = [&](int q, const auto& add) MMLOCALATTN_LAMBDA {
      const C* factor = windows.piece.table(q, head).scale_factor + tap;
      auto power = load<N>(windows.scores.power + q * windows.scores.power_step + place + offset);
      pin(power);
      for (int i = kBegin; i < kEnd; ++i) add(i, power * factor[i * step]);
    };
    add_query(0, [&](int i, auto part) MMLOCALATTN_LAMBDA { weight[i] = part; });
    for (int q = 1; q < queries; ++q) {
      add_query(q, [&](int i, auto part) MMLOCALATTN_LAMBDA {
        weight[i] += part * load<N>(numbers + (q * kWindowRows + i) * line);
      });
    }
  }
  MMLOCALATTN_INLINE Vec<C, N> factor(int i) const { return load<N>(numbers + i * line); }
};

// The numbers of SharedWeights of kVectors vectors of windows, and their log-sum-exps: those of a
// row of windows are `line` behind those of the row above, log-sum-exps of a query `step` behind
// those of the query before.
template <int kVectors, typename T>
void find_totals(const Windows<T>& windows, int64_t head, int64_t place, Compute<T>* numbers,
                 Compute<T>* logsumexp, int64_t step, int64_t line) {
  using C = Compute<T>;
  constexpr int N = kLanes<C>;
  using V = Vec<C, N>;
  const auto& piece = windows.piece;
  const int64_t cols = piece.cols.kernel, next = next_window(piece);
  for (int64_t q = 0; q < piece.queries; ++q) {
    const auto table = piece.table(q, head);
    const C* power = windows.scores.power + q * windows.scores.power_step + place;
    V total[kWindowRows][kVectors] = {};
    for_tap_rows(piece.rows, [&](int64_t row, auto begin, auto end) MMLOCALATTN_LAMBDA {
      for (int64_t col = 0; col < cols; ++col) {
        const C *from = power + row * windows.input.line + windows.offsets[col],
                *factor = table.bias_factor + row * cols + col;
        V value[kVectors];
        for (int v = 0; v < kVectors; ++v) pin(value[v] = load<N>(from + v * N));
        for (int i = begin; i < end; ++i) {
          for (int v = 0; v < kVectors; ++v) total[i][v] += value[v] * factor[i * next];
        }
      }
    });
    for (int i = 0; i < kWindowRows; ++i) {
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = i * line + v * N;
        store_logsumexp<C, N>(logsumexp + q * step + at, windows.output.plane_size(),
                              fill<N>(windows.scores.most[q]), total[i][v]);
        const V inverse = C(1) / total[i][v];
        store(numbers + q * kWindowRows * line + at,
              q == 0 ? inverse : inverse / load<N>(numbers + at));
      }
    }
  }
}

// The weighted sums of kChannels planes from `values` on, of kWindowRows rows of windows that are
// `line` apart in the planes of `out`.
template <typename T, typename Weights>
MMLOCALATTN_INLINE void sum_values(const Windows<T>& windows, const Weights& weights,
                                   const Compute<T>* values, Compute<T>* out, int64_t out_step,
                                   int64_t line) {
  using C = Compute<T>;
  constexpr int N = kLanes<C>;
  Vec<C, N> sum[kWindowRows][kChannels] = {};
  const int64_t cols = windows.piece.cols.kernel, step = windows.input.plane_size();
  for_tap_rows(windows.piece.rows, [&](int64_t row, auto begin, auto end) MMLOCALATTN_LAMBDA {
    for (int64_t col = 0; col < cols; ++col) {
      const int64_t offset = row * windows.input.line + windows.offsets[col];
      Vec<C, N> weight[kWindowRows];
      weights.template load_tap<begin, end>(offset, row * cols + col, weight);
#pragma GCC unroll 8
      for (int d = 0; d < kChannels; ++d) {
        auto value = load<N>(values + offset + d * step);
        pin(value);
        for (int i = begin; i < end; ++i) sum[i][d] += weight[i] * value;
      }
    }
  });
  for (int i = 0; i < kWindowRows; ++i) {
    const auto factor = weights.factor(i);
#pragma GCC unroll 8
    for (int d = 0; d < kChannels; ++d) store(out + d * out_step + i * line, sum[i][d] * factor);
  }
}

template <bool kExact, typename T>
void forward_head(const Windows<T>& windows, int64_t head, Compute<T>* lines,
                  Compute<T>* logsumexp) {
  using C = Compute<T>;
  constexpr int N = kLanes<C>;
  const auto& piece = windows.piece;
  const auto &input = windows.input, &output = windows.output;
  const int64_t channels = padded_channels(piece), stride = piece.rows.stride,
                step = 2 * piece.heads * output.plane_size();
  for (int64_t row = 0; row < output.rows; row += kWindowRows) {
    for (int64_t i = 0; i < kWindowRows && output.has_row(row + i); ++i) {
      prefetch</*kWrite=*/true>(map_of_row(piece.output, output, row + i, 0, head, piece.ordinals),
                                0, 0, output.cols, piece.dim);
    }
    const int64_t row_place = row * stride * input.line;
    C* lse = logsumexp + row * output.line;
    if (!kExact) {
      for (int64_t x = 0; x < output.cols; x += 2 * N) {
        with_constant<2>((output.cols - x + N - 1) / N, [&](auto vectors) MMLOCALATTN_LAMBDA {
          find_totals<vectors>(windows, head, row_place + x, windows.weights + x, lse + x, step,
                               output.line);
        });
      }
    }
    for (int64_t x = 0; x < output.cols; x += N) {
      const int64_t place = row_place + x;
      const auto sum_channels = [&](const auto& weights) MMLOCALATTN_LAMBDA {
        for (int64_t d = 0; d < channels; d += kChannels) {
          sum_values(windows, weights, windows.values + d * input.plane_size() + place,
                     lines + d * output.line + x, output.line, channels * output.line);
        }
      };
      if constexpr (kExact) {
        for (int64_t i = 0; i < kWindowRows; ++i) {
          find_exact_weights(windows, head, place + i * stride * input.line,
                             windows.weights + i * piece.taps() * N, lse + i * output.line + x,
                             step);
        }
        sum_channels(ExactWeights<T>{piece, windows.weights});
      } else {
        const auto sum_queries = [&](auto queries) MMLOCALATTN_LAMBDA {
          sum_channels(SharedWeights<T, decltype(queries)>{windows, head, place, queries,
                                                           windows.weights + x, output.line});
        };
        switch (piece.queries) {
          case 1:
            sum_queries(std::integral_constant<int, 1>());
            break;
          case 2:
            sum_queries(std::integral_constant<int, 2>());
            break;
          default:
            sum_queries(piece.queries);
        }
      }
    }
    for (int64_t i = 0; i < kWindowRows; ++i) {
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

  ForwardScratch(const Piece<T>& piece, const Area& input, const Area& output, C* memory)
      : arena{memory} {
    scores = take_scores(piece, input, arena);
    values = arena.take(padded_channels(piece) * input.plane_size());
    weights =
        arena.take(kWindowRows * larger(piece.taps() * kLanes<C>, piece.queries * output.line));
    lines = arena.take(kWindowRows * padded_channels(piece) * output.line);
    logsumexp = take_logsumexp(piece, output, arena);
  }
};

template <typename T>
int64_t forward(const Piece<T>& piece, Compute<T>* memory) {
  const Area output = output_area(piece), input = input_area(piece, output);
  const ForwardScratch<T> scratch(piece, input, output, memory);
  if (!memory) return scratch.arena.used;
  int64_t offsets[kMostTaps];
  tap_offsets(piece, input, offsets);
  pack_scores(piece, input, scratch.scores.scores);
  for (int64_t head = 0; head < piece.heads; ++head) {
    pack_area<T>(piece.values, input, head, piece.dim, padded_channels(piece), 0, piece.ordinals,
                 scratch.values);
    Windows<T> windows{piece,          input,          output,         offsets,
                       scratch.scores, scratch.values, scratch.weights};
    windows.scores.scores += head * input.plane_size();
    Compute<T>* logsumexp = scratch.logsumexp + 2 * head * output.plane_size();
    if (prepare(piece, input, head, windows.scores)) {
      forward_head<false>(windows, head, scratch.lines, logsumexp);
    } else {
      forward_head<true>(windows, head, scratch.lines, logsumexp);
    }
  }
  for (int64_t q = 0; q < piece.queries; ++q) {
    unpack_area(piece.logsumexp, output, q, 2 * piece.heads, piece.ordinals,
                scratch.logsumexp + q * 2 * piece.heads * output.plane_size());
  }
  return scratch.arena.used;
}

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA

#endif
