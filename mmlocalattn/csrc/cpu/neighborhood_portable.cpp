// Kernels for 16-byte vectors, which every x86-64 and aarch64 has.
#include <cstdint>
#include <utility>

#include "neighborhood.h"

#define MMLOCALATTN_ISA portable
#define MMLOCALATTN_VECTOR_BYTES 16
#include "layout_isa.h"
#include "neighborhood_isa.h"

namespace mmlocalattn {
namespace cpu {

template <>
Kernels<float> kernels_portable() {
  return {portable::lanes<float>,           &portable::forward<float>,
          &portable::backward_query<float>, &portable::backward_key_value<float>,
          &portable::pack<float>,           &portable::unpack<float>};
}

template <>
Kernels<double> kernels_portable() {
  return {portable::lanes<double>,           &portable::forward<double>,
          &portable::backward_query<double>, &portable::backward_key_value<double>,
          &portable::pack<double>,           &portable::unpack<double>};
}

}  // namespace cpu
}  // namespace mmlocalattn
