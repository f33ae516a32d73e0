// Vectors of one instruction set: the compiler's own vector types, so that one source serves all.
#if defined(MMLOCALATTN_SIMD_VECTOR_H) == defined(MMLOCALATTN_TOGGLE)
#ifdef MMLOCALATTN_SIMD_VECTOR_H
#undef MMLOCALATTN_SIMD_VECTOR_H
#else
#define MMLOCALATTN_SIMD_VECTOR_H
#endif

#include "cpu/foreach_isa.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

template <int kBytes>
struct Integer;
template <>
struct Integer<4> {
  using type = int32_t;
};
template <>
struct Integer<8> {
  using type = int64_t;
};

template <typename T, int N>
struct Vector {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
  using integer = typename Integer<sizeof(T)>::type;
  typedef integer index __attribute__((vector_size(N * sizeof(T))));
};

// N lanes of T, and as many integers of its size.
template <typename T, int N>
using Vec = typename Vector<T, N>::type;
template <typename T, int N>
using Index = typename Vector<T, N>::index;

// Lanes of a whole vector.
template <typename T>
constexpr int kLanes = MMLOCALATTN_VECTOR_BYTES / sizeof(T);

template <int N, typename T>
MMLOCALATTN_INLINE Vec<T, N> load(const T* p) {
  Vec<T, N> x;
  __builtin_memcpy(&x, p, sizeof(x));
  return x;
}

template <typename T, typename V>
MMLOCALATTN_INLINE void store(T* p, V x) {
  __builtin_memcpy(p, &x, sizeof(x));
}

// Minus 0, not plus: x + 0 is an addition, since it makes 0 of -0.
template <int N, typename T>
MMLOCALATTN_INLINE Vec<T, N> fill(T x) {
  return x - Vec<T, N>{};
}

// Lane i of the result is lane kIndex[i] of (a, b) side by side.
template <typename T, int N, int... kIndex>
MMLOCALATTN_INLINE Vec<T, N> shuffle(Vec<T, N> a, Vec<T, N> b,
                                     std::integer_sequence<int, kIndex...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, kIndex...);
#else
  return __builtin_shuffle(a, b, Index<T, N>{kIndex...});
#endif
}

// Lane i of the result is lane index[i] of x. Clang has no builtin for it and makes a detour
// through memory of a loop.
template <typename T, int N>
MMLOCALATTN_INLINE Vec<T, N> permute(Vec<T, N> x, Index<T, N> index) {
#ifndef __clang__
  return __builtin_shuffle(x, index);
#else
#if MMLOCALATTN_VECTOR_BYTES >= 32
  constexpr int kBytes = N * sizeof(T);
  using I [[maybe_unused]] = Index<T, N>;
#if MMLOCALATTN_VECTOR_BYTES == 64
  if constexpr (kBytes == 64 && sizeof(T) == 4) {
    return (Vec<T, N>)_mm512_permutexvar_ps((__m512i)index, (__m512)x);
  } else if constexpr (kBytes == 64) {
    return (Vec<T, N>)_mm512_permutexvar_pd((__m512i)index, (__m512d)x);
  } else if constexpr (kBytes == 32 && sizeof(T) == 8) {
    return (Vec<T, N>)_mm256_permutexvar_pd((__m256i)index, (__m256d)x);
  }
#endif
  if constexpr (kBytes == 32 && sizeof(T) == 4) {
    return (Vec<T, N>)_mm256_permutevar8x32_ps((__m256)x, (__m256i)index);
  } else if constexpr (kBytes == 32) {  // halves of the lanes, 2 i and 2 i + 1
    const I halves = (index << 1) | (index << 33) | (I{} + (int64_t{1} << 32));
    return (Vec<T, N>)_mm256_permutevar8x32_ps((__m256)x, (__m256i)halves);
  } else if constexpr (kBytes == 16 && sizeof(T) == 4) {
    return (Vec<T, N>)_mm_permutevar_ps((__m128)x, (__m128i)index);
  } else if constexpr (kBytes == 16) {  // bit 1 chooses
    return (Vec<T, N>)_mm_permutevar_pd((__m128d)x, (__m128i)(index << 1));
  }
#endif
  Vec<T, N> result;
  for (int i = 0; i < N; ++i) result[i] = x[index[i]];
  return result;
#endif
}

// a > b ? a : b, of which GCC makes a comparison and a blend where one instruction does it.
template <typename V>
MMLOCALATTN_INLINE V max(V a, V b) {
#ifdef MMLOCALATTN_X86
  if constexpr (std::is_same_v<V, Vec<float, 4>>) return (V)_mm_max_ps((__m128)a, (__m128)b);
#if MMLOCALATTN_VECTOR_BYTES >= 32
  if constexpr (std::is_same_v<V, Vec<float, 8>>) return (V)_mm256_max_ps((__m256)a, (__m256)b);
#endif
#if MMLOCALATTN_VECTOR_BYTES >= 64
  if constexpr (std::is_same_v<V, Vec<float, 16>>)
    return (V)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
#endif
#endif
  return a > b ? a : b;
}

template <typename T, int N>
MMLOCALATTN_INLINE T sum_lanes(Vec<T, N> x) {
  T sum = 0;
  for (int i = 0; i < N; ++i) sum += x[i];
  return sum;
}

