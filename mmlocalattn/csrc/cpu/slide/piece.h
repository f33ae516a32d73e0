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
  Reach rows, cols;                 // forward works on the own ones only
  Map<const T> query, key, value;   // query's factor is the scale
  const Compute<T>*weight, *bias;   // (dim, copies, taps) and (dim, copies)
  const Compute<T>* position_bias;  // (copies) of the head
  Map<T> output;
  Grid<Compute<T>> logsumexp;  // two numbers, see log_sum_exp in ops/_softmax.py
  // Backward only.
  Map<const T> grad_output;
  Map<T> grad_query, grad_key, grad_value;  // grad_query's factor is the scale
  Compute<T>* grad_weight;                  // added to, (dim, copies, taps + 1): the last is bias
  Compute<T>* grad_position_bias;           // added to, (copies) of the head
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
