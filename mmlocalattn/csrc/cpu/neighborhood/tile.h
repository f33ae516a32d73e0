// What the kernels of neighborhood attention share. The formulas are in forward.h.
//
// Shift-planar: the keys of a piece are packed into planes, one per row and channel, and the lanes
// of a vector are neighboring queries of a row. Their windows are one window shifted, so a tap of
// all of them is one load from a plane (at borders a load and a permutation), see taps.h. Nothing
// of the size of the attention matrix leaves the caches, and no multiplication is wasted on
// positions outside the windows.
#if defined(MMLOCALATTN_NEIGHBORHOOD_TILE_H) == defined(MMLOCALATTN_TOGGLE)
#ifdef MMLOCALATTN_NEIGHBORHOOD_TILE_H
#undef MMLOCALATTN_NEIGHBORHOOD_TILE_H
#else
#define MMLOCALATTN_NEIGHBORHOOD_TILE_H
#endif

#include "cpu/neighborhood/piece.h"
#include "cpu/simd/taps.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

using neighborhood::ColumnAxis;
using neighborhood::Piece;

// Taps of a query that are worked on at a time, so that their logits stay near; a row of taps is
// never split.
constexpr int64_t kChunkTaps = 96;

// Planes of the keys of a piece: channel d of column x in row u is data[u * row + d * plane + x].
template <typename T>
struct Planes {
  T* data;
  int64_t row, plane;

  MMLOCALATTN_INLINE const T* at(int64_t u, int64_t d, int64_t x) const {
    return data + u * row + d * plane + x;
  }
};

MMLOCALATTN_INLINE int64_t num_planes(int64_t dim) { return round_up(dim, kChannels); }

// Loads of a tap may reach one vector past the last key: what is there goes to lanes that nobody
// reads. An odd number of cache lines spreads the planes over the sets of a cache.
template <typename In>
Planes<Compute<In>> make_planes(const Piece<In>& piece, Arena<Compute<In>>& arena) {
  using T = Compute<In>;
  constexpr int64_t kLine = kVectorBytes / static_cast<int64_t>(sizeof(T));
  const int64_t lines = (piece.key_cols() + kLine - 1) / kLine + 1;
  const int64_t plane = (lines | 1) * kLine, row = plane * num_planes(piece.dim);
  return {arena.take(row * piece.key_rows()), row, plane};
}

template <typename In>
void fill_planes(const Piece<In>& piece, const Map<const In>& map,
                 const Planes<Compute<In>>& planes) {
  constexpr int N = kLanes<Compute<In>>;
  const int64_t first = piece.first_col(), cols = piece.key_cols(), rows = piece.key_rows();
  for (int64_t u = 0; u < rows; ++u) {
    for (int64_t x = 0; x < cols; x += N) {
      if (u + 1 < rows) {
        prefetch(map, piece.first_row() + u + 1, first + x, smaller(N, cols - x), piece.dim);
      }
      pack<N>(map, piece.first_row() + u, first + x, first + cols - 1, piece.dim,
              num_planes(piece.dim), planes.data + u * planes.row + x, planes.plane);
    }
  }
}

// Prefetches the rows of a tile, if there are any.
template <bool kWrite = false, typename In, typename M>
MMLOCALATTN_INLINE void prefetch_tile(const Piece<In>& piece, const Map<M>& map, int64_t y,
                                      int64_t x) {
  const int64_t count = smaller(kLanes<Compute<In>>, piece.x_end - x);
  for (int64_t end = smaller(y + kRows, piece.y_end); y < end; ++y) {
    prefetch<kWrite>(map, y, x, count, piece.dim);
  }
}

// Neighboring columns of queries, one a lane, and where their taps are.
template <typename T, int N>
struct Columns {
  int64_t x, count;
  int64_t base;        // of the keys of a piece, the first tap of the first lane
  int64_t taps, keys;  // of a row: seen by each lane, by all of them
  bool is_shift;       // lane i has its first tap at base + i
  Index<T, N> source;  // first tap of each lane, from base
  int64_t table_base;  // smallest column of a relative position table for a first tap
  Index<T, N> table_source;

