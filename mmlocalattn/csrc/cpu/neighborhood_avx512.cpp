// Kernels for AVX-512 (F, BW, DQ, VL).
#include <cstdint>
#include <utility>

#include "neighborhood.h"

#ifdef MMLOCALATTN_X86

#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#define MMLOCALATTN_ISA avx512
#define MMLOCALATTN_VECTOR_BYTES 64
#include "layout_isa.h"
#include "neighborhood_isa.h"

namespace mmlocalattn {
namespace cpu {

template <>
Kernels<float> kernels_avx512() {
  return {avx512::lanes<float>,           &avx512::forward<float>,
          &avx512::backward_query<float>, &avx512::backward_key_value<float>,
          &avx512::pack<float>,           &avx512::unpack<float>};
}

template <>
Kernels<double> kernels_avx512() {
  return {avx512::lanes<double>,           &avx512::forward<double>,
          &avx512::backward_query<double>, &avx512::backward_key_value<double>,
          &avx512::pack<double>,           &avx512::unpack<double>};
}

}  // namespace cpu
}  // namespace mmlocalattn

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif  // MMLOCALATTN_X86
