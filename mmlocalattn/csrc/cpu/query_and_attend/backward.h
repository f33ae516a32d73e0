// query_and_attend, backward: the gradients, which are computed position by position from the
// windows that see each.
#if defined(MMLOCALATTN_QUERY_AND_ATTEND_BACKWARD_H) == defined(MMLOCALATTN_TOGGLE)
#ifdef MMLOCALATTN_QUERY_AND_ATTEND_BACKWARD_H
#undef MMLOCALATTN_QUERY_AND_ATTEND_BACKWARD_H
#else
#define MMLOCALATTN_QUERY_AND_ATTEND_BACKWARD_H
#endif

#include "cpu/query_and_attend/tile.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

// The taps with which windows see the positions of one class of rows and columns.
struct InverseTaps {
  int64_t count = 0;
  int64_t offset[kMostTaps];  // of the window in planes
  int64_t tap[kMostTaps];
};

template <typename T>
void find_inverse_taps(const Piece<T>& piece, const Area& windows, int64_t row_class,
                       int64_t col_class, InverseTaps& inverse) {
  const int64_t stride = piece.cols.stride, last = (piece.cols.kernel - 1) / stride;
  for (int64_t row = row_class; row < piece.rows.kernel; row += stride) {
    for (int64_t col = col_class; col < piece.cols.kernel; col += stride) {
      inverse.offset[inverse.count] = last - col / stride - row / stride * windows.line;
      inverse.tap[inverse.count++] = row * piece.cols.kernel + col;
    }
  }
}

// What the gradients of the positions of one head are computed from. Of a window and query there is
// a log-sum-exp, two planes, of which the first is replaced unless kExact by the `inverse` that
// turns power e^bias into a weight.
template <typename T>
struct Positions {
  using C = Compute<T>;

  const Piece<T>& piece;
  const Area &area, &windows;
  Scores<C> scores;
  const C *values, *grad_output, *logsumexp, *delta;
  int64_t window_step;    // of delta from one query to the next; twice that of the log-sum-exp
  C *weights, *products;  // (taps, N) of one vector of positions
  C* sums;                // (queries, taps, 2, N), see add_grad_scores
};

// Weight of a tap without the factor that its table has for all windows: e^bias, 1 if kExact. From
// a score, or its power, and the log-sum-exp of the window, whose planes are `plane` apart.
template <bool kExact, typename C, int N>
MMLOCALATTN_INLINE Vec<C, N> inverse_weight(Vec<C, N> score, const C* logsumexp, int64_t plane,
                                            C bias) {
  const auto first = load<N>(logsumexp);
  return kExact ? exp<N>(score - first + bias - load<N>(logsumexp + plane)) : score * first;
}

// The weights sum_q scale_q p_q with which the windows see a vector of positions.
template <bool kExact, typename T>
void find_inverse_weights(const Positions<T>& positions, const InverseTaps& taps, int64_t head,
                          int64_t place, int64_t window) {
  using C = Compute<T>;
  constexpr int N = kLanes<C>;
  const auto& scores = positions.scores;
  const int64_t plane = positions.windows.plane_size();
  for (int64_t q = 0; q < positions.piece.queries; ++q) {
    const auto table = positions.piece.table(q, head);
    const C* factor = kExact ? table.scale : table.scale_factor;
    const auto score = load<N>(kExact ? scores.scores + q * scores.score_step + place
                                      : scores.power + q * scores.power_step + place);
    const C* logsumexp = positions.logsumexp + 2 * q * positions.window_step + window;
    for (int64_t i = 0; i < taps.count; ++i) {
      C* weight = positions.weights + i * N;
      const int64_t tap = taps.tap[i];
      const auto scaled =
          inverse_weight<kExact, C, N>(score, logsumexp + taps.offset[i], plane, table.bias[tap]) *
          factor[tap];
      store(weight, q == 0 ? scaled : load<N>(weight) + scaled);
    }
  }
}

// The gradients of kChannels planes of values, and their part of <grad_output, value> of each tap.
template <typename T>
MMLOCALATTN_INLINE void sum_gradients(const Positions<T>& positions, const InverseTaps& taps,
                                      const Compute<T>* values, const Compute<T>* grad_output,
                                      bool is_first, Compute<T>* out, int64_t out_step) {
  using C = Compute<T>;
  constexpr int N = kLanes<C>;
  Vec<C, N> value[kChannels], sum[kChannels] = {};
  const int64_t value_step = positions.area.plane_size(), step = positions.windows.plane_size();
#pragma GCC unroll 8
  for (int d = 0; d < kChannels; ++d) value[d] = load<N>(values + d * value_step);
  for (int64_t i = 0; i < taps.count; ++i) {
    const auto weight = load<N>(positions.weights + i * N);
    const C* from = grad_output + taps.offset[i];
    auto product = is_first ? Vec<C, N>{} : load<N>(positions.products + i * N);
#pragma GCC unroll 8
    for (int d = 0; d < kChannels; ++d) {
      auto grad = load<N>(from + d * step);
      pin(grad);
      product += value[d] * grad;
      sum[d] += weight * grad;
    }
    store(positions.products + i * N, product);
  }
#pragma GCC unroll 8
  for (int d = 0; d < kChannels; ++d) store(out + d * out_step, sum[d]);
}