  template <typename In>
  Columns(const Piece<In>& piece, int64_t x) : x(x), count(0), source{}, table_source{} {
    const int64_t *first_tap = piece.cols.first_tap + x,
                  *table_column = piece.cols.table_column + x;
    int64_t table_end = table_column[0];
    base = first_tap[0] - piece.first_col();
    taps = piece.cols.kernel;
    table_base = table_column[0];
    is_shift = true;
    // A vector of keys, and one of a table, must hold the first taps of all lanes.
    for (; count < N && x + count < piece.x_end; ++count) {
      const int64_t low = smaller(table_base, table_column[count]),
                    high = larger(table_end, table_column[count]);
      if (first_tap[count] - first_tap[0] >= N || (piece.bias && high - low >= N)) break;
      table_base = low, table_end = high;
      source[count] = first_tap[count] - first_tap[0];
      is_shift = is_shift && source[count] == count;
    }
    for (int64_t i = count; is_shift && i < N; ++i) source[i] = i;
    for (int64_t i = 0; piece.bias && i < count; ++i)
      table_source[i] = table_column[i] - table_base;
    keys = source[count - 1] + taps;
  }
};

// Rows of a tile; the rows of keys that they see are counted from the first of the piece.
template <typename In>
MMLOCALATTN_INLINE Rows make_rows(const Piece<In>& piece, int64_t y) {
  Rows rows{y, smaller(kRows, piece.y_end - y), {}, {}};
  for (int t = 0; t < kRows; ++t) {
    rows.begin[t] = piece.rows.start(smaller(y + t, piece.y_end - 1)) - piece.first_row();
    rows.end[t] = rows.begin[t] + piece.rows.kernel;
  }
  return rows;
}

// Rows of keys that are worked on at a time.
struct Chunk {
  int64_t begin, end;
};

MMLOCALATTN_INLINE int64_t most_chunk_rows(int64_t taps) { return larger(1, kChunkTaps / taps); }

// Splits the rows of keys of a tile into chunks of about equal size.
template <typename Body>
MMLOCALATTN_INLINE void for_each_chunk(const Rows& rows, int64_t taps, const Body& body) {
  const int64_t most = most_chunk_rows(taps);
  int64_t chunks = (rows.last() - rows.first() + most - 1) / most;
  for (int64_t u = rows.first(); chunks > 0; --chunks) {
    const int64_t size = (rows.last() - u + chunks - 1) / chunks;
    body(Chunk{u, u + size});
    u += size;
  }
}

// Logits, or their gradients, of a tile and a chunk: vectors of N queries, one a tap. Around every
// row of taps there is a vector of zeros for loops that step over the keys of a tile two by two.
template <typename T, int N>
struct Logits {
  T* data;
  int64_t row, tile_row;  // values of a row of taps, of a row of the tile

  Logits(int64_t taps, Arena<T>& arena)
      : row((taps + 1) * N), tile_row(most_chunk_rows(taps) * row + N) {
    data = arena.take(kRows * tile_row);
  }
  MMLOCALATTN_INLINE T* at(int64_t t, Chunk chunk, int64_t u) const {
    return data + t * tile_row + (u - chunk.begin) * row + N;
  }
  void clear() const {
    for (int64_t i = 0; i < kRows * tile_row; ++i) data[i] = 0;
  }
};

// A tile at one place: what forward and backward share. kPairs: every lane of the queries, keys,
// values and weights is a pair of bfloat16, see pairs.h.
template <typename T, int N, bool kPairs = false>
struct Tile {
  const Columns<T, N>& columns;
  const Rows& rows;
  int64_t dim;

  // Logits of a chunk: products of the tile's own vectors, planar (kRows, num_planes, N), with all
  // taps. Pairs are multiplied by `factor`. With `biased` its biases are added; with `most` that is
  // kept the largest logit of each row of the tile. These are no template arguments: they would
  // multiply what takes longest to compile.
  template <typename In>
  void products(const T* own, const Planes<T>& keys, Chunk chunk, const Logits<T, N>& out,
                T factor = 1, const Piece<In>* biased = nullptr, Vec<T, N>* most = nullptr) const {
    const int64_t planes = kPairs ? num_planes(dim) / 2 : dim;
    const int64_t own_row = num_planes(dim) * N;
    for (int64_t u = chunk.begin; u < chunk.end; ++u) {
      const T* row = keys.at(u, 0, columns.base);
      for_each_block(rows, u, columns.taps,
                     [&](int first, auto num_rows, int64_t b, auto num_taps) MMLOCALATTN_LAMBDA {
                       T* to = out.at(first, chunk, u) + b * N;
                       const auto start = [](auto& sum) MMLOCALATTN_LAMBDA {
                         for (auto& row : sum) {
                           for (auto& vector : row) vector = Vec<T, N>{};
                         }
                       };
                       const auto finish = [&](auto& sum) MMLOCALATTN_LAMBDA {
                         for (int t = 0; t < num_rows; ++t) {
                           for (auto& logit : sum[t]) logit *= kPairs ? factor : T(1);
                           if (biased) add_bias(*biased, first + t, u, b, sum[t]);
                           if (most) {
                             for (const auto& logit : sum[t]) {
                               most[first + t] = max(logit, most[first + t]);
                             }
                           }
                           for (int j = 0; j < num_taps; ++j) {
                             store(to + t * out.tile_row + j * N, sum[t][j]);
                           }
                         }
                       };
                       const TilePlanes<T> vectors{own + first * own_row, own_row, N, planes};
                       if (columns.is_shift) {
                         multiply_taps<num_rows, num_taps, false, kPairs, N>(
                             vectors, row + b, keys.plane, columns.source, start, finish);
                       } else {
                         multiply_taps<num_rows, num_taps, true, kPairs, N>(
                             vectors, row + b, keys.plane, columns.source, start, finish);
                       }
                     });
    }
  }

