// Kernels for 16-byte vectors, which every x86-64 and aarch64 has.
#include <cstdint>
#include <utility>

#include "neighborhood.h"

#define MMLOCALATTN_ISA portable
#define MMLOCALATTN_VECTOR_BYTES 16
#include "neighborhood_isa.h"

namespace mmlocalattn {
namespace cpu {

template <>
Kernels<float> kernels_portable() {
  return portable::make_kernels<float>();
}

template <>
Kernels<double> kernels_portable() {
  return portable::make_kernels<double>();
}

template <>
Kernels<BFloat16> kernels_portable() {
  return portable::make_kernels<BFloat16>();
}

}  // namespace cpu
}  // namespace mmlocalattn
