// What the kernels of query_and_attend share: tiles of maps and scores.
//
// The lanes of a vector are neighboring windows of a row, or neighboring positions between which a
// window moves by its stride. A tile of the map is packed into planes of one channel each, in which
// both are neighbors: with stride 2 the even and the odd columns lie apart.
//
// With `most` the largest score s of the tile, and biases r, a weight is e^(s - most) e^r over the
// sum of these, so that all windows share one exponential of each score. In a tile where these
// powers might underflow the weights are computed as they are defined, from the largest logit of
// each window (kExact).
#if defined(MMLOCALATTN_QUERY_AND_ATTEND_TILE_H) == defined(MMLOCALATTN_TOGGLE)
#ifdef MMLOCALATTN_QUERY_AND_ATTEND_TILE_H
#undef MMLOCALATTN_QUERY_AND_ATTEND_TILE_H
#else
#define MMLOCALATTN_QUERY_AND_ATTEND_TILE_H
#endif

#include "cpu/query_and_attend/piece.h"
#include "cpu/simd/layout.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

using query_and_attend::kMostTaps;
using query_and_attend::Piece;
using query_and_attend::Vectors;

// Channels that a window or position holds in registers at a time.
constexpr int kChannels = MMLOCALATTN_VECTOR_BYTES == 64 ? 8 : 4;

// Scores and biases of a tile may differ by so much together: products of two such weights and the
// inverse of their sum are normal numbers.
template <typename C>
constexpr C kMostRange = sizeof(C) == sizeof(float) ? 44 : 550;

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
        const bool has_next = row + 1 < area.rows && area.has_row(row + 1);
        const auto next = map_of_row(map, area, row + has_next, c, item, ordinals);
        for (int64_t x = begin; x < end; x += N) {
          if (has_next) prefetch(next, 0, x - begin, smaller(end - x, N), dim);
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

// The scores of one head, the largest, and e^(score - largest), of every query.
template <typename C>
struct Scores {
  C *scores, *power, *most;
  int64_t score_step, power_step;  // from one query to the next
};

// Fills in all but the scores. Returns whether shared powers would do.
template <typename T>
bool prepare(const Piece<T>& piece, const Area& area, int64_t head,
             const Scores<Compute<T>>& scores) {
  using C = Compute<T>;
  constexpr int N = kLanes<C>;
  bool is_safe = true;
  for (int64_t q = 0; q < piece.queries; ++q) {
    const C* of_query = scores.scores + q * scores.score_step;
    C least, most, *power = scores.power + q * scores.power_step;
    find_range(area, of_query, least, most);
    is_safe = is_safe && most - least + piece.table(q, head).bias_range <= kMostRange<C>;
    scores.most[q] = most;
    for (int64_t i = 0; i < area.plane_size(); i += N) {
      store(power + i, exp<N>(load<N>(of_query + i) - most));
    }
  }
  return is_safe;
}

template <typename T>
int64_t padded_channels(const Piece<T>& piece) {
  return round_up(piece.dim, kChannels);
}

template <typename T>
Scores<Compute<T>> take_scores(const Piece<T>& piece, const Area& area, Arena<Compute<T>>& arena) {
  const int64_t plane = area.plane_size();
  return {arena.take(piece.queries * piece.heads * plane), arena.take(piece.queries * plane),
          arena.take(piece.queries), piece.heads * plane, plane};
}

// Planes of the log-sum-exps of windows: (queries, heads, 2).
template <typename T>
Compute<T>* take_logsumexp(const Piece<T>& piece, const Area& windows, Arena<Compute<T>>& arena) {
  return arena.take(piece.queries * 2 * piece.heads * windows.plane_size());
}

template <typename T>
void pack_logsumexp(const Piece<T>& piece, const Area& windows, Compute<T> outside,
                    Compute<T>* planes) {
  const auto& map = piece.logsumexp;
  const int64_t count = 2 * piece.heads;
  for (int64_t q = 0; q < piece.queries; ++q) {
    pack_area<Compute<T>>({map.data, map.row, map.column, map.item}, windows, q, count, count,
                          outside, piece.ordinals, planes + q * count * windows.plane_size());
  }
}

template <typename T>
void pack_scores(const Piece<T>& piece, const Area& area, Compute<T>* planes) {
  for (int64_t q = 0; q < piece.queries; ++q) {
    pack_area<T>(piece.scores, area, q, piece.heads, piece.heads, -kInfinity<Compute<T>>,
                 piece.ordinals, planes + q * piece.heads * area.plane_size());
  }
}

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA

#endif
