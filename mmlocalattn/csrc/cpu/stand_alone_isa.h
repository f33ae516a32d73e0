// Kernels of stand-alone self-attention for one instruction set: included by stand_alone_<isa>.cpp,
// which defines MMLOCALATTN_ISA and MMLOCALATTN_VECTOR_BYTES and sets the compiler's target.
//
//   s_ij = <q_i, k_j + r_{j-i}>     p_ij = 2^(s_ij - lse_i)     o_i = sum_j p_ij v_j
//   ds_ij = p_ij (<do_i, v_j> - delta_i)     dq_i = sum_j ds_ij (k_j + r_{j-i})
//   dk_j = sum_i ds_ij q_i     dv_j = sum_i p_ij do_i     dr_o = sum_i ds_{i,i+o} q_i
//
// Shift-planar, as in neighborhood_isa.h: the lanes of a vector are neighboring queries of a row,
// and a tap of all of them is one load from a row of keys that is packed into planes. A piece is
// worked on from top to bottom in bands of kRows rows of queries; only the rows of keys that a band
// sees are packed at a time.
//
// r is a row embedding beside a column embedding, so that its part of the logits is a number per
// row of the window plus one per column: terms. Masked columns have a term of -inf.
#pragma once

#include "layout_isa.h"

namespace mmlocalattn {
namespace cpu {
namespace MMLOCALATTN_ISA {
namespace {

// A tile is kRows rows of N queries. Accumulators of kRows x kTaps (or kChannels) vectors stay in
// registers.
constexpr int kRows = MMLOCALATTN_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int kTaps = 6;
constexpr int kChannels = 4;

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

