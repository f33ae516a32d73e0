// What the kernels of stand-alone self-attention get of a call: plain types, no tensors.
#pragma once

#include "cpu/maps.h"

namespace mmlocalattn::cpu::stand_alone {

// One piece of a problem: rows [y_begin, y_end) of some heads of an image. The heads are neighbors
// in memory, so that a vector of a map has their channels side by side.
template <typename T>
struct Piece {
  int64_t height, width;  // of the map
  int64_t kernel_rows, kernel_cols;
  bool zero_padding;
  int64_t heads, dim;  // of each head
  int64_t y_begin, y_end;
  Map<const T> query, key, value;  // query's factor is the scale
  // (heads, kernel_rows, dim / 2) and (heads, kernel_cols, dim - dim / 2)
  const Compute<T>*row_embedding, *column_embedding;
  Map<T> output;               // forward only
  Grid<Compute<T>> logsumexp;  // (heads, 2), see log_sum_exp in ops/_softmax.py
  // Backward only. Query, key and value have gradients in the rows of the piece alone.
  Map<const T> grad_output;
  Map<T> grad_query, grad_key, grad_value;
  Compute<T>*grad_row_embedding, *grad_column_embedding;  // the piece's contributions

  MMLOCALATTN_HOST_DEVICE int64_t channels() const { return heads * dim; }
  MMLOCALATTN_HOST_DEVICE int64_t half() const { return dim / 2; }
};

template <typename T>
struct Kernels {
  Kernel<Piece<T>, T> forward, backward;
};

// The kernels for the instruction set in use; T is float, double or BFloat16. foreach_isa.h makes
// it of kernels.cpp.
template <typename T>
const Kernels<T>& kernels();

}  // namespace mmlocalattn::cpu::stand_alone
