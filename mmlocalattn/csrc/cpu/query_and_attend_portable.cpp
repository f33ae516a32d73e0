// Kernels for 16-byte vectors, which every x86-64 and aarch64 has.
#include <cstdint>
#include <utility>

#include "query_and_attend.h"

#define MMLOCALATTN_ISA portable
#define MMLOCALATTN_VECTOR_BYTES 16
#include "query_and_attend_isa.h"

namespace mmlocalattn {
namespace cpu {

template <>
WindowKernels<float> window_kernels_portable() {
  return portable::make_window_kernels<float>();
}

template <>
WindowKernels<double> window_kernels_portable() {
  return portable::make_window_kernels<double>();
}

template <>
WindowKernels<BFloat16> window_kernels_portable() {
  return portable::make_window_kernels<BFloat16>();
}

}  // namespace cpu
}  // namespace mmlocalattn