// Replaces the scores by their gradient, sum_i p_i (scale <grad_output_i, value> - delta_i).
// Adds the sums of p <grad_output, value> and of p delta of each tap, without its factor.
template <bool kExact, typename T>
void add_grad_scores(const Positions<T>& positions, const InverseTaps& taps, int64_t head,
                     int64_t place, int64_t window) {
  using C = Compute<T>;
  constexpr int N = kLanes<C>;
  const auto& scores = positions.scores;
  const int64_t plane = positions.windows.plane_size();
  for (int64_t q = 0; q < positions.piece.queries; ++q) {
    const auto table = positions.piece.table(q, head);
    C* of_query = scores.scores + q * scores.score_step + place;
    const auto score = load<N>(kExact ? of_query : scores.power + q * scores.power_step + place);
    const C *logsumexp = positions.logsumexp + 2 * q * positions.window_step + window,
            *delta = positions.delta + q * positions.window_step + window;
    C* sums = positions.sums + q * positions.piece.taps() * 2 * N;
    Vec<C, N> grad{};
    for (int64_t i = 0; i < taps.count; ++i) {
      const int64_t tap = taps.tap[i], offset = taps.offset[i];
      const auto weight =
          inverse_weight<kExact, C, N>(score, logsumexp + offset, plane, table.bias[tap]);
      const auto product = load<N>(positions.products + i * N),
                 window_delta = load<N>(delta + offset);
      const C factor = kExact ? C(1) : table.bias_factor[tap],
              scale = kExact ? table.scale[tap] : table.scale_factor[tap];
      grad += weight * (product * scale - window_delta * factor);
      C* sum = sums + tap * 2 * N;
      store(sum, load<N>(sum) + weight * product);
      store(sum + N, load<N>(sum + N) + weight * window_delta);
    }
    store(of_query, grad);
  }
}

// The piece's part of the gradients of the tables of a head.
template <bool kExact, typename T>
void write_grad_tables(const Positions<T>& positions, int64_t head) {
  using C = Compute<T>;
  constexpr int N = kLanes<C>;
  const auto& piece = positions.piece;
  for (int64_t q = 0; q < piece.queries; ++q) {
    const auto table = piece.table(q, head);
    const int64_t to = (q * piece.all_heads + head) * piece.taps();
    for (int64_t j = 0; j < piece.taps(); ++j) {
      const C* sum = positions.sums + (q * piece.taps() + j) * 2 * N;
      const C factor = kExact ? C(1) : table.bias_factor[j];
      const C product = sum_lanes<C, N>(load<N>(sum)) * factor;
      piece.grad_scale[to + j] = product;
      piece.grad_bias[to + j] =
          product * table.scale[j] - sum_lanes<C, N>(load<N>(sum + N)) * factor;
    }
  }
}

template <bool kExact, typename T>
void backward_head(const Positions<T>& positions, int64_t head, const InverseTaps (&inverse)[2][2],
                   Compute<T>* line) {
  using C = Compute<T>;
  constexpr int N = kLanes<C>;
  const auto& piece = positions.piece;
  const auto &area = positions.area, &windows = positions.windows;
  const int64_t stride = piece.rows.stride, channels = padded_channels(piece);
  for (int64_t i = 0; i < piece.queries * piece.taps() * 2 * N; i += N) {
    store(positions.sums + i, Vec<C, N>{});
  }
  for (int64_t row = 0; row < area.rows; ++row) {
    const int64_t y = area.first_row + row + piece.rows.low();
    for (int64_t c = 0; c < area.step; ++c) {
      const auto& taps = inverse[y % stride][c];
      for (int64_t x = 0; x < area.cols; x += N) {
        const int64_t place = c * area.class_size() + row * area.line + x,
                      window = (y / stride - windows.first_row) * windows.line + x;
        find_inverse_weights<kExact>(positions, taps, head, place, window);
        for (int64_t d = 0; d < channels; d += kChannels) {
          sum_gradients(positions, taps, positions.values + d * area.plane_size() + place,
                        positions.grad_output + d * windows.plane_size() + window, d == 0,
                        line + d * area.line + x, area.line);
        }
        add_grad_scores<kExact>(positions, taps, head, place, window);
      }
      unpack_row(piece.grad_values, area, row, c, head, piece.dim, piece.ordinals, line, area.line);
    }
  }
  write_grad_tables<kExact>(positions, head);
}

