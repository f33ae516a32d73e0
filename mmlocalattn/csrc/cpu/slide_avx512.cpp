// Kernels for AVX-512 (F, BW, DQ, VL).
#include <cstdint>
#include <utility>

#include "slide.h"

#ifdef MMLOCALATTN_X86

#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#define MMLOCALATTN_ISA avx512
#define MMLOCALATTN_VECTOR_BYTES 64
#include "slide_isa.h"

namespace mmlocalattn {
namespace cpu {

template <>
SlideKernels<float> slide_kernels_avx512() {
  return avx512::make_slide_kernels<float>();
}

template <>
SlideKernels<double> slide_kernels_avx512() {
  return avx512::make_slide_kernels<double>();
}

template <>
SlideKernels<BFloat16> slide_kernels_avx512() {
  return avx512::make_slide_kernels<BFloat16>();
}

}  // namespace cpu
}  // namespace mmlocalattn

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif  // MMLOCALATTN_X86
