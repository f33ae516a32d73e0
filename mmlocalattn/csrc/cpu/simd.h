// Vectors of one instruction set for the files that neighborhood_<isa>.cpp includes. They are the
// compiler's own vector types, so that one source serves every instruction set.
//
// No function of the standard library is used in these files: an inline function compiled for a
// newer instruction set must not be the copy that the linker keeps for everybody.
#pragma once

#include <cstdint>
#include <utility>

#include "neighborhood.h"

namespace mmlocalattn {
namespace cpu {
namespace MMLOCALATTN_ISA {
namespace {

#define MMLOCALATTN_INLINE inline __attribute__((always_inline))

template <typename T>
struct Vector;
template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(MMLOCALATTN_VECTOR_BYTES)));
  typedef float unaligned
      __attribute__((vector_size(MMLOCALATTN_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t integer;
  typedef integer index __attribute__((vector_size(MMLOCALATTN_VECTOR_BYTES)));
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(MMLOCALATTN_VECTOR_BYTES)));
  typedef double unaligned
      __attribute__((vector_size(MMLOCALATTN_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t integer;
  typedef integer index __attribute__((vector_size(MMLOCALATTN_VECTOR_BYTES)));
};

template <typename T>
using Vec = typename Vector<T>::type;

template <typename T>
constexpr int lanes = MMLOCALATTN_VECTOR_BYTES / sizeof(T);

template <typename T>
MMLOCALATTN_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Vector<T>::unaligned*>(p);
}

template <typename T>
MMLOCALATTN_INLINE void store(T* p, Vec<T> x) {
  *reinterpret_cast<typename Vector<T>::unaligned*>(p) = x;
}

// Lane i of the result is lane kIndex[i] of (a, b) side by side.
template <typename T, int... kIndex>
MMLOCALATTN_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b, std::integer_sequence<int, kIndex...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, kIndex...);
#else
  return __builtin_shuffle(a, b, typename Vector<T>::index{kIndex...});
#endif
}

template <typename T>
using Index = typename Vector<T>::index;

// Lane i of the result is lane index[i] of x.
template <typename T>
MMLOCALATTN_INLINE Vec<T> permute(Vec<T> x, Index<T> index) {
#ifdef __clang__
  Vec<T> result;
  for (int i = 0; i < lanes<T>; ++i) result[i] = x[index[i]];
  return result;
#else
  return __builtin_shuffle(x, index);
#endif
}

MMLOCALATTN_INLINE Vec<double> exp(Vec<double> x) {
  Vec<double> y;
  for (int i = 0; i < lanes<double>; ++i) y[i] = __builtin_exp(x[i]);
  return y;
}

// Relative error 2e-7 for x in [-87, 88]; below that it is 1.6e-38, NaN stays NaN. exp(x) = 2^n
// exp(r) with n = round(x / ln 2) and a polynomial of Cephes' expf for exp(r).
MMLOCALATTN_INLINE Vec<float> exp(Vec<float> x) {
  using I = typename Vector<float>::index;
  const Vec<float> low = Vec<float>{} - 87.0f, high = Vec<float>{} + 88.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const Vec<float> round = Vec<float>{} + 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer
  const Vec<float> shifted = x * 1.44269504088896341f + round;
  const Vec<float> n = shifted - round;
  const Vec<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const I power = (((I)shifted - (I)round) + 127) << 23;
  return p * (Vec<float>)power;
}

MMLOCALATTN_INLINE float log(float x) { return __builtin_logf(x); }
MMLOCALATTN_INLINE double log(double x) { return __builtin_log(x); }

template <typename T>
MMLOCALATTN_INLINE Vec<T> max(Vec<T> a, Vec<T> b) {
  return a < b ? b : a;
}

template <typename T>
MMLOCALATTN_INLINE Vec<T> log(Vec<T> x) {
  for (int i = 0; i < lanes<T>; ++i) x[i] = log(x[i]);
  return x;
}

// Keeps x in a register: the compiler would rather load it again for its second use.
template <typename T>
MMLOCALATTN_INLINE void pin(Vec<T>& x) {
#ifdef MMLOCALATTN_X86
  asm("" : "+v"(x));
#else
  (void)x;
#endif
}

// Transposes a square of vectors: swaps the halves of ever larger squares.
template <int kStep, typename T, int... kLane>
MMLOCALATTN_INLINE void transpose_step(Vec<T> (&x)[lanes<T>],
                                       std::integer_sequence<int, kLane...>) {
  constexpr int kLanes = lanes<T>;
  for (int i = 0; i < kLanes; ++i) {
    if (i & kStep) continue;
    const Vec<T> a = x[i], b = x[i + kStep];
    x[i] = shuffle<T>(
        a, b, std::integer_sequence<int, (kLane & kStep ? kLanes + kLane - kStep : kLane)...>());
    x[i + kStep] = shuffle<T>(
        a, b, std::integer_sequence<int, (kLane & kStep ? kLanes + kLane : kLane + kStep)...>());
  }
}

template <typename T, int kStep = 1>
MMLOCALATTN_INLINE void transpose(Vec<T> (&x)[lanes<T>]) {
  transpose_step<kStep, T>(x, std::make_integer_sequence<int, lanes<T>>());
  if constexpr (2 * kStep < lanes<T>) transpose<T, 2 * kStep>(x);
}

}  // namespace
}  // namespace MMLOCALATTN_ISA
}  // namespace cpu
}  // namespace mmlocalattn
