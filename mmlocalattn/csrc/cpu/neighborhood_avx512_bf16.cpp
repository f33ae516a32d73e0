// Kernels for AVX-512 with products of bfloat16 pairs (AVX512_BF16), for bfloat16 maps.
#include <cstdint>
#include <utility>

#include "neighborhood.h"

#ifdef MMLOCALATTN_X86

#ifdef __clang__
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#define MMLOCALATTN_ISA avx512_bf16
#define MMLOCALATTN_BFLOAT16_DOT
#define MMLOCALATTN_VECTOR_BYTES 64
#include "neighborhood_isa.h"

namespace mmlocalattn {
namespace cpu {

Kernels<BFloat16> kernels_avx512_bf16() { return avx512_bf16::make_kernels<BFloat16>(); }

}  // namespace cpu
}  // namespace mmlocalattn

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif  // MMLOCALATTN_X86