template <typename T>
Area position_area(const Piece<T>& piece) {
  const auto &rows = piece.rows, &cols = piece.cols;
  return make_area<Compute<T>>(rows.length, cols.length, piece.y_begin, piece.y_end - piece.y_begin,
                               piece.x_begin * cols.stride - cols.low(),
                               round_up(piece.x_end - piece.x_begin, kLanes<Compute<T>>),
                               cols.stride);
}

// The windows that see these positions.
template <typename T>
Area window_area(const Piece<T>& piece) {
  using C = Compute<T>;
  const auto &rows = piece.rows, &cols = piece.cols;
  const int64_t before = (cols.kernel - 1) / cols.stride,
                last = (piece.y_end - 1 + rows.low()) / rows.stride,
                first =
                    (piece.y_begin + rows.low()) / rows.stride - (rows.kernel - 1) / rows.stride;
  return make_area<C>(rows.windows(), cols.windows(), first, last - first + 1,
                      piece.x_begin - before,
                      round_up(piece.x_end - piece.x_begin, kLanes<C>) + before, 1);
}

template <typename T>
struct PositionScratch {
  using C = Compute<T>;

  Scores<C> scores;
  C *values, *grad_output, *logsumexp, *delta, *weights, *products, *sums, *line;
  Arena<C> arena;

  PositionScratch(const Piece<T>& piece, const Area& area, const Area& windows, C* memory)
      : arena{memory} {
    const int64_t channels = padded_channels(piece), vectors = piece.taps() * kLanes<C>,
                  all_scores = piece.queries * piece.heads * windows.plane_size();
    scores = take_scores(piece, area, arena);
    values = arena.take(channels * area.plane_size());
    grad_output = arena.take(channels * windows.plane_size());
    logsumexp = take_logsumexp(piece, windows, arena);
    delta = arena.take(all_scores);
    weights = arena.take(vectors);
    products = arena.take(vectors);
    sums = arena.take(piece.queries * vectors * 2);
    line = arena.take(channels * area.line);
  }
};

template <typename T>
int64_t backward_positions(const Piece<T>& piece, Compute<T>* memory) {
  using C = Compute<T>;
  constexpr int N = kLanes<C>;
  const Area area = position_area(piece), windows = window_area(piece);
  const PositionScratch<T> scratch(piece, area, windows, memory);
  if (!memory) return scratch.arena.used;
  InverseTaps inverse[2][2];
  for (int row = 0; row < piece.rows.stride; ++row) {
    for (int col = 0; col < piece.cols.stride; ++col) {
      find_inverse_taps(piece, windows, row, col, inverse[row][col]);
    }
  }
  pack_scores(piece, area, scratch.scores.scores);
  pack_logsumexp(piece, windows, /*outside=*/kInfinity<C>, scratch.logsumexp);
  const int64_t plane = windows.plane_size(), window_step = piece.heads * plane;
  for (int64_t q = 0; q < piece.queries; ++q) {
    const auto& map = piece.delta;
    pack_area<C>({map.data, map.row, map.column, map.item}, windows, q, piece.heads, piece.heads, 0,
                 piece.ordinals, scratch.delta + q * window_step);
  }
  for (int64_t head = 0; head < piece.heads; ++head) {
    const int64_t channels = padded_channels(piece);
    pack_area<T>(piece.values, area, head, piece.dim, channels, 0, piece.ordinals, scratch.values);
    pack_area<T>(piece.grad_output, windows, head, piece.dim, channels, 0, piece.ordinals,
                 scratch.grad_output);
    C *logsumexp = scratch.logsumexp + 2 * head * plane, *delta = scratch.delta + head * plane;
    Positions<T> positions{
        piece,     area,  windows,     scratch.scores,  scratch.values,   scratch.grad_output,
        logsumexp, delta, window_step, scratch.weights, scratch.products, scratch.sums};
    positions.scores.scores += head * area.plane_size();
    if (prepare(piece, area, head, positions.scores)) {
      for (int64_t q = 0; q < piece.queries; ++q) {
        C* inverses = logsumexp + 2 * q * window_step;
        for (int64_t i = 0; i < plane; i += N) {
          const auto above = scratch.scores.most[q] - load<N>(inverses + i);
          store(inverses + i, exp<N>(above - load<N>(inverses + plane + i)));
        }
      }
      backward_head<false>(positions, head, inverse, scratch.line);
    } else {
      backward_head<true>(positions, head, inverse, scratch.line);
    }
  }
  for (int64_t q = 0; q < piece.queries; ++q) {
    unpack_area(piece.grad_scores, area, q, piece.heads, piece.ordinals,
                scratch.scores.scores + q * scratch.scores.score_step);
  }
  return scratch.arena.used;
}

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA

#endif
