// What the kernels of stand-alone self-attention share: rows of maps in planes, and the products of
// a tile of queries with all that their windows see. The formulas are in forward.h.
#if defined(MMLOCALATTN_STAND_ALONE_TILE_H) == defined(MMLOCALATTN_TOGGLE)
#ifdef MMLOCALATTN_STAND_ALONE_TILE_H
#undef MMLOCALATTN_STAND_ALONE_TILE_H
#else
#define MMLOCALATTN_STAND_ALONE_TILE_H
#endif

#include "cpu/simd/taps.h"
#include "cpu/stand_alone/piece.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

using stand_alone::Piece;

// Rows of maps as planes: channel d of column x in row y is at(y, d)[x]. A row takes the place of
// the one `rows` above it.
template <typename T>
struct Ring {
  T* data;
  int64_t rows, channels, left, plane;

  // Values left of column 0, and room for columns up to `end`.
  Ring(int64_t rows, int64_t channels, int64_t left, int64_t end, Arena<T>& arena)
      : rows(rows), channels(channels), left(left) {
    // An odd number of cache lines spreads the planes over the sets of a cache.
    constexpr int64_t kLine = kVectorBytes / static_cast<int64_t>(sizeof(T));
    plane = ((left + end + kLine - 1) / kLine | 1) * kLine;
    data = arena.take(rows * row());
  }
  MMLOCALATTN_INLINE int64_t row() const { return channels * plane; }
  MMLOCALATTN_INLINE T* at(int64_t y, int64_t d) const {
    return data + (y + rows) % rows * row() + d * plane + left;  // y >= -rows
  }
};

// What both kernels need of a piece, for vectors of N positions.
template <typename In, int N, typename T = Compute<In>>
struct Geometry {
  int64_t up, left;    // taps before the own one
  int64_t rows, cols;  // of a window
  int64_t columns;     // of a map with its last vector whole
  int64_t pad;         // zeros on both sides of a map
  int64_t planes;      // of all heads, with zeros for the last kChannels of a head
  int64_t begin, end;  // rows that a window may see: those on the map, or all

  explicit Geometry(const Piece<In>& piece)
      : up(piece.kernel_rows / 2),
        left(piece.kernel_cols / 2),
        rows(piece.kernel_rows),
        cols(piece.kernel_cols),
        columns(round_up(piece.width, N)),
        pad(larger(N, round_up(cols - 1, N))),
        planes(round_up(piece.channels(), kChannels)),
        begin(piece.zero_padding ? -up : 0),
        end(piece.height + (piece.zero_padding ? up : 0)) {}

  // Room for the rows of keys that a band sees.
  Ring<T> make_ring(Arena<T>& arena) const {
    return {smaller(rows - 1 + kRows, end - begin), planes, pad, columns + pad, arena};
  }
  Ring<T> make_band(int64_t channels, Arena<T>& arena) const {
    return {kRows, channels, pad, columns + pad, arena};
  }
};

// Packs row y of a map to planes, 0 where there is none, as row `row` of a ring.
template <int N, typename In, typename T = Compute<In>>
void fill_row(const Piece<In>& piece, const Map<const In>& map, int64_t y, const Ring<T>& ring,
              int64_t row) {
  const int64_t width = piece.width, dim = piece.channels(), columns = round_up(width, N);
  const bool is_inside = y >= 0 && y < piece.height;
  T* out = ring.at(row, 0);
  for (int64_t x = 0; is_inside && x < width; x += N) {
    pack<N>(map, y, x, width - 1, dim, ring.channels, out + x, ring.plane);
  }
  for (int64_t d = 0; d < ring.channels; ++d, out += ring.plane) {
    for (int64_t x = is_inside ? width : 0; x < columns; ++x) out[x] = 0;
  }
}

// Brings columns [x, x + N) of `count` rows of a map to the caches, if there are any.
template <int N, bool kWrite = false, typename In, typename M>
MMLOCALATTN_INLINE void prefetch_rows(const Piece<In>& piece, const Map<M>& map, int64_t y,
                                      int64_t count, int64_t x) {
  for (int64_t end = smaller(y + count, piece.height); y < end; ++y) {
    prefetch<kWrite>(map, y, x, smaller(N, piece.width - x), piece.channels());
  }
}