// e^x for x < 88. Relative error 1.8e-7 for fp32 where products are fused or x is small; below
// -87.3365 it is 1.2e-38; NaN stays NaN.
template <int N>
MMLOCALATTN_INLINE Vec<float, N> exp(Vec<float, N> x) {
  constexpr float kFactor = kLog2E;                  // 2^(x kFactor)
  x = max(fill<N>(-87.3365f), x);                    // a NaN is the second operand
  const Vec<float, N> round = fill<N>(12582912.0f);  // 1.5 * 2^23: adding it leaves an integer
  const Vec<float, N> shifted = x * kFactor + round;
  const Vec<float, N> r = x * kFactor - (shifted - round);  // in [-0.5, 0.5]
  // Minimax polynomial of degree 5 that is exact at 0.
  Vec<float, N> p = r * 1.3264727e-3f + 9.6715127e-3f;
  p = p * r + 5.5507337e-2f;
  p = p * r + 2.4022242e-1f;
  p = p * r + 6.9314698e-1f;
  p = p * r + 1.0f;
  using I = Index<float, N>;
  return (Vec<float, N>)((I)p + ((I)shifted << 23));
}

template <int N>
MMLOCALATTN_INLINE Vec<double, N> exp(Vec<double, N> x) {
#ifdef __clang__
  return __builtin_elementwise_exp(x);
#else
  for (int i = 0; i < N; ++i) x[i] = __builtin_exp(x[i]);
  return x;
#endif
}

// ln(x) of positive normal numbers. Absolute error 2e-7 beside that of rounding; NaN stays NaN.
template <int N>
MMLOCALATTN_INLINE Vec<float, N> log(Vec<float, N> x) {
  using I = Index<float, N>;
  // x = m 2^e with m in [sqrt(1/2), sqrt(2)), and ln m = 2 artanh((m - 1) / (m + 1)).
  const I e = ((I)x - 0x3f3504f3) >> 23;
  const Vec<float, N> m = (Vec<float, N>)((I)x - (e << 23));
  const Vec<float, N> f = (m - 1.0f) / (m + 1.0f), f2 = f * f;
  Vec<float, N> p = f2 * 0.32059894f + 0.41219858f;  // of log2 m / f
  p = p * f2 + 0.57707802f;
  p = p * f2 + 0.96179669f;
  p = p * f2 + 2.8853901f;
  return (p * f + __builtin_convertvector(e, Vec<float, N>) + (x - x)) * float(kLn2);
}

template <int N>
MMLOCALATTN_INLINE Vec<double, N> log(Vec<double, N> x) {
#ifdef __clang__
  return __builtin_elementwise_log(x);
#else
  for (int i = 0; i < N; ++i) x[i] = __builtin_log(x[i]);
  return x;
#endif
}

// Keeps x in a register: the compiler would rather load it again for its second use.
template <typename V>
MMLOCALATTN_INLINE void pin(V& x) {
#ifdef MMLOCALATTN_X86
  asm("" : "+v"(x));
#else
  (void)x;
#endif
}

// Transposes a square of vectors: swaps the halves of ever larger squares.
template <int kStep, typename T, int N, int... kLane>
MMLOCALATTN_INLINE void transpose_step(Vec<T, N> (&x)[N], std::integer_sequence<int, kLane...>) {
  for (int i = 0; i < N; ++i) {
    if (i & kStep) continue;
    const Vec<T, N> a = x[i], b = x[i + kStep];
    x[i] = shuffle<T, N>(
        a, b, std::integer_sequence<int, (kLane & kStep ? N + kLane - kStep : kLane)...>());
    x[i + kStep] = shuffle<T, N>(
        a, b, std::integer_sequence<int, (kLane & kStep ? N + kLane : kLane + kStep)...>());
  }
}

// The first two steps at once: squares of 4. Interleaving is one instruction for numbers, and for
// pairs of them, where a step of single numbers takes up to three.
template <typename T, int N, int... kLane>
MMLOCALATTN_INLINE void transpose_fours(Vec<T, N> (&x)[N], std::integer_sequence<int, kLane...>) {
  using Low = std::integer_sequence<int, (kLane & ~3) + (kLane & 3) / 2 + kLane % 2 * N...>;
  using High = std::integer_sequence<int, (kLane & ~3) + (kLane & 3) / 2 + kLane % 2 * N + 2 ...>;
  using LowPairs = std::integer_sequence<int, (kLane & ~2) + (kLane & 2) / 2 * N...>;
  using HighPairs = std::integer_sequence<int, (kLane & ~2) + (kLane & 2) / 2 * N + 2 ...>;
  for (int i = 0; i < N; i += 4) {
    const Vec<T, N> low = shuffle<T, N>(x[i], x[i + 1], Low()),
                    high = shuffle<T, N>(x[i], x[i + 1], High()),
                    next_low = shuffle<T, N>(x[i + 2], x[i + 3], Low()),
                    next_high = shuffle<T, N>(x[i + 2], x[i + 3], High());
    x[i] = shuffle<T, N>(low, next_low, LowPairs());
    x[i + 1] = shuffle<T, N>(low, next_low, HighPairs());
    x[i + 2] = shuffle<T, N>(high, next_high, LowPairs());
    x[i + 3] = shuffle<T, N>(high, next_high, HighPairs());
  }
}

template <typename T, int N, int kStep = 1>
MMLOCALATTN_INLINE void transpose(Vec<T, N> (&x)[N]) {
  constexpr auto lanes = std::make_integer_sequence<int, N>();
  if constexpr (kStep == 1 && sizeof(T) == 4 && N >= 4) {
    transpose_fours<T, N>(x, lanes);
    if constexpr (N > 4) transpose<T, N, 4>(x);
  } else {
    transpose_step<kStep, T, N>(x, lanes);
    if constexpr (2 * kStep < N) transpose<T, N, 2 * kStep>(x);
  }
}

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA

#endif
