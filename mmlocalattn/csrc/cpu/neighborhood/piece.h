// What the kernels of neighborhood attention get of a call: plain types, no tensors.
//
// They work on dilation groups of one (batch, head): positions whose rows and columns are equal
// modulo the dilation. Inside a group rows and columns are counted by themselves and the dilation
// is 1.
#pragma once

#include "cpu/maps.h"

namespace mmlocalattn::cpu::neighborhood {

// Columns of a map: those of one dilation group, or of several narrow ones side by side, so that
// they fill the lanes of vectors.
struct ColumnAxis {
  int64_t length, kernel;
  const int64_t* column;        // in the map
  const int64_t* first_tap;     // of each; nondecreasing, the others follow it
  const int64_t* table_column;  // of the first tap in a relative position table
};

// One piece of an attention problem: queries [y_begin, y_end) x [x_begin, x_end).
template <typename T>
struct Piece {
  WindowAxis rows;  // of the dilation group; its dilation is 1
  ColumnAxis cols;
  int64_t dim;
  int64_t y_begin, y_end, x_begin, x_end;
  Map<const T> query, key, value;  // query's factor is the scale
  const Compute<T>* bias;          // (2 * rows.kernel - 1, 2 * cols.kernel - 1), or null
  Map<T> output;                   // backward reads it
  Grid<Compute<T>> logsumexp;      // two numbers, see log_sum_exp in ops/_softmax.py
  // Backward only.
  Map<const T> grad_output;
  Map<Compute<T>> grad_query;
  Map<T> rounded_grad_query;  // instead, if it has data
  // The piece's contributions to the gradients of its keys and values, (key_rows, grad_cols, 2,
  // padded_dim).
  Compute<T>* grad_key_value;
  Compute<T>* grad_bias;  // likewise to that of the bias, or null

  // Keys that the piece sees: from the first row and column, so many.
  MMLOCALATTN_HOST_DEVICE int64_t first_row() const { return rows.start(y_begin); }
  MMLOCALATTN_HOST_DEVICE int64_t first_col() const { return cols.first_tap[x_begin]; }
  MMLOCALATTN_HOST_DEVICE int64_t key_rows() const {
    return rows.start(y_end - 1) + rows.kernel - first_row();
  }
  MMLOCALATTN_HOST_DEVICE int64_t key_cols() const {
    return cols.first_tap[x_end - 1] + cols.kernel - first_col();
  }
  // One more than the keys: the kernels work on two at a time.
  MMLOCALATTN_HOST_DEVICE int64_t grad_cols() const { return key_cols() + 1; }
  MMLOCALATTN_HOST_DEVICE int64_t grad_size() const {
    return key_rows() * grad_cols() * 2 * padded_dim<T>(dim);
  }
};

// One row of a map of which adjacent pairs of channels are rotated: x cos + (-x[1], x[0], ...) sin,
// or by the transposed rotation. The tables are (width, dim).
template <typename In, typename Out>
struct RotaryRow {
  const In* input;
  Out* output;
  int64_t input_step, output_step;  // from one position to the next
  const Compute<In>*sin, *cos;
  int64_t width, dim;
  bool transpose;
};

template <typename T>
struct Kernels {
  Kernel<Piece<T>, T> forward, backward;
  // Brings the beginning of a piece to the caches.
  void (*prefetch)(const Piece<T>&);
  // Writes vectors that are `step` values apart, padded to padded_dim, to a row of a map.
  void (*write)(const Map<Compute<T>>&, int64_t y, int64_t num, int64_t dim,
                const Compute<T>* vectors, int64_t step);
  void (*write_rounded)(const Map<T>&, int64_t y, int64_t num, int64_t dim,
                        const Compute<T>* vectors, int64_t step);
  void (*rotate)(const RotaryRow<T, T>&);
  void (*rotate_gradient)(const RotaryRow<Compute<T>, T>&);
};

// The kernels for the instruction set in use; T is float, double or BFloat16. foreach_isa.h makes
// it of kernels.cpp.
template <typename T>
const Kernels<T>& kernels();

}  // namespace mmlocalattn::cpu::neighborhood
