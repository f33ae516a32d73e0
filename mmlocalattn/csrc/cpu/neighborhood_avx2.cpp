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
#include "layout_isa.h"
#include "neighborhood_isa.h"

namespace mmlocalattn {
namespace cpu {

template <>
Kernels<float> kernels_avx2() {
  return {avx2::lanes<float>,           &avx2::forward<float>,
          &avx2::backward_query<float>, &avx2::backward_key_value<float>,
          &avx2::pack<float>,           &avx2::unpack<float>};
}

template <>
Kernels<double> kernels_avx2() {
  return {avx2::lanes<double>,           &avx2::forward<double>,
          &avx2::backward_query<double>, &avx2::backward_key_value<double>,
          &avx2::pack<double>,           &avx2::unpack<double>};
}

}  // namespace cpu
}  // namespace mmlocalattn

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif  // MMLOCALATTN_X86
