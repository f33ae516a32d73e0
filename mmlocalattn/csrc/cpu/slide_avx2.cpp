// Kernels for AVX2 and FMA.
#include <cstdint>
#include <utility>

#include "slide.h"

#ifdef MMLOCALATTN_X86

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define MMLOCALATTN_ISA avx2
#define MMLOCALATTN_VECTOR_BYTES 32
#include "slide_isa.h"

namespace mmlocalattn {
namespace cpu {

template <>
SlideKernels<float> slide_kernels_avx2() {
  return avx2::make_slide_kernels<float>();
}

template <>
SlideKernels<double> slide_kernels_avx2() {
  return avx2::make_slide_kernels<double>();
}

template <>
SlideKernels<BFloat16> slide_kernels_avx2() {
  return avx2::make_slide_kernels<BFloat16>();
}

}  // namespace cpu
}  // namespace mmlocalattn

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif  // MMLOCALATTN_X86
