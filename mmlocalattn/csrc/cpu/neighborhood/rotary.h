// Rotation of maps by rotary tables, see RotaryRow.
#if defined(MMLOCALATTN_NEIGHBORHOOD_ROTARY_H) == defined(MMLOCALATTN_TOGGLE)
#ifdef MMLOCALATTN_NEIGHBORHOOD_ROTARY_H
#undef MMLOCALATTN_NEIGHBORHOOD_ROTARY_H
#else
#define MMLOCALATTN_NEIGHBORHOOD_ROTARY_H
#endif

#include "cpu/neighborhood/piece.h"
#include "cpu/simd/layout.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

using neighborhood::RotaryRow;

// (-x[1], x[0], ...) for adjacent pairs of lanes.
template <typename T, int N, int... kLane>
MMLOCALATTN_INLINE Vec<T, N> quarter_turn(Vec<T, N> x, std::integer_sequence<int, kLane...>) {
  const Vec<T, N> sign{(kLane % 2 ? T(1) : T(-1))...};
  return shuffle<T, N>(x, x, std::integer_sequence<int, (kLane ^ 1)...>()) * sign;
}

template <typename In, typename Out>
void rotate(const RotaryRow<In, Out>& row) {
  using T = Compute<In>;
  constexpr int N = kLanes<T>;
  const auto all = std::make_integer_sequence<int, N>();
  for (int64_t x = 0; x < row.width; ++x) {
    for (int64_t d = 0; d < row.dim; d += N) {
      const int64_t count = row.dim - d, angle = x * row.dim + d;
      const auto sin = load_some<N>(row.sin + angle, count),
                 cos = load_some<N>(row.cos + angle, count);
      const auto value = load_some<N>(row.input + x * row.input_step + d, count);
      const auto rotated = row.transpose ? value * cos - quarter_turn<T, N>(value * sin, all)
                                         : value * cos + quarter_turn<T, N>(value, all) * sin;
      store_some<N>(row.output + x * row.output_step + d, rotated, count);
    }
  }
}

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA

#endif
