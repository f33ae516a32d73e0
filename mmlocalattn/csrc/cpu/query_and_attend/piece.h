// What the kernels of query_and_attend get of a call: plain types, no tensors.
#pragma once

#include "cpu/maps.h"

namespace mmlocalattn::cpu::query_and_attend {

constexpr int64_t kMostKernel = 13, kMostTaps = kMostKernel * kMostKernel;

// Several vectors of unit stride at each position of a map: one for each head, or one of the heads'
// scores for each query.
template <typename T>
struct Vectors {
  T* data = nullptr;
  int64_t row = 0, column = 0, item = 0;
};

// What a query of a head has for each tap.
template <typename C>
struct TapTable {
  const C* bias;
  const C* bias_factor;  // e^bias
  const C* scale;
  const C* scale_factor;  // scale * e^bias
  C bias_range;           // from the smallest of 0 and the biases to the largest of them
};

// One piece of a problem: some heads of a part of a map. Forward it is rows [y_begin, y_end) and
// columns [x_begin, x_end) of the windows. The gradients of positions have rows of the map, and
// columns in steps of the stride: column x is that of the last window that may begin at or before
// the positions x * stride - low, ..., x * stride - low + stride - 1.
template <typename T>
struct Piece {
  using C = Compute<T>;

  StridedAxis rows, cols;
  int64_t queries, heads, dim;
  int64_t y_begin, y_end, x_begin, x_end;
  const int64_t* ordinals;  // 0, 1, ...
  Vectors<const T> scores, values;
  const C* tables;       // (queries, all heads, 4, taps), see TapTable, from the first head on
  const C* bias_ranges;  // (queries, all heads)
  int64_t all_heads;
  Vectors<T> output;
  // Of a query (heads, 2), see log_sum_exp in ops/_softmax.py.
  Vectors<C> logsumexp;
  // Backward only.
  Vectors<const T> grad_output;
  // Of a query and head, the sum over taps of weight * scale * <grad_output, value>.
  Vectors<C> delta;
  Vectors<T> grad_scores, grad_values;
  C *grad_bias, *grad_scale;  // the piece's part, (queries, all heads, taps)

  MMLOCALATTN_HOST_DEVICE int64_t taps() const { return rows.kernel * cols.kernel; }
  MMLOCALATTN_HOST_DEVICE TapTable<C> table(int64_t query, int64_t head) const {
    const int64_t i = query * all_heads + head;
    const C* first = tables + i * 4 * taps();
    return {first, first + taps(), first + 2 * taps(), first + 3 * taps(), bias_ranges[i]};
  }
};

template <typename T>
struct Kernels {
  Kernel<Piece<T>, T> forward;
  // Writes delta; then the gradients.
  Kernel<Piece<T>, T> backward_windows, backward_positions;
};

// The kernels for the instruction set in use; T is float, double or BFloat16. foreach_isa.h makes
// it of kernels.cpp.
template <typename T>
const Kernels<T>& kernels();

}  // namespace mmlocalattn::cpu::query_and_attend