  explicit Geometry(const StandAlonePiece<In>& piece)
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
    return {rows - 1 + kRows, planes, pad, columns + pad, arena};
  }
  Ring<T> make_band(int64_t channels, Arena<T>& arena) const {
    return {kRows, channels, pad, columns + pad, arena};
  }
};

// Packs row y of a map to planes, 0 where there is none.
template <int N, typename In, typename T = Compute<In>>
void fill_row(const StandAlonePiece<In>& piece, const Map<const In>& map, int64_t y,
              const Ring<T>& ring, T* out) {
  const int64_t width = piece.width, dim = piece.channels(), columns = round_up(width, N);
  const bool is_inside = y >= 0 && y < piece.height;
  for (int64_t x = 0; is_inside && x < width; x += N) {
    pack<N>(map, y, x, width - 1, dim, ring.channels, out + x, ring.plane);
  }
  for (int64_t d = 0; d < ring.channels; ++d, out += ring.plane) {
    for (int64_t x = is_inside ? width : 0; x < columns; ++x) out[x] = 0;
  }
}

// Brings columns [x, x + N) of `count` rows of a map to the caches, if there are any.
template <int N, bool kWrite = false, typename In, typename M>
MMLOCALATTN_INLINE void prefetch_rows(const StandAlonePiece<In>& piece, const Map<M>& map,
                                      int64_t y, int64_t count, int64_t x) {
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

// Rows of a tile with the rows of keys that they see.
struct Rows {
  int64_t y, count;
  int64_t begin[kRows], end[kRows];  // nondecreasing; empty for rows past the count

  template <typename G>
  MMLOCALATTN_INLINE Rows(const G& geometry, int64_t y, int64_t y_end)
      : y(y), count(smaller(kRows, y_end - y)) {
    for (int t = 0; t < kRows; ++t) {
      begin[t] = larger(y + t - geometry.up, geometry.begin);
      end[t] = t < count ? smaller(y + t + geometry.up + 1, geometry.end) : begin[t];
    }
  }
  MMLOCALATTN_INLINE int64_t first() const { return begin[0]; }
  MMLOCALATTN_INLINE int64_t last() const { return end[count - 1]; }

  // The rows that see u are [visible_begin, visible_end).
  MMLOCALATTN_INLINE int visible_begin(int64_t u) const {
    int t = 0;
    while (end[t] <= u) ++t;
    return t;
  }
  MMLOCALATTN_INLINE int visible_end(int64_t u) const {
    int t = static_cast<int>(count);
    while (begin[t - 1] > u) --t;
    return t;
  }
};

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

// out[t][j] = <own[t], tap j> (+ row_terms[t] + col_terms[t][j]) for kNumTaps taps of one row of
// keys. With terms, most[t] becomes the largest so far.
template <int kNumRows, int kNumTaps, bool kTerms, int N, typename T>
MMLOCALATTN_INLINE void dots(const T* own, int64_t own_step, int64_t own_plane, const T* keys,
                             int64_t plane, int64_t dim, const T* row_terms, int64_t row_step,
                             const T* col_terms, int64_t col_step, T* most, T* out,
                             int64_t out_step, int64_t tap_step) {
  Vec<T, N> sum[kNumRows][kNumTaps];
  for (int t = 0; t < kNumRows; ++t) {
    Vec<T, N> row{};
    if (kTerms) row = load<N>(row_terms + t * row_step);
    for (int j = 0; j < kNumTaps; ++j) {
      sum[t][j] = row;
      if (kTerms) sum[t][j] += load<N>(col_terms + t * col_step + j * N);
    }
  }
  for (int64_t d = 0; d < dim; ++d, own += own_plane, keys += plane) {
    Vec<T, N> query[kNumRows];
    for (int t = 0; t < kNumRows; ++t) query[t] = load<N>(own + t * own_step);
    for (int j = 0; j < kNumTaps; ++j) {
      Vec<T, N> tap = load<N>(keys + j);
      if (kNumRows > 1) pin(tap);
      for (int t = 0; t < kNumRows; ++t) sum[t][j] += query[t] * tap;
    }
  }
  for (int t = 0; t < kNumRows; ++t) {
    if (kTerms) {
      Vec<T, N> row_most = load<N>(most + t * N);
      for (int j = 0; j < kNumTaps; ++j) row_most = max(sum[t][j], row_most);
      store(most + t * N, row_most);
    }
    for (int j = 0; j < kNumTaps; ++j) store(out + t * out_step + j * tap_step, sum[t][j]);
  }
}

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
  const StandAlonePiece<In>& piece;
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

  // Products of the tile's own vectors with all taps.
  template <bool kTerms>
  void taps(const T* own, const Ring<T>& own_ring, const Ring<T>& keys, const Terms<T, N>& terms,
            const Taps<T, N>& out) const {
    for (int64_t u = rows.first(); u < rows.last(); ++u) {
      const int first = rows.visible_begin(u);
      const int64_t a = tap_row(first, u);
      const T* row = keys.at(u, channel()) + x - geometry.left;
      with_constant<kRows>(
          rows.visible_end(u) - first, [&](auto num_rows) __attribute__((always_inline)) {
            int64_t blocks = (geometry.cols + kTaps - 1) / kTaps;
            for (int64_t b = 0; blocks > 0; --blocks) {
              const int64_t size = (geometry.cols - b + blocks - 1) / blocks;
              with_constant<kTaps>(size, [&](auto num_taps) __attribute__((always_inline)) {
                // From one row of the tile to the next, u is one row of taps earlier.
                dots<num_rows, num_taps, kTerms, N>(
                    own + first * own_ring.row(), own_ring.row(), own_ring.plane, row + b,
                    keys.plane, piece.dim, terms.rows + (first * geometry.rows + a) * N,
                    (geometry.rows - 1) * N, terms.cols + (first * geometry.cols + b) * N,
                    geometry.cols * N, terms.most + first * N, out.at(first, a) + b * out.step,
                    out.tile_row - out.row, out.step);
              });
              b += size;
            }
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
      const int first = rows.visible_begin(u), last = rows.visible_end(u);
      const T* row = keys.at(u, channel() + d) + x - geometry.left;
      const T* weight = weights.at(0, tap_row(0, u));
      // The first row of the tile that sees u, and the one after the last, as constants.
      with_constant<kRows>(last, [&](auto end) __attribute__((always_inline)) {
        with_constant<end>(first + 1, [&](auto begin) __attribute__((always_inline)) {
          add_row<begin - 1, end>(row, keys.plane, weight, weights.tile_row - weights.row,
                                  weights.step, sum);
        });
      });
    }
  }

  template <int kBegin, int kEnd>
  MMLOCALATTN_INLINE void add_row(const T* row, int64_t plane, const T* weight, int64_t weight_row,
                                  int64_t weight_step, Vec<T, N> (&sum)[kRows][kChannels]) const {
    for (int64_t b = 0; b < geometry.cols; ++b, ++row, weight += weight_step) {
      Vec<T, N> weights[kRows];
      for (int t = kBegin; t < kEnd; ++t) weights[t] = load<N>(weight + t * weight_row);
      for (int i = 0; i < kChannels; ++i) {
        Vec<T, N> tap = load<N>(row + i * plane);
        if (kEnd - kBegin > 1) pin(tap);
        for (int t = kBegin; t < kEnd; ++t) sum[t][i] += weights[t] * tap;
      }
    }
  }
};

// Scratch of the forward kernel.
template <typename In, int N, typename T = Compute<In>>
struct ForwardScratch {
  Ring<T> keys, values;
  Ring<T> queries;  // of a band; its outputs take their place
  Taps<T, N> weights;
  Terms<T, N> terms;

  ForwardScratch(const Geometry<In, N>& geometry, Arena<T>& arena)
      : keys(geometry.make_ring(arena)),
        values(geometry.make_ring(arena)),
        queries(geometry.make_band(geometry.planes, arena)),
        weights(geometry, 0, arena),
        terms(geometry, arena) {}
};

template <int N, typename In, typename T = Compute<In>>
void forward_tile(const Tile<In, N>& tile, const ForwardScratch<In, N>& scratch) {
  const auto& piece = tile.piece;
  const auto& rows = tile.rows;
  const auto& weights = scratch.weights;
  T* queries = tile.own(scratch.queries);
  tile.fill_terms(queries, scratch.queries, scratch.terms);
  tile.template taps<true>(queries, scratch.queries, scratch.keys, scratch.terms, weights);
  Vec<T, N> factor[kRows];
  for (int t = 0; t < rows.count; ++t) {
    const Vec<T, N> most = load<N>(scratch.terms.most + t * N);
    T *weight = weights.at(t, tile.tap_row(t, rows.begin[t])),
      *end = weights.at(t, tile.tap_row(t, rows.end[t]));
    Vec<T, N> total{};
    for (; weight < end; weight += N) {
      const Vec<T, N> p = exp2<N>(load<N>(weight) - most);
      store(weight, p);
      total += p;
    }
    factor[t] = T(1) / total;
    const Vec<T, N> logsumexp = (most + log2<N>(total)) * T(0.69314718055994530942);
    const int64_t count = smaller(N, piece.width - tile.x);
    for (int64_t i = 0; i < count; ++i) {
      piece.logsumexp.at(rows.y + t, tile.x + i)[tile.head] = logsumexp[i];
    }
  }
  for (int64_t d = 0; d < piece.dim; d += kChannels) {
    Vec<T, N> sum[kRows][kChannels];
    tile.sums(scratch.values, weights, d, sum);
    for (int t = 0; t < rows.count; ++t) {
      for (int i = 0; i < kChannels; ++i) {
        store(queries + t * scratch.queries.row() + (d + i) * scratch.queries.plane,
              sum[t][i] * factor[t]);
      }
    }
  }
}

template <typename In>
int64_t forward_scratch(const StandAlonePiece<In>& piece) {
  Arena<Compute<In>> arena{nullptr};
  constexpr int N = kLanes<Compute<In>>;
  ForwardScratch<In, N>(Geometry<In, N>(piece), arena);
  return arena.used;
}

template <typename In>
void forward(const StandAlonePiece<In>& piece, Compute<In>* memory) {
  using T = Compute<In>;
  constexpr int N = kLanes<T>;
  Arena<T> arena{memory};
  const Geometry<In, N> geometry(piece);
  const ForwardScratch<In, N> scratch(geometry, arena);
  for (int64_t i = 0; i < arena.used; ++i) memory[i] = 0;
  int64_t packed = larger(piece.y_begin - geometry.up, geometry.begin);
  for (int64_t y = piece.y_begin; y < piece.y_end; y += kRows) {
    const Rows rows(geometry, y, piece.y_end);
    for (; packed < rows.last(); ++packed) {
      fill_row<N>(piece, piece.key, packed, scratch.keys, scratch.keys.at(packed, 0));
      fill_row<N>(piece, piece.value, packed, scratch.values, scratch.values.at(packed, 0));
    }
    for (int t = 0; t < rows.count; ++t) {
      fill_row<N>(piece, piece.query, y + t, scratch.queries, scratch.queries.at(t, 0));
    }
    for (int64_t x = 0; x < piece.width; x += N) {
      prefetch_rows<N>(piece, piece.key, packed, kRows, x);
      prefetch_rows<N>(piece, piece.value, packed, kRows, x);
      prefetch_rows<N>(piece, piece.query, y + kRows, kRows, x);
      prefetch_rows<N, true>(piece, piece.output, y, kRows, x);
      for (int64_t head = 0; head < piece.heads; ++head) {
        forward_tile<N>(Tile<In, N>{piece, geometry, rows, head, x}, scratch);
      }
    }
    for (int t = 0; t < rows.count; ++t) {
      write_row<N>(piece.output, y + t, piece.width, piece.channels(), scratch.queries,
                   scratch.queries.at(t, 0));
    }
  }
}

// Scratch of the backward kernel.
template <typename In, int N, typename T = Compute<In>>
struct BackwardScratch {
  Ring<T> keys, values;
  Ring<T> grad_keys, grad_values;  // of column x - left at column x
  Ring<T> queries, grad_outputs;   // of a band
  Ring<T> grad_queries;            // of a band; before, its outputs
  Ring<T> logsumexps, deltas;      // of a band, one channel a head
  Taps<T, N> weights, grads;
  Terms<T, N> terms;                              // later their gradients
  T *grad_row_embedding, *grad_column_embedding;  // with N parts of each number

  BackwardScratch(const StandAlonePiece<In>& piece, const Geometry<In, N>& geometry,
                  Arena<T>& arena)
      : keys(geometry.make_ring(arena)),
        values(geometry.make_ring(arena)),
        grad_keys(geometry.make_ring(arena)),
        grad_values(geometry.make_ring(arena)),
        queries(geometry.make_band(geometry.planes, arena)),
        grad_outputs(geometry.make_band(geometry.planes, arena)),
        grad_queries(geometry.make_band(geometry.planes, arena)),
        logsumexps(geometry.make_band(piece.heads, arena)),
        deltas(geometry.make_band(piece.heads, arena)),
        weights(geometry, round_up(2 * geometry.left, N), arena),
        grads(geometry, round_up(2 * geometry.left, N), arena),
        terms(geometry, arena),
        grad_row_embedding(arena.take(piece.heads * geometry.rows * piece.half() * N)),
        grad_column_embedding(
            arena.take(piece.heads * geometry.cols * (piece.dim - piece.half()) * N)) {}
};

// Turns the products in `scratch` into the weights and the gradients of the logits, and adds the
// latter up for the terms.
template <int N, typename In, typename T = Compute<In>>
void backward_logits(const Tile<In, N>& tile, const BackwardScratch<In, N>& scratch) {
  const auto& geometry = tile.geometry;
  const auto &weights = scratch.weights, &grads = scratch.grads;
  for (int t = 0; t < tile.rows.count; ++t) {
    const Vec<T, N> logsumexp = load<N>(scratch.logsumexps.at(t, tile.head) + tile.x),
                    delta = load<N>(scratch.deltas.at(t, tile.head) + tile.x);
    T *row_terms = scratch.terms.rows + t * geometry.rows * N,
      *col_terms = scratch.terms.cols + t * geometry.cols * N;
    for (int64_t i = 0; i < geometry.rows * N; ++i) row_terms[i] = 0;
    for (int64_t i = 0; i < geometry.cols * N; ++i) col_terms[i] = 0;
    for (int64_t u = tile.rows.begin[t]; u < tile.rows.end[t]; ++u) {
      const int64_t a = tile.tap_row(t, u);
      T *weight = weights.at(t, a), *grad = grads.at(t, a);
      Vec<T, N> sum{};
      for (int64_t b = 0; b < geometry.cols; ++b, weight += weights.step, grad += grads.step) {
        // A logit can exceed the log-sum-exp by its rounding error only.
        const Vec<T, N> p = exp2<N>(load<N>(weight) - logsumexp);
        const Vec<T, N> ds = p * (load<N>(grad) - delta);
        store(weight, p);
        store(grad, ds);
        store(col_terms + b * N, load<N>(col_terms + b * N) + ds);
        sum += ds;
      }
      store(row_terms + a * N, sum);
    }
  }
}

// What `count` terms of a row of queries give to the gradients of the queries and embeddings, in
// `dim` channels.
template <int N, typename T>
void backward_terms(const T* grad_terms, const T* queries, const T* embedding, int64_t count,
                    int64_t dim, int64_t plane, T* grad_queries, T* grad_embedding) {
  for (int64_t d = 0; d < dim; ++d, queries += plane, grad_queries += plane) {
    const Vec<T, N> query = load<N>(queries);
    Vec<T, N> sum = load<N>(grad_queries);
    for (int64_t a = 0; a < count; ++a) {
      const Vec<T, N> grad = load<N>(grad_terms + a * N);
      T* to = grad_embedding + (a * dim + d) * N;
      sum += grad * embedding[a * dim + d];
      store(to, load<N>(to) + grad * query);
    }
    store(grad_queries, sum);
  }
}

// Gradients of the queries of a tile and of the embeddings, which get those of the piece alone.
template <int N, typename In, typename T = Compute<In>>
void backward_queries(const Tile<In, N>& tile, const BackwardScratch<In, N>& scratch) {
  const auto& piece = tile.piece;
  const auto& rows = tile.rows;
  const int64_t half = piece.half(), rest = piece.dim - half;
  const int64_t row_table = tile.head * piece.kernel_rows * half,
                column_table = tile.head * piece.kernel_cols * rest;
  T *queries = tile.own(scratch.queries), *grads = tile.own(scratch.grad_queries);
  const int64_t plane = scratch.queries.plane, row = scratch.queries.row();
  for (int64_t d = 0; d < piece.dim; d += kChannels) {
    Vec<T, N> sum[kRows][kChannels];
    tile.sums(scratch.keys, scratch.grads, d, sum);
    for (int t = 0; t < rows.count; ++t) {
      for (int i = 0; i < kChannels; ++i) store(grads + t * row + (d + i) * plane, sum[t][i]);
    }
  }
  for (int t = 0; t < rows.count; ++t, queries += row, grads += row) {
    if (rows.y + t < piece.y_begin || rows.y + t >= piece.y_end) continue;
    backward_terms<N>(scratch.terms.rows + t * piece.kernel_rows * N, queries,
                      piece.row_embedding + row_table, piece.kernel_rows, half, plane, grads,
                      scratch.grad_row_embedding + row_table * N);
    backward_terms<N>(scratch.terms.cols + t * piece.kernel_cols * N, queries + half * plane,
                      piece.column_embedding + column_table, piece.kernel_cols, rest, plane,
                      grads + half * plane, scratch.grad_column_embedding + column_table * N);
  }
}

// grads[a][x] += sum_b weights[a][b][x - b] vectors[x - b] for kNumTaps rows of keys.
template <int kNumTaps, int N, typename T>
MMLOCALATTN_INLINE void add_to_keys(const T* weights, int64_t row, int64_t step, int64_t cols,
                                    const T* vectors, int64_t plane, T* const* grads, int64_t d) {
  Vec<T, N> sum[kNumTaps][kChannels];
  for (int a = 0; a < kNumTaps; ++a) {
    for (int i = 0; i < kChannels; ++i) sum[a][i] = load<N>(grads[a] + (d + i) * plane);
  }
  vectors += d * plane;
  for (int64_t b = 0; b < cols; ++b, weights += step - 1, --vectors) {
    Vec<T, N> vector[kChannels];
    for (int i = 0; i < kChannels; ++i) vector[i] = load<N>(vectors + i * plane);
    for (int a = 0; a < kNumTaps; ++a) {
      Vec<T, N> weight = load<N>(weights + a * row);
      pin(weight);
      for (int i = 0; i < kChannels; ++i) sum[a][i] += weight * vector[i];
    }
  }
  for (int a = 0; a < kNumTaps; ++a) {
    for (int i = 0; i < kChannels; ++i) store(grads[a] + (d + i) * plane, sum[a][i]);
  }
}

// Gradients of keys, or of values, from a tile and the `keep` queries before it: of N columns that
// no later query sees, in the rows of the piece.
template <int N, typename In, typename T = Compute<In>>
void backward_keys(const Tile<In, N>& tile, const Taps<T, N>& weights, const Ring<T>& vectors,
                   const Ring<T>& grads) {
  const auto& piece = tile.piece;
  for (int t = 0; t < tile.rows.count; ++t) {
    int64_t u = larger(tile.rows.begin[t], piece.y_begin);
    const int64_t end = smaller(tile.rows.end[t], piece.y_end);
    const T* row = vectors.at(t, tile.channel()) + tile.x;
    for (int64_t blocks = (end - u + kTaps - 1) / kTaps; u < end; --blocks) {
      const int64_t size = (end - u + blocks - 1) / blocks;
      T* to[kTaps];
      for (int64_t i = 0; i < size; ++i) to[i] = grads.at(u + i, tile.channel()) + tile.x;
      with_constant<kTaps>(size, [&](auto num_taps) __attribute__((always_inline)) {
        for (int64_t d = 0; d < piece.dim; d += kChannels) {
          add_to_keys<num_taps, N>(weights.at(t, tile.tap_row(t, u)), weights.row, weights.step,
                                   piece.kernel_cols, row, vectors.plane, to, d);
        }
      });
      u += size;
    }
  }
}

// Packs a row of queries and what belongs to it as row t of a band.
template <int N, typename In, typename T = Compute<In>>
void fill_band(const StandAlonePiece<In>& piece, const BackwardScratch<In, N>& scratch, int64_t y,
               int t) {
  const auto &queries = scratch.queries, &grad_outputs = scratch.grad_outputs,
             &outputs = scratch.grad_queries;
  fill_row<N>(piece, piece.query, y, queries, queries.at(t, 0));
  fill_row<N>(piece, piece.grad_output, y, grad_outputs, grad_outputs.at(t, 0));
  fill_row<N>(piece, as_input(piece.output), y, outputs, outputs.at(t, 0));
  for (int64_t head = 0; head < piece.heads; ++head) {
    T *logsumexps = scratch.logsumexps.at(t, head), *deltas = scratch.deltas.at(t, head);
    for (int64_t x = 0; x < piece.width; ++x) {
      logsumexps[x] = piece.logsumexp.at(y, x)[head] * T(1.44269504088896340736);
    }
    for (int64_t x = 0; x < piece.width; x += N) {
      Vec<T, N> delta{};
      for (int64_t d = head * piece.dim; d < (head + 1) * piece.dim; ++d) {
        delta += load<N>(grad_outputs.at(t, d) + x) * load<N>(outputs.at(t, d) + x);
      }
      store(deltas + x, delta);
    }
  }
}

// One head of a band.
template <int N, typename In, typename T = Compute<In>>
void backward_band(const StandAlonePiece<In>& piece, const Geometry<In, N>& geometry,
                   const Rows& rows, int64_t head, const BackwardScratch<In, N>& scratch) {
  const auto &weights = scratch.weights, &grads = scratch.grads;
  weights.clear(0), grads.clear(0);
  // Gradients of keys lag behind: the last ones come after the last queries.
  for (int64_t x = 0; x < piece.width + geometry.left; x += N) {
    const Tile<In, N> tile{piece, geometry, rows, head, x};
    if (x < piece.width) {
      const T *queries = tile.own(scratch.queries), *grad_outputs = tile.own(scratch.grad_outputs);
      tile.fill_terms(queries, scratch.queries, scratch.terms);
      tile.template taps<true>(queries, scratch.queries, scratch.keys, scratch.terms, weights);
      tile.template taps<false>(grad_outputs, scratch.grad_outputs, scratch.values, scratch.terms,
                                grads);
      backward_logits<N>(tile, scratch);
      backward_queries<N>(tile, scratch);
    } else {
      weights.clear(weights.keep), grads.clear(grads.keep);
    }
    backward_keys<N>(tile, grads, scratch.queries, scratch.grad_keys);
    backward_keys<N>(tile, weights, scratch.grad_outputs, scratch.grad_values);
    weights.advance(), grads.advance();
  }
}

template <typename In>
int64_t backward_scratch(const StandAlonePiece<In>& piece) {
  Arena<Compute<In>> arena{nullptr};
  constexpr int N = kLanes<Compute<In>>;
  BackwardScratch<In, N>(piece, Geometry<In, N>(piece), arena);
  return arena.used;
}

// N parts of each number to their sums.
template <int N, typename T>
void sum_parts(const T* parts, int64_t count, T* out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = sum_lanes<T, N>(load<N>(parts + i * N)) * T(0.69314718055994530942);
  }
}

template <typename In>
void backward(const StandAlonePiece<In>& piece, Compute<In>* memory) {
  using T = Compute<In>;
  constexpr int N = kLanes<T>;
  Arena<T> arena{memory};
  const Geometry<In, N> geometry(piece);
  const BackwardScratch<In, N> scratch(piece, geometry, arena);
  for (int64_t i = 0; i < arena.used; ++i) memory[i] = 0;
  // Rows of queries that see the keys of the piece, or belong to it.
  const int64_t y_begin = larger(piece.y_begin - geometry.up, 0),
                y_end = smaller(piece.y_end + geometry.up, piece.height);
  int64_t packed = larger(y_begin - geometry.up, geometry.begin), written = piece.y_begin;
  for (int64_t y = y_begin; y < y_end; y += kRows) {
    const Rows rows(geometry, y, y_end);
    for (; packed < rows.last(); ++packed) {
      fill_row<N>(piece, piece.key, packed, scratch.keys, scratch.keys.at(packed, 0));
      fill_row<N>(piece, piece.value, packed, scratch.values, scratch.values.at(packed, 0));
    }
    for (int t = 0; t < rows.count; ++t) fill_band<N>(piece, scratch, y + t, t);
    for (int64_t head = 0; head < piece.heads; ++head) {
      backward_band<N>(piece, geometry, rows, head, scratch);
    }
    const auto write = [&](const Map<In>& map, int64_t y, const Ring<T>& ring, T* in) {
      write_row<N>(map, y, piece.width, piece.channels(), ring, in);
    };
    for (int t = 0; t < rows.count; ++t) {
      if (y + t < piece.y_begin || y + t >= piece.y_end) continue;
      write(piece.grad_query, y + t, scratch.grad_queries, scratch.grad_queries.at(t, 0));
    }
    // Rows of keys that no later query sees; their places are used again.
    const int64_t seen = y + rows.count == y_end ? piece.height : y + rows.count - geometry.up;
    for (; written < smaller(seen, piece.y_end); ++written) {
      for (const auto* ring : {&scratch.grad_keys, &scratch.grad_values}) {
        T* row = ring->at(written, 0);
        write(ring == &scratch.grad_keys ? piece.grad_key : piece.grad_value, written, *ring,
              row + geometry.left);
        for (int64_t i = 0; i < ring->row(); ++i) row[i - ring->left] = 0;
      }
    }
  }
  const int64_t half = piece.half(), rest = piece.dim - half;
  sum_parts<N>(scratch.grad_row_embedding, piece.heads * geometry.rows * half,
               piece.grad_row_embedding);
  sum_parts<N>(scratch.grad_column_embedding, piece.heads * geometry.cols * rest,
               piece.grad_column_embedding);
}

template <typename In>
StandAloneKernels<In> make_stand_alone_kernels() {
  return {&forward_scratch<In>, &backward_scratch<In>, &forward<In>, &backward<In>};
}

}  // namespace
}  // namespace MMLOCALATTN_ISA
}  // namespace cpu
}  // namespace mmlocalattn
