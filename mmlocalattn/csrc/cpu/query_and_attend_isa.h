// The kernels of query_and_attend for one instruction set, see query_and_attend.h.
#pragma once

#include "query_and_attend_delta_isa.h"
#include "query_and_attend_positions_isa.h"

namespace mmlocalattn {
namespace cpu {
namespace MMLOCALATTN_ISA {
namespace {

template <typename T>
int64_t scratch_size(const WindowPiece<T>& piece) {
  const Area output = output_area(piece);
  const DeltaScratch<T> windows(piece, input_area(piece, output), output, nullptr);
  const PositionScratch<T> positions(piece, position_area(piece), window_area(piece), nullptr);
  return larger(windows.arena.used, positions.arena.used);
}

template <typename T>
WindowKernels<T> make_window_kernels() {
  return {scratch_size<T>, forward<T>, backward_windows<T>, backward_positions<T>};
}

}  // namespace
}  // namespace MMLOCALATTN_ISA
}  // namespace cpu
}  // namespace mmlocalattn