// Writes planes to row y of a map.
template <int N, typename Out, typename T = Compute<Out>>
void write_row(const Map<Out>& map, int64_t y, int64_t width, int64_t dim, const Ring<T>& ring,
               const T* in) {
  T one[N];
  store(one, fill<N>(T(1)));
  for (int64_t x = 0; x < width; x += N) {
    unpack<N>(map, y, x, width - 1, dim, ring.channels, in + x, ring.plane, one);
  }
}

// Rows of a tile from y on; they see none of the rows of keys outside [begin, end) of the geometry.
template <typename G>
MMLOCALATTN_INLINE Rows make_rows(const G& geometry, int64_t y, int64_t y_end) {
  Rows rows{y, smaller(kRows, y_end - y), {}, {}};
  for (int t = 0; t < kRows; ++t) {
    rows.begin[t] = larger(y + t - geometry.up, geometry.begin);
    rows.end[t] = t < rows.count ? smaller(y + t + geometry.up + 1, geometry.end) : rows.begin[t];
  }
  return rows;
}

// A vector of N queries for each row of a tile and each tap of their windows. Before those of the
// N queries there may be those of the `keep` queries before them.
template <typename T, int N>
struct Taps {
  T* data;
  int64_t keep, step, row, tile_row;  // values to the next tap, row of taps, row of the tile

  template <typename G>
  Taps(const G& geometry, int64_t keep, Arena<T>& arena)
      : keep(keep), step(keep + N), row(geometry.cols * step), tile_row(geometry.rows * row) {
    data = arena.take(kRows * tile_row);
  }
  MMLOCALATTN_INLINE T* at(int64_t t, int64_t a) const {
    return data + t * tile_row + a * row + keep;
  }
  // Zeros behind the first values of every tap.
  void clear(int64_t first) const {
    for (T *p = data, *end = data + kRows * tile_row; p < end; p += step) {
      for (int64_t i = first; i < step; i += N) store(p + i, Vec<T, N>{});
    }
  }
  // Keeps the last queries for the next tile.
  void advance() const {
    for (T *p = data, *end = data + kRows * tile_row; p < end; p += step) {
      for (int64_t i = 0; i < keep; i += N) store(p + i, load<N>(p + i + N));
    }
  }
};

// The part of the logits of a tile that comes from the embeddings.
template <typename T, int N>
struct Terms {
  T *rows, *cols;  // (kRows, kernel rows, N) and (kRows, kernel columns, N)
  T* most;         // (kRows, N): the largest logits so far

  template <typename G>
  Terms(const G& geometry, Arena<T>& arena)
      : rows(arena.take(kRows * geometry.rows * N)),
        cols(arena.take(kRows * geometry.cols * N)),
        most(arena.take(kRows * N)) {}
};

// Products of the queries of a tile with `count` embeddings of `dim` channels.
template <int N, typename T>
void products(const T* own, int64_t own_step, int64_t own_plane, const T* embedding, int64_t count,
              int64_t dim, T* out) {
  for (int64_t a = 0; a < count; ++a, embedding += dim) {
    Vec<T, N> sum[kRows] = {};
    for (int64_t d = 0; d < dim; ++d) {
      for (int t = 0; t < kRows; ++t) {
        sum[t] += load<N>(own + t * own_step + d * own_plane) * embedding[d];
      }
    }
    for (int t = 0; t < kRows; ++t) store(out + (t * count + a) * N, sum[t]);
  }
}

// A tile at columns [x, x + N) and head `head`: what forward and backward share.
template <typename In, int N, typename T = Compute<In>>
struct Tile {
  const Piece<In>& piece;
  const Geometry<In, N>& geometry;
  const Rows& rows;
  int64_t head, x;

  MMLOCALATTN_INLINE int64_t channel() const { return head * piece.dim; }
  MMLOCALATTN_INLINE T* own(const Ring<T>& band) const { return band.at(0, channel()) + x; }
  MMLOCALATTN_INLINE int64_t tap_row(int t, int64_t u) const {
    return u - (rows.y + t) + geometry.up;
  }

