// Kernels for AVX2 and FMA.
#include <cstdint>
#include <utility>

#include "neighborhood.h"

#ifdef MMLOCALATTN_X86

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define MMLOCALATTN_ISA avx2
#define MMLOCALATTN_VECTOR_BYTES 32
#include "neighborhood_isa.h"

namespace mmlocalattn {
namespace cpu {

template <>
Kernels<float> kernels_avx2() {
  return avx2::make_kernels<float>();
}

template <>
Kernels<double> kernels_avx2() {
  return avx2::make_kernels<double>();
}

template <>
Kernels<BFloat16> kernels_avx2() {
  return avx2::make_kernels<BFloat16>();
}

}  // namespace cpu
}  // namespace mmlocalattn

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif  // MMLOCALATTN_X86
