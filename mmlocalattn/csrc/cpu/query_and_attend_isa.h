// The kernels of query_and_attend for one instruction set, see query_and_attend.h.
//
// The lanes of a vector are neighboring windows of a row, or neighboring positions between which a
// window moves by its stride. A tile of the map is packed into planes of one channel each, in which
// both are neighbors: with stride 2 the even and the odd columns lie apart.
//
// With scores t = s - most in base 2, of which `most` is the largest of the tile, and biases
// r - max(r), a weight is 2^t 2^r / sum 2^t 2^r, so that all windows share one exponential of each
// score. In a tile where these powers might underflow the weights are computed as they are
// defined, from the largest logit of each window (kExact).
#pragma once

#include "layout_isa.h"
#include "query_and_attend.h"

namespace mmlocalattn {
namespace cpu {
namespace MMLOCALATTN_ISA {
namespace {

// Channels that a window or position holds in registers at a time.
constexpr int kChannels = MMLOCALATTN_VECTOR_BYTES == 64 ? 8 : 4;

// Scores and biases of a tile may differ by so much together, in base 2: products of two such
// weights and the inverse of their sum are normal numbers.
template <typename C>
constexpr C kMostRange = sizeof(C) == sizeof(float) ? 86 : 800;

template <typename C>
constexpr C kInfinity = static_cast<C>(__builtin_inf());

// A tile of a map of map_rows x map_cols positions, from a first row and column that may be outside
// the map on. Lane `x` of class c is column first_col + x * step + c.
struct Area {
  int64_t map_rows, map_cols, first_row, rows, first_col, cols, step;
  int64_t line;  // from one row of a plane to the next

  MMLOCALATTN_INLINE int64_t class_size() const { return rows * line; }
  MMLOCALATTN_INLINE int64_t plane_size() const { return step * class_size(); }
  // Lanes [begin, end) of a class are on the map.
  MMLOCALATTN_INLINE int64_t begin(int64_t c) const { return lanes_before(-first_col - c); }
  MMLOCALATTN_INLINE int64_t end(int64_t c) const { return lanes_before(map_cols - first_col - c); }
  MMLOCALATTN_INLINE bool has_row(int64_t row) const {
    return first_row + row >= 0 && first_row + row < map_rows;
  }