  // sums[t] = factor[t] * sums[t] + the taps of a chunk, weighted; sums is (kRows, num_planes, N).
  // The first chunk finds no sums yet.
  void accumulate(const Planes<T>& taps, Chunk chunk, const Logits<T, N>& weights,
                  const Vec<T, N> (&factor)[kRows], T* sums) const {
    for (int64_t d = 0; d < dim; d += kChannels) {
      if (columns.is_shift) {
        accumulate_channels<false>(taps, chunk, weights, factor, d, sums);
      } else {
        accumulate_channels<true>(taps, chunk, weights, factor, d, sums);
      }
    }
  }

  template <bool kPermute>
  MMLOCALATTN_INLINE void accumulate_channels(const Planes<T>& taps, Chunk chunk,
                                              const Logits<T, N>& weights,
                                              const Vec<T, N> (&factor)[kRows], int64_t d,
                                              T* sums) const {
    const int64_t step = num_planes(dim) * N;
    Vec<T, N> sum[kRows][kChannels];
    for (int t = 0; t < kRows; ++t) {
      for (int i = 0; i < kChannels; ++i) {
        sum[t][i] = Vec<T, N>{};
        if (chunk.begin > rows.first())
          sum[t][i] = load<N>(sums + t * step + (d + i) * N) * factor[t];
      }
    }
    for (int64_t u = chunk.begin; u < chunk.end; ++u) {
      const T* row = taps.at(u, d, columns.base);
      const TapWeights<T> factors{weights.at(0, chunk, u), weights.tile_row, N};
      with_visible(rows, u, [&](auto begin, auto end) MMLOCALATTN_LAMBDA {
        add_taps<begin, end, kPermute, kPairs, N>(row, taps.plane, columns.source, columns.taps,
                                                  factors, sum);
      });
    }
    for (int t = 0; t < kRows; ++t) {
      for (int i = 0; i < kChannels; ++i) store(sums + t * step + (d + i) * N, sum[t][i]);
    }
  }

  // Rows of keys of a chunk that row t of the tile sees.
  MMLOCALATTN_INLINE Chunk visible(int t, Chunk chunk) const {
    return {clamp(rows.begin[t], chunk.begin, chunk.end),
            clamp(rows.end[t], chunk.begin, chunk.end)};
  }

  // Row of a relative position table for row u of the keys.
  template <typename In>
  MMLOCALATTN_INLINE int64_t table_row(const Piece<In>& piece, int t, int64_t u) const {
    return piece.rows.first_offset(rows.y + t) + u - rows.begin[t];
  }

  // Adds the biases of taps b, b + 1, ... of row u of the keys to logits of row t of the tile.
  template <typename In, int kNumTaps>
  MMLOCALATTN_INLINE void add_bias(const Piece<In>& piece, int t, int64_t u, int64_t b,
                                   Vec<T, N> (&logits)[kNumTaps]) const {
    const T* table = piece.bias + table_row(piece, t, u) * (2 * columns.taps - 1);
    for (int j = 0; j < kNumTaps; ++j) {
      const Vec<T, N> bias = load<N>(table + columns.table_base + b + j);
      logits[j] += permute<T, N>(bias, columns.table_source);
    }
  }
};

// Calls body(x, N) for columns of queries, which returns how many of N it has worked on: whole
// vectors, and half of one where that is enough for the rest.
template <typename In, typename Body>
MMLOCALATTN_INLINE void for_each_columns(const Piece<In>& piece, const Body& body) {
  constexpr int N = kLanes<Compute<In>>;
  for (int64_t x = piece.x_begin; x < piece.x_end;) {
    if constexpr (N > 4) {
      if (piece.x_end - x <= N / 2) {
        x += body(x, std::integral_constant<int, N / 2>());
        continue;
      }
    }
    x += body(x, std::integral_constant<int, N>());
  }
}

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA

#endif
