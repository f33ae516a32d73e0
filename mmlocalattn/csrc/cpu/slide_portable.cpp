// Kernels for 16-byte vectors, which every x86-64 and aarch64 has.
#include <cstdint>
#include <utility>

#include "slide.h"

#define MMLOCALATTN_ISA portable
#define MMLOCALATTN_VECTOR_BYTES 16
#include "slide_isa.h"

namespace mmlocalattn {
namespace cpu {

template <>
SlideKernels<float> slide_kernels_portable() {
  return portable::make_slide_kernels<float>();
}

template <>
SlideKernels<double> slide_kernels_portable() {
  return portable::make_slide_kernels<double>();
}

template <>
SlideKernels<BFloat16> slide_kernels_portable() {
  return portable::make_slide_kernels<BFloat16>();
}

}  // namespace cpu
}  // namespace mmlocalattn
