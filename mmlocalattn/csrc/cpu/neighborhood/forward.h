// Neighborhood attention, forward, and the formulas of both directions.
//
//   s_ij = <q_i, k_j> + bias[j - i]     p_ij = exp(s_ij - lse_i)     o_i = sum_j p_ij v_j
//   ds_ij = p_ij (<do_i, v_j> - delta_i)     dq_i = sum_j ds_ij k_j     delta_i = <do_i, o_i>
//   dk_j = sum_i ds_ij q_i     dv_j = sum_i p_ij do_i
#if defined(MMLOCALATTN_NEIGHBORHOOD_FORWARD_H) == defined(MMLOCALATTN_TOGGLE)
#ifdef MMLOCALATTN_NEIGHBORHOOD_FORWARD_H
#undef MMLOCALATTN_NEIGHBORHOOD_FORWARD_H
#else
#define MMLOCALATTN_NEIGHBORHOOD_FORWARD_H
#endif

#include "cpu/neighborhood/values.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

// Scratch of the forward kernel for vectors of N queries.
template <typename In, int N, typename T = Compute<In>>
struct ForwardScratch {
  T* query;
  T* sums;
  Logits<T, N> logits;

  ForwardScratch(const Piece<In>& piece, Arena<T>& arena)
      : query(arena.take(kRows * num_planes(piece.dim) * N)),
        sums(arena.take(kRows * Values<In>::step(piece.dim) * N)),
        logits(piece.cols.kernel, arena) {}
};

template <int N, typename In>
MMLOCALATTN_NOINLINE int64_t forward_columns(const Piece<In>& piece, int64_t x,
                                             const Planes<Compute<In>>& keys,
                                             const Values<In>& values,
                                             const ForwardScratch<In, N>& scratch) {
  using T = Compute<In>;
  constexpr bool kPairs = has_pairs<In>;
  const Columns<T, N> columns(piece, x);
  const int64_t step = num_planes(piece.dim) * N;
  Map<const In> query = piece.query;
  if (kPairs) query.factor = 1;  // so that it is rounded once only; the logits get the factor
  for (int64_t y = piece.y_begin; y < piece.y_end; y += kRows) {
    const Rows rows = make_rows(piece, y);
    const Tile<T, N, kPairs> tile{columns, rows, piece.dim};
    for (int t = 0; t < rows.count; ++t) {
      T* planes = scratch.query + t * step;
      pack<N>(query, y + t, x, x + columns.count - 1, piece.dim, num_planes(piece.dim), planes, N);
      if constexpr (kPairs) pair_channels<N>(planes, num_planes(piece.dim), N, N);
    }
    prefetch_tile<true>(piece, piece.output, y, x);
    prefetch_tile(piece, piece.query, y + kRows, x);
    Vec<T, N> most[kRows], total[kRows];
    for (int t = 0; t < kRows; ++t) {
      // Not -inf: a bias of -inf then masks its tap instead of making NaN.
      most[t] = fill<N>(T(-3e38)), total[t] = Vec<T, N>{};
    }
    for_each_chunk(rows, columns.taps, [&](Chunk chunk) MMLOCALATTN_LAMBDA {
      Vec<T, N> next[kRows], factor[kRows];
      for (int t = 0; t < kRows; ++t) next[t] = most[t];
      tile.products(scratch.query, keys, chunk, scratch.logits, piece.query.factor,
                    piece.bias ? &piece : nullptr, next);
      for (int t = 0; t < kRows; ++t) factor[t] = exp<N>(most[t] - next[t]), most[t] = next[t];
      for (int t = 0; t < rows.count; ++t) {
        const Chunk seen = tile.visible(t, chunk);
        Vec<T, N> sum{};
        for (int64_t u = seen.begin; u < seen.end; ++u) {
          T* logit = scratch.logits.at(t, chunk, u);
          for (int64_t b = 0; b < columns.taps; ++b, logit += N) {
            const Vec<T, N> weight = exp<N>(load<N>(logit) - most[t]);
            store(logit, weight);
            sum += weight;
          }
          if constexpr (kPairs) pair_taps<N>(logit - columns.taps * N, columns.taps);
        }
        total[t] = total[t] * factor[t] + sum;
      }
      values.accumulate(tile, chunk, scratch.logits, factor, scratch.sums);
    });
    for (int t = 0; t < rows.count; ++t) {
      const Vec<T, N> rest = log<N>(total[t]);
      T factor[N];
      store(factor, T(1) / total[t]);
      values.write_row(piece, tile, t, factor, scratch.sums);
      for (int64_t i = 0; i < columns.count; ++i) {
        T* logsumexp = piece.logsumexp.at(y + t, x + i);
        logsumexp[0] = most[t][i], logsumexp[1] = rest[i];
      }
    }
  }
  return columns.count;
}

// Prefetches where a piece begins; the loops over it prefetch the rest.
template <typename In>
void prefetch_piece(const Piece<In>& piece) {
  for (const auto* map : {&piece.key, &piece.value}) {
    prefetch(*map, piece.first_row(), piece.first_col(), piece.key_cols(), piece.dim);
  }
  prefetch_tile(piece, piece.query, piece.y_begin, piece.x_begin);
}

template <typename In>
int64_t forward(const Piece<In>& piece, Compute<In>* memory) {
  Arena<Compute<In>> arena{memory};
  const auto keys = make_planes(piece, arena);
  const Values<In> values(piece, arena);
  if (!memory) {
    ForwardScratch<In, kLanes<Compute<In>>>(piece, arena);
    return arena.used;
  }
  fill_planes(piece, piece.key, keys);
  if constexpr (has_pairs<In>) {
    for (int64_t u = 0; u < piece.key_rows(); ++u) {
      pair_channels<kLanes<Compute<In>>>(keys.data + u * keys.row, num_planes(piece.dim),
                                         keys.plane, piece.key_cols());
    }
  }
  values.pack_piece(piece);
  for_each_columns(piece, [&](int64_t x, auto lanes) MMLOCALATTN_LAMBDA {
    auto rest = arena;
    return forward_columns<lanes>(piece, x, keys, values, ForwardScratch<In, lanes>(piece, rest));
  });
  return arena.used;
}

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA

#endif
