// Kernels for AVX-512 (F, BW, DQ, VL).
#include <cstdint>
#include <utility>

#include "stand_alone.h"

#ifdef MMLOCALATTN_X86

#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#define MMLOCALATTN_ISA avx512
#define MMLOCALATTN_VECTOR_BYTES 64
#include "stand_alone_isa.h"

namespace mmlocalattn {
namespace cpu {

template <>
StandAloneKernels<float> stand_alone_avx512() {
  return avx512::make_stand_alone_kernels<float>();
}

template <>
StandAloneKernels<double> stand_alone_avx512() {
  return avx512::make_stand_alone_kernels<double>();
}

template <>
StandAloneKernels<BFloat16> stand_alone_avx512() {
  return avx512::make_stand_alone_kernels<BFloat16>();
}

}  // namespace cpu
}  // namespace mmlocalattn

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif  // MMLOCALATTN_X86