 private:
  MMLOCALATTN_INLINE int64_t lanes_before(int64_t columns) const {
    return clamp(columns > 0 ? (columns + step - 1) / step : 0, 0, cols);
  }
};

// `lanes` is the last lane used and one; whole vectors are written to planes.
template <typename C>
MMLOCALATTN_INLINE Area make_area(int64_t map_rows, int64_t map_cols, int64_t first_row,
                                  int64_t rows, int64_t first_col, int64_t lanes, int64_t step) {
  constexpr int64_t N = kLanes<C>;
  return {map_rows, map_cols, first_row, rows, first_col, lanes, step, round_up(lanes, N) + N};
}

// One item of a row of a map from the first lane of a class that is on it.
template <typename U>
MMLOCALATTN_INLINE Map<U> map_of_row(const Vectors<U>& map, const Area& area, int64_t row,
                                     int64_t c, int64_t item, const int64_t* ordinals) {
  const int64_t col = area.first_col + c + area.begin(c) * area.step;
  U* data = map.data + (area.first_row + row) * map.row + col * map.column + item * map.item;
  return {{data, 0, map.column * area.step, ordinals}};
}

// Item `item` of a map to `planes` planes, of which those beyond `dim` are 0; `outside` off the
// map.
template <typename T>
void pack_area(const Vectors<const T>& map, const Area& area, int64_t item, int64_t dim,
               int64_t planes, Compute<T> outside, const int64_t* ordinals, Compute<T>* out) {
  constexpr int N = kLanes<Compute<T>>;
  const int64_t step = area.plane_size();
  for (int64_t c = 0; c < area.step; ++c) {
    for (int64_t row = 0; row < area.rows; ++row) {
      Compute<T>* line = out + c * area.class_size() + row * area.line;
      const int64_t begin = area.has_row(row) ? area.begin(c) : area.cols,
                    end = area.has_row(row) ? area.end(c) : area.cols;
      if (begin < end) {
        const auto from = map_of_row(map, area, row, c, item, ordinals);
        for (int64_t x = begin; x < end; x += N) {
          pack<N>(from, 0, x - begin, end - begin - 1, dim, planes, line + x, step);
        }
      }
      for (int64_t d = 0; d < planes; ++d) {
        for (int64_t x = 0; x < begin; ++x) line[d * step + x] = outside;
        for (int64_t x = end; x < area.cols; ++x) line[d * step + x] = outside;
      }
    }
  }
}

// The way back for the lanes of a row and class that are on the map.
template <typename U>
void unpack_row(const Vectors<U>& map, const Area& area, int64_t row, int64_t c, int64_t item,
                int64_t dim, const int64_t* ordinals, const Compute<U>* line, int64_t step) {
  constexpr int N = kLanes<Compute<U>>;
  if (!area.has_row(row) || area.begin(c) >= area.end(c)) return;
  alignas(kVectorBytes) Compute<U> ones[N];
  store(ones, fill<N>(Compute<U>(1)));
  const auto to = map_of_row(map, area, row, c, item, ordinals);
  const int64_t begin = area.begin(c), last = area.end(c) - begin - 1;
  for (int64_t x = 0; x <= last; x += N) {
    unpack<N>(to, 0, x, last, dim, dim, line + begin + x, step, ones);
  }
}

template <typename U>
void unpack_area(const Vectors<U>& map, const Area& area, int64_t item, int64_t dim,
                 const int64_t* ordinals, const Compute<U>* planes) {
  for (int64_t c = 0; c < area.step; ++c) {
    for (int64_t row = 0; row < area.rows; ++row) {
      unpack_row(map, area, row, c, item, dim, ordinals,
                 planes + c * area.class_size() + row * area.line, area.plane_size());
    }
  }
}

// The smallest and the largest value that a plane has on the map, NaN aside.
template <typename C>
void find_range(const Area& area, const C* plane, C& least, C& most) {
  constexpr int N = kLanes<C>;
  using V = Vec<C, N>;
  Index<C, N> lane;
  for (int i = 0; i < N; ++i) lane[i] = i;
  V low = fill<N>(kInfinity<C>), high = -low;
  for (int64_t c = 0; c < area.step; ++c) {
    for (int64_t row = 0; row < area.rows; ++row) {
      if (!area.has_row(row)) continue;
      const C* line = plane + c * area.class_size() + row * area.line;
      const int64_t end = area.end(c);
      for (int64_t x = area.begin(c); x < end; x += N) {
        const V value = load<N>(line + x);
        const auto is_on_map = lane < static_cast<typename Vector<C, N>::integer>(end - x);
        low = (value < low) & is_on_map ? value : low;
        high = (value > high) & is_on_map ? value : high;
      }
    }
  }
  least = low[0], most = high[0];
  for (int i = 1; i < N; ++i) {
    least = low[i] < least ? low[i] : least;
    most = high[i] > most ? high[i] : most;
  }
}

// The scores of one head: t, 2^t, and what was subtracted, of every query.
template <typename C>
struct Scores {
  C *t, *power, *most;
  int64_t t_step, power_step;  // from one query to the next
};

// From scores in the planes of t. Returns whether shared powers would do.
template <typename T>
bool prepare(const WindowPiece<T>& piece, const Area& area, int64_t head,
             const Scores<Compute<T>>& scores) {
  using C = Compute<T>;
  constexpr int N = kLanes<C>;
  bool is_safe = true;
  for (int64_t q = 0; q < piece.queries; ++q) {
    C least, most, *t = scores.t + q * scores.t_step, *power = scores.power + q * scores.power_step;
    find_range(area, t, least, most);
    const C range = (most - least) * C(1.44269504088896340736) + piece.table(q, head).bias_range;
    is_safe = is_safe && range <= kMostRange<C>;
    scores.most[q] = most;
    for (int64_t i = 0; i < area.plane_size(); i += N) {
      const auto shifted = (load<N>(t + i) - most) * C(1.44269504088896340736);
      store(t + i, shifted);
      store(power + i, exp2<N>(shifted));
    }
  }
  return is_safe;
}

// The input of windows [y_begin, y_end) x [x_begin, x_end), and these windows.
template <typename T>
Area input_area(const WindowPiece<T>& piece) {
  using C = Compute<T>;
  const auto &rows = piece.rows, &cols = piece.cols;
  const int64_t lanes = round_up(piece.x_end - piece.x_begin, kLanes<C>);
  return make_area<C>(rows.length, cols.length, piece.y_begin * rows.stride - rows.low(),
                      (piece.y_end - piece.y_begin - 1) * rows.stride + rows.kernel,
                      piece.x_begin * cols.stride - cols.low(),
                      lanes + (cols.kernel - 1) / cols.stride, cols.stride);
}

template <typename T>
Area output_area(const WindowPiece<T>& piece) {
  return make_area<Compute<T>>(piece.rows.windows(), piece.cols.windows(), piece.y_begin,
                               piece.y_end - piece.y_begin, piece.x_begin,
                               piece.x_end - piece.x_begin, 1);
}

// Where the taps of a window are in the planes of its input, from its own place there.
template <typename T>
void tap_offsets(const WindowPiece<T>& piece, const Area& input, int64_t* offsets) {
  for (int64_t j = 0; j < piece.taps(); ++j) {
    const int64_t row = j / piece.cols.kernel, col = j % piece.cols.kernel;
    offsets[j] = row * input.line + col % input.step * input.class_size() + col / input.step;
  }
}

template <typename T>
int64_t padded_channels(const WindowPiece<T>& piece) {
  return round_up(piece.dim, kChannels);
}

template <typename T>
Scores<Compute<T>> take_scores(const WindowPiece<T>& piece, const Area& area,
                               Arena<Compute<T>>& arena) {
  const int64_t plane = area.plane_size();
  return {arena.take(piece.queries * piece.heads * plane), arena.take(piece.queries * plane),
          arena.take(piece.queries), piece.heads * plane, plane};
}

template <typename T>
void pack_scores(const WindowPiece<T>& piece, const Area& area, Compute<T>* planes) {
  for (int64_t q = 0; q < piece.queries; ++q) {
    pack_area<T>(piece.scores, area, q, piece.heads, piece.heads, -kInfinity<Compute<T>>,
                 piece.ordinals, planes + q * piece.heads * area.plane_size());
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
  C* weights;  // (taps, N) of one vector of windows
};

// The weights sum_q scale_q p_q of a vector of windows that begin at `place` of the input, and
// their log-sum-exps, `step` apart.
template <bool kExact, typename T>
void find_weights(const Windows<T>& windows, int64_t head, int64_t place, Compute<T>* logsumexp,
                  int64_t step) {
  using C = Compute<T>;
  constexpr int N = kLanes<C>;
  using V = Vec<C, N>;
  const auto& scores = windows.scores;
  const int64_t taps = windows.piece.taps(), *offsets = windows.offsets;
  for (int64_t q = 0; q < windows.piece.queries; ++q) {
    const auto table = windows.piece.table(q, head);
    const C *t = scores.t + q * scores.t_step + place,
            *power = scores.power + q * scores.power_step + place;
    V most{}, total{};
    if constexpr (kExact) {
      most = load<N>(t + offsets[0]) + table.bias[0];
      for (int64_t j = 1; j < taps; ++j) most = max(load<N>(t + offsets[j]) + table.bias[j], most);
      for (int64_t j = 0; j < taps; ++j) {
        total += exp2<N>(load<N>(t + offsets[j]) + table.bias[j] - most);
      }
    } else {
      for (int64_t j = 0; j < taps; ++j)
        total += load<N>(power + offsets[j]) * table.bias_factor[j];
    }
    const V log2_sum = most + log2<N>(total), inverse = C(1) / total;
    store(logsumexp + q * step,
          (log2_sum + table.most_bias) * C(0.69314718055994530942) + scores.most[q]);
    for (int64_t j = 0; j < taps; ++j) {
      C* weight = windows.weights + j * N;
      V scaled;
      if constexpr (kExact) {
        scaled = exp2<N>(load<N>(t + offsets[j]) + table.bias[j] - most) * inverse * table.scale[j];
      } else {
        scaled = load<N>(power + offsets[j]) * inverse * table.scale_factor[j];
      }
      store(weight, q == 0 ? scaled : load<N>(weight) + scaled);
    }
  }
}

// The weighted sums of kChannels planes from `values` on.
template <typename T>
MMLOCALATTN_INLINE void sum_values(const Windows<T>& windows, const Compute<T>* values,
                                   Compute<T>* out, int64_t out_step) {
  constexpr int N = kLanes<Compute<T>>;
  Vec<Compute<T>, N> sum[kChannels] = {};
  const int64_t taps = windows.piece.taps(), step = windows.input.plane_size();
  for (int64_t j = 0; j < taps; ++j) {
    const auto weight = load<N>(windows.weights + j * N);
    const Compute<T>* tap = values + windows.offsets[j];
#pragma GCC unroll 8
    for (int d = 0; d < kChannels; ++d) sum[d] += weight * load<N>(tap + d * step);
  }
#pragma GCC unroll 8
  for (int d = 0; d < kChannels; ++d) store(out + d * out_step, sum[d]);
}

template <bool kExact, typename T>
void forward_head(const Windows<T>& windows, int64_t head, Compute<T>* line,
                  Compute<T>* logsumexp) {
  constexpr int N = kLanes<Compute<T>>;
  const auto& piece = windows.piece;
  const auto &input = windows.input, &output = windows.output;
  const int64_t channels = padded_channels(piece);
  for (int64_t row = 0; row < output.rows; ++row) {
    for (int64_t x = 0; x < output.cols; x += N) {
      const int64_t place = row * piece.rows.stride * input.line + x;
      find_weights<kExact>(windows, head, place, logsumexp + row * output.line + x,
                           piece.heads * output.plane_size());
      for (int64_t d = 0; d < channels; d += kChannels) {
        sum_values(windows, windows.values + d * input.plane_size() + place,
                   line + d * output.line + x, output.line);
      }
    }
    unpack_row(piece.output, output, row, 0, head, piece.dim, piece.ordinals, line, output.line);
  }
}

template <typename T>
struct ForwardScratch {
  using C = Compute<T>;

  Scores<C> scores;
  C *values, *weights, *line, *logsumexp;
  Arena<C> arena;

  ForwardScratch(const WindowPiece<T>& piece, const Area& input, const Area& output, C* memory)
      : arena{memory} {
    scores = take_scores(piece, input, arena);
    values = arena.take(padded_channels(piece) * input.plane_size());
    weights = arena.take(piece.taps() * kLanes<C>);
    line = arena.take(padded_channels(piece) * output.line);
    logsumexp = arena.take(piece.queries * piece.heads * output.plane_size());
  }
};

template <typename T>
void forward(const WindowPiece<T>& piece, Compute<T>* memory) {
  const Area input = input_area(piece), output = output_area(piece);
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
      forward_head<false>(windows, head, scratch.line, logsumexp);
    } else {
      forward_head<true>(windows, head, scratch.line, logsumexp);
    }
  }
  for (int64_t q = 0; q < piece.queries; ++q) {
    unpack_area(piece.logsumexp, output, q, piece.heads, piece.ordinals,
                scratch.logsumexp + q * piece.heads * output.plane_size());
  }
}

// log2 of what turns 2^t 2^bias into a weight, from log-sum-exp.
template <typename C, int N>
MMLOCALATTN_INLINE Vec<C, N> log2_inverse(Vec<C, N> logsumexp, C most, C most_bias) {
  return (most - logsumexp) * C(1.44269504088896340736) + most_bias;
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
  const Area input = input_area(piece), output = output_area(piece);
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

// The taps with which windows see the positions of one class of rows and columns.
struct InverseTaps {
  int64_t count = 0;
  int64_t offset[kMostTaps];  // of the window in planes
  int64_t tap[kMostTaps];
};

template <typename T>
void find_inverse_taps(const WindowPiece<T>& piece, const Area& windows, int64_t row_class,
                       int64_t col_class, InverseTaps& inverse) {
  const int64_t stride = piece.cols.stride, last = (piece.cols.kernel - 1) / stride;
  for (int64_t row = row_class; row < piece.rows.kernel; row += stride) {
    for (int64_t col = col_class; col < piece.cols.kernel; col += stride) {
      inverse.offset[inverse.count] = last - col / stride - row / stride * windows.line;
      inverse.tap[inverse.count++] = row * piece.cols.kernel + col;
    }
  }
}

// What the gradients of the positions of one head are computed from. A window's `inverse` turns
// 2^t 2^bias into a weight; if kExact it is the logarithm of that.
template <typename T>
struct Positions {
  using C = Compute<T>;

  const WindowPiece<T>& piece;
  const Area &area, &windows;
  Scores<C> scores;
  const C *values, *grad_output, *inverse, *delta;
  int64_t window_step;    // of inverse and delta from one query to the next
  C *weights, *products;  // (taps, N) of one vector of positions
  C* sums;                // (queries, taps, 2, N), see add_grad_scores
};

// Weight of a tap without the factor that its table has for all windows: 2^bias, 1 if kExact.
template <bool kExact, typename C, int N>
MMLOCALATTN_INLINE Vec<C, N> inverse_weight(Vec<C, N> score, const C* inverse, C bias) {
  return kExact ? exp2<N>(score + bias + load<N>(inverse)) : score * load<N>(inverse);
}

// The weights sum_q scale_q p_q with which the windows see a vector of positions.
template <bool kExact, typename T>
void find_inverse_weights(const Positions<T>& positions, const InverseTaps& taps, int64_t head,
                          int64_t place, int64_t window) {
  using C = Compute<T>;
  constexpr int N = kLanes<C>;
  const auto& scores = positions.scores;
  for (int64_t q = 0; q < positions.piece.queries; ++q) {
    const auto table = positions.piece.table(q, head);
    const C* factor = kExact ? table.scale : table.scale_factor;
    const auto score = load<N>(kExact ? scores.t + q * scores.t_step + place
                                      : scores.power + q * scores.power_step + place);
    const C* inverse = positions.inverse + q * positions.window_step + window;
    for (int64_t i = 0; i < taps.count; ++i) {
      C* weight = positions.weights + i * N;
      const int64_t tap = taps.tap[i];
      const auto scaled =
          inverse_weight<kExact, C, N>(score, inverse + taps.offset[i], table.bias[tap]) *
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
      const auto grad = load<N>(from + d * step);
      product += value[d] * grad;
      sum[d] += weight * grad;
    }
    store(positions.products + i * N, product);
  }
#pragma GCC unroll 8
  for (int d = 0; d < kChannels; ++d) store(out + d * out_step, sum[d]);
}

// Replaces t by the gradient of the scores, sum_i p_i (scale <grad_output_i, value> - delta_i).
// Adds the sums of p <grad_output, value> and of p delta of each tap, without its factor.
template <bool kExact, typename T>
void add_grad_scores(const Positions<T>& positions, const InverseTaps& taps, int64_t head,
                     int64_t place, int64_t window) {
  using C = Compute<T>;
  constexpr int N = kLanes<C>;
  const auto& scores = positions.scores;
  for (int64_t q = 0; q < positions.piece.queries; ++q) {
    const auto table = positions.piece.table(q, head);
    C* t = scores.t + q * scores.t_step + place;
    const auto score = load<N>(kExact ? t : scores.power + q * scores.power_step + place);
    const C *inverse = positions.inverse + q * positions.window_step + window,
            *delta = positions.delta + q * positions.window_step + window;
    C* sums = positions.sums + q * positions.piece.taps() * 2 * N;
    Vec<C, N> grad{};
    for (int64_t i = 0; i < taps.count; ++i) {
      const int64_t tap = taps.tap[i], offset = taps.offset[i];
      const auto weight = inverse_weight<kExact, C, N>(score, inverse + offset, table.bias[tap]);
      const auto product = load<N>(positions.products + i * N),
                 window_delta = load<N>(delta + offset);
      const C factor = kExact ? C(1) : table.bias_factor[tap],
              scale = kExact ? table.scale[tap] : table.scale_factor[tap];
      grad += weight * (product * scale - window_delta * factor);
      C* sum = sums + tap * 2 * N;
      store(sum, load<N>(sum) + weight * product);
      store(sum + N, load<N>(sum + N) + weight * window_delta);
    }
    store(t, grad);
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
Area position_area(const WindowPiece<T>& piece) {
  const auto &rows = piece.rows, &cols = piece.cols;
  return make_area<Compute<T>>(rows.length, cols.length, piece.y_begin, piece.y_end - piece.y_begin,
                               piece.x_begin * cols.stride - cols.low(),
                               round_up(piece.x_end - piece.x_begin, kLanes<Compute<T>>),
                               cols.stride);
}

// The windows that see these positions.
template <typename T>
Area window_area(const WindowPiece<T>& piece) {
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

  PositionScratch(const WindowPiece<T>& piece, const Area& area, const Area& windows, C* memory)
      : arena{memory} {
    const int64_t channels = padded_channels(piece), vectors = piece.taps() * kLanes<C>,
                  all_scores = piece.queries * piece.heads * windows.plane_size();
    scores = take_scores(piece, area, arena);
    values = arena.take(channels * area.plane_size());
    grad_output = arena.take(channels * windows.plane_size());
    logsumexp = arena.take(all_scores);
    delta = arena.take(all_scores);
    weights = arena.take(vectors);
    products = arena.take(vectors);
    sums = arena.take(piece.queries * vectors * 2);
    line = arena.take(channels * area.line);
  }
};

template <typename T>
void backward_positions(const WindowPiece<T>& piece, Compute<T>* memory) {
  using C = Compute<T>;
  constexpr int N = kLanes<C>;
  const Area area = position_area(piece), windows = window_area(piece);
  const PositionScratch<T> scratch(piece, area, windows, memory);
  InverseTaps inverse[2][2];
  for (int row = 0; row < piece.rows.stride; ++row) {
    for (int col = 0; col < piece.cols.stride; ++col) {
      find_inverse_taps(piece, windows, row, col, inverse[row][col]);
    }
  }
  pack_scores(piece, area, scratch.scores.t);
  const int64_t window_step = piece.heads * windows.plane_size();
  const auto pack_numbers = [&](const Vectors<C>& map, C outside, C* planes) {
    for (int64_t q = 0; q < piece.queries; ++q) {
      pack_area<C>({map.data, map.row, map.column, map.item}, windows, q, piece.heads, piece.heads,
                   outside, piece.ordinals, planes + q * window_step);
    }
  };
  pack_numbers(piece.logsumexp, kInfinity<C>, scratch.logsumexp);
  pack_numbers(piece.delta, 0, scratch.delta);
  for (int64_t head = 0; head < piece.heads; ++head) {
    const int64_t channels = padded_channels(piece);
    pack_area<T>(piece.values, area, head, piece.dim, channels, 0, piece.ordinals, scratch.values);
    pack_area<T>(piece.grad_output, windows, head, piece.dim, channels, 0, piece.ordinals,
                 scratch.grad_output);
    C *logsumexp = scratch.logsumexp + head * windows.plane_size(),
      *delta = scratch.delta + head * windows.plane_size();
    Positions<T> positions{
        piece,     area,  windows,     scratch.scores,  scratch.values,   scratch.grad_output,
        logsumexp, delta, window_step, scratch.weights, scratch.products, scratch.sums};
    positions.scores.t += head * area.plane_size();
    const bool is_safe = prepare(piece, area, head, positions.scores);
    for (int64_t q = 0; q < piece.queries; ++q) {
      C* inverses = logsumexp + q * window_step;
      const C most = scratch.scores.most[q], most_bias = piece.table(q, head).most_bias;
      for (int64_t i = 0; i < windows.plane_size(); i += N) {
        const auto exponent = log2_inverse<C, N>(load<N>(inverses + i), most, most_bias);
        store(inverses + i, is_safe ? exp2<N>(exponent) : exponent);
      }
    }
    if (is_safe) {
      backward_head<false>(positions, head, inverse, scratch.line);
    } else {
      backward_head<true>(positions, head, inverse, scratch.line);
    }
  }
  for (int64_t q = 0; q < piece.queries; ++q) {
    unpack_area(piece.grad_scores, area, q, piece.heads, piece.ordinals,
                scratch.scores.t + q * scratch.scores.t_step);
  }
}

template <typename T>
int64_t scratch_size(const WindowPiece<T>& piece) {
  const DeltaScratch<T> windows(piece, input_area(piece), output_area(piece), nullptr);
  const PositionScratch<T> positions(piece, position_area(piece), window_area(piece), nullptr);
  return larger(windows.arena.used, positions.arena.used);
}

template <typename T>
WindowKernels<T> make_window_kernels() {
  return {scratch_size<T>, forward<T>, backward_windows<T>, backward_positions<T>};
}

}  // namespace
}  // namespace MMLOCALATTN_ISA
}  // namespace cpu
}  // namespace mmlocalattn
