// Pairs of bfloat16 in 32-bit lanes, for instruction sets that multiply and add both at once
// (MMLOCALATTN_PAIRS). A pair holds two channels of a query or key, two neighboring columns
// of a value, or the weights of two taps; the first is the low half.
#if defined(MMLOCALATTN_SIMD_PAIRS_H) == defined(MMLOCALATTN_TOGGLE)
#ifdef MMLOCALATTN_SIMD_PAIRS_H
#undef MMLOCALATTN_SIMD_PAIRS_H
#else
#define MMLOCALATTN_SIMD_PAIRS_H
#endif

#include "cpu/simd/layout.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

// Whether forward works on pairs for maps of this type.
template <typename In>
constexpr bool has_pairs = MMLOCALATTN_PAIRS && std::is_same_v<In, BFloat16>;

// sum + a * b: of numbers, or of the pairs in each lane.
template <bool kPairs, int N, typename V>
MMLOCALATTN_INLINE V multiply_add(V sum, V a, V b) {
  static_assert(!kPairs || N >= 8, "no instruction for pairs in so short a vector");
#if MMLOCALATTN_PAIRS
  if constexpr (kPairs && N == 16) {
    return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  } else if constexpr (kPairs) {
    return (V)_mm256_dpbf16_ps((__m256)sum, (__m256bh)a, (__m256bh)b);
  }
#endif
  return sum + a * b;
}

// Rounds to the nearest bfloat16, half away from zero.
template <int N>
MMLOCALATTN_INLINE Vec<float, N> make_pairs(Vec<float, N> low, Vec<float, N> high) {
  using Wide = typename Bits<N>::wide;
  return (Vec<float, N>)((((Wide)low + 0x8000) >> 16) | (((Wide)high + 0x8000) & 0xffff0000));
}

// Planes of channels (planes, step) to planes of pairs, `columns` of each, in place.
template <int N>
void pair_channels(float* planes, int64_t num_planes, int64_t step, int64_t columns) {
  for (int64_t d = 0; d < num_planes; d += 2) {
    for (int64_t x = 0; x < columns; x += N) {
      const auto low = load<N>(planes + d * step + x), high = load<N>(planes + (d + 1) * step + x);
      store(planes + d / 2 * step + x, make_pairs<N>(low, high));
    }
  }
}

// Planes of channels to planes of pairs of a column and the next one, in place; behind the last
// column there is 0.
template <int N>
void pair_columns(float* planes, int64_t num_planes, int64_t step, int64_t columns) {
  for (int64_t d = 0; d < num_planes; ++d) {
    float* plane = planes + d * step;
    plane[columns] = 0;
    for (int64_t x = 0; x < columns; x += N) {
      store(plane + x, make_pairs<N>(load<N>(plane + x), load<N>(plane + x + 1)));
    }
  }
}

// Weights of a row of taps to weights of pairs of taps, in place; behind the last tap there is 0.
template <int N>
MMLOCALATTN_INLINE void pair_taps(float* weights, int64_t taps) {
  for (int64_t b = 0; b < taps; b += 2) {
    const auto next = b + 1 < taps ? load<N>(weights + (b + 1) * N) : Vec<float, N>{};
    store(weights + b / 2 * N, make_pairs<N>(load<N>(weights + b * N), next));
  }
}

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA

#endif
