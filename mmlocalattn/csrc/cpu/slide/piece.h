// What the kernels of slide attention get of a call: plain types, no tensors.
#pragma once

#include "cpu/maps.h"

namespace mmlocalattn::cpu::slide {

// Own positions [begin, end) along one axis, and those whose gradients reach their keys.
struct Reach {
  int64_t begin, end;
  int64_t reach_begin, reach_end;
};

// One piece of a problem: own queries of one (batch, head).
template <typename T>
struct Piece {
  int64_t height, width, dim, kernel;
  Reach rows, cols;                // forward works on the own ones only
  Map<const T> query, key, value;  // query's factor is the scale
  // weight[c, i, j] and, as tap j = kernel * kernel, bias[c, i], in the order that each side needs:
  // (dim, taps + 1, taps) with copies i last, and (dim, taps, taps + 1) with taps j last.
  const Compute<T>*copies_last, *taps_last;
  const Compute<T>* position_bias;  // (taps) of the head
  Map<T> output;
  Grid<Compute<T>> logsumexp;  // two numbers, see log_sum_exp in ops/_softmax.py
  // Backward only.
  Map<const T> grad_output;
  Map<T> grad_query, grad_key, grad_value;  // grad_query's factor is the scale
  Compute<T>* grad_weight;                  // added to, like taps_last
  Compute<T>* grad_position_bias;           // added to, (taps) of the head
};

template <typename T>
struct Kernels {
  Kernel<Piece<T>, T> forward, backward;
};

// The kernels for the instruction set in use; T is float, double or BFloat16. foreach_isa.h makes
// it of kernels.cpp.
template <typename T>
const Kernels<T>& kernels();

}  // namespace mmlocalattn::cpu::slide
