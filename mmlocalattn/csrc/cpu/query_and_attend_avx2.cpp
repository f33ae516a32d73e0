// Kernels for AVX2 and FMA.
#include <cstdint>
#include <utility>

#include "query_and_attend.h"

#ifdef MMLOCALATTN_X86

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define MMLOCALATTN_ISA avx2
#define MMLOCALATTN_VECTOR_BYTES 32
#include "query_and_attend_isa.h"

namespace mmlocalattn {
namespace cpu {

template <>
WindowKernels<float> window_kernels_avx2() {
  return avx2::make_window_kernels<float>();
}

template <>
WindowKernels<double> window_kernels_avx2() {
  return avx2::make_window_kernels<double>();
}

template <>
WindowKernels<BFloat16> window_kernels_avx2() {
  return avx2::make_window_kernels<BFloat16>();
}

}  // namespace cpu
}  // namespace mmlocalattn

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif  // MMLOCALATTN_X86
