// Row kernels for 16-byte vectors, which every x86-64 and aarch64 has.
#include <cstdint>
#include <utility>

#include "neighborhood.h"

#define MMLOCALATTN_ISA portable
#define MMLOCALATTN_VECTOR_BYTES 16
#include "neighborhood_rows.h"

namespace mmlocalattn {
namespace cpu {

template <>
RowKernels<float> row_kernels_portable() {
  return portable::row_kernels<float>();
}

template <>
RowKernels<double> row_kernels_portable() {
  return portable::row_kernels<double>();
}

}  // namespace cpu
}  // namespace mmlocalattn
