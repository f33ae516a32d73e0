// Interface between the CPU operator (tensors, threads) and the kernels for one instruction set.
#pragma once

#include "maps.h"

namespace mmlocalattn {
namespace cpu {

// One piece of a problem: rows [y_begin, y_end) of some heads of an image. The heads are neighbors
// in memory, so that a vector of a map has their channels side by side.
template <typename T>
struct StandAlonePiece {
  int64_t height, width;  // of the map
  int64_t kernel_rows, kernel_cols;
  bool zero_padding;
  int64_t heads, dim;  // of each head
  int64_t y_begin, y_end;
  Map<const T> query, key, value;  // the logits are in base 2: query's factor has log2(e)
  // (heads, kernel_rows, dim / 2) and (heads, kernel_cols, dim - dim / 2)
  const Compute<T>*row_embedding, *column_embedding;
  Map<T> output;  // forward only
  // Of head n: logsumexp[n]
  Grid<Compute<T>> logsumexp;
  // Backward only. Query, key and value have gradients in the rows of the piece alone.
  Map<const T> grad_output;
  Map<T> grad_query, grad_key, grad_value;
  Compute<T>*grad_row_embedding, *grad_column_embedding;  // the piece's contributions

  MMLOCALATTN_HOST_DEVICE int64_t channels() const { return heads * dim; }
  MMLOCALATTN_HOST_DEVICE int64_t half() const { return dim / 2; }
};

template <typename T>
struct StandAloneKernels {
  // Values of scratch that the functions below need, aligned to kVectorBytes.
  int64_t (*forward_scratch)(const StandAlonePiece<T>&);
  int64_t (*backward_scratch)(const StandAlonePiece<T>&);
  void (*forward)(const StandAlonePiece<T>&, Compute<T>* scratch);
  void (*backward)(const StandAlonePiece<T>&, Compute<T>* scratch);
};

// The kernels of each instruction set, for float, double and BFloat16.
template <typename T>
StandAloneKernels<T> stand_alone_portable();
#ifdef MMLOCALATTN_X86
template <typename T>
StandAloneKernels<T> stand_alone_avx2();
template <typename T>
StandAloneKernels<T> stand_alone_avx512();
#endif

}  // namespace cpu
}  // namespace mmlocalattn
