// Kernels for 16-byte vectors, which every x86-64 and aarch64 has.
#include <cstdint>
#include <utility>

#include "stand_alone.h"

#define MMLOCALATTN_ISA portable
#define MMLOCALATTN_VECTOR_BYTES 16
#include "stand_alone_isa.h"

namespace mmlocalattn {
namespace cpu {

template <>
StandAloneKernels<float> stand_alone_portable() {
  return portable::make_stand_alone_kernels<float>();
}

template <>
StandAloneKernels<double> stand_alone_portable() {
  return portable::make_stand_alone_kernels<double>();
}

template <>
StandAloneKernels<BFloat16> stand_alone_portable() {
  return portable::make_stand_alone_kernels<BFloat16>();
}

}  // namespace cpu
}  // namespace mmlocalattn