  void fill_terms(const T* queries, const Ring<T>& ring, const Terms<T, N>& terms) const {
    const int64_t half = piece.half();
    products<N>(queries, ring.row(), ring.plane, piece.row_embedding + head * geometry.rows * half,
                geometry.rows, half, terms.rows);
    products<N>(queries + half * ring.plane, ring.row(), ring.plane,
                piece.column_embedding + head * geometry.cols * (piece.dim - half), geometry.cols,
                piece.dim - half, terms.cols);
    for (int t = 0; t < kRows; ++t) store(terms.most + t * N, fill<N>(T(-3e38)));
    if (piece.zero_padding || (x >= geometry.left && x + N + geometry.left <= piece.width)) return;
    for (int64_t b = 0; b < geometry.cols; ++b) {
      for (int64_t i = 0; i < N; ++i) {
        const int64_t column = x + i + b - geometry.left;
        if (column >= 0 && column < piece.width) continue;
        for (int t = 0; t < kRows; ++t) {
          terms.cols[(t * geometry.cols + b) * N + i] = -__builtin_inf();
        }
      }
    }
  }

  // Products of the tile's own vectors with all taps. With terms those are added, and the largest
  // sums are kept.
  template <bool kTerms>
  void taps(const T* own, const Ring<T>& own_ring, const Ring<T>& keys, const Terms<T, N>& terms,
            const Taps<T, N>& out) const {
    for (int64_t u = rows.first(); u < rows.last(); ++u) {
      const T* row = keys.at(u, channel()) + x - geometry.left;
      for_each_block(rows, u, geometry.cols,
                     [&](int first, auto num_rows, int64_t b, auto num_taps) MMLOCALATTN_LAMBDA {
                       // From one row of the tile to the next, u is one row of taps earlier.
                       const int64_t a = tap_row(first, u);
                       const T *row_terms = terms.rows + (first * geometry.rows + a) * N,
                               *col_terms = terms.cols + (first * geometry.cols + b) * N;
                       T *most = terms.most + first * N, *to = out.at(first, a) + b * out.step;
                       const auto start = [&](auto& sum) MMLOCALATTN_LAMBDA {
                         for (int t = 0; t < num_rows; ++t) {
                           Vec<T, N> row_term{};
                           if (kTerms) row_term = load<N>(row_terms + t * (geometry.rows - 1) * N);
                           for (int j = 0; j < num_taps; ++j) {
                             sum[t][j] = row_term;
                             if (kTerms)
                               sum[t][j] += load<N>(col_terms + t * geometry.cols * N + j * N);
                           }
                         }
                       };
                       const auto finish = [&](const auto& sum) MMLOCALATTN_LAMBDA {
                         for (int t = 0; t < num_rows; ++t) {
                           if (kTerms) {
                             Vec<T, N> row_most = load<N>(most + t * N);
                             for (int j = 0; j < num_taps; ++j) row_most = max(sum[t][j], row_most);
                             store(most + t * N, row_most);
                           }
                           for (int j = 0; j < num_taps; ++j) {
                             store(to + t * (out.tile_row - out.row) + j * out.step, sum[t][j]);
                           }
                         }
                       };
                       const TilePlanes<T> vectors{own + first * own_ring.row(), own_ring.row(),
                                                   own_ring.plane, piece.dim};
                       multiply_taps<num_rows, num_taps, false, false, N>(
                           vectors, row + b, keys.plane, Index<T, N>{}, start, finish);
                     });
    }
  }

  // Sums of the taps from channel d of the head on, weighted.
  MMLOCALATTN_INLINE void sums(const Ring<T>& keys, const Taps<T, N>& weights, int64_t d,
                               Vec<T, N> (&sum)[kRows][kChannels]) const {
    for (int t = 0; t < kRows; ++t) {
      for (int i = 0; i < kChannels; ++i) sum[t][i] = Vec<T, N>{};
    }
    for (int64_t u = rows.first(); u < rows.last(); ++u) {
      const T* row = keys.at(u, channel() + d) + x - geometry.left;
      const TapWeights<T> factors{weights.at(0, tap_row(0, u)), weights.tile_row - weights.row,
                                  weights.step};
      with_visible(rows, u, [&](auto begin, auto end) MMLOCALATTN_LAMBDA {
        add_taps<begin, end, false, false, N>(row, keys.plane, Index<T, N>{}, geometry.cols,
                                              factors, sum);
      });
    }
  }
};

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA

#endif
