// Interface between the CPU operator of slide attention (tensors, threads) and its kernels for one
// instruction set.
#pragma once

#include "maps.h"

namespace mmlocalattn {
namespace cpu {

// Own positions [begin, end) along one axis, and those whose gradients reach their keys.
struct Reach {
  int64_t begin, end;
  int64_t reach_begin, reach_end;
};

// One piece of a slide attention problem: own queries of one (batch, head).
template <typename T>
struct SlidePiece {
  int64_t height, width, dim, kernel;
  Reach rows, cols;                // forward works on the own ones only
  Map<const T> query, key, value;  // query's factor is the scale
  // weight[c, i, j] and, as tap j = kernel * kernel, bias[c, i], in the order that each side needs:
  // (dim, taps + 1, taps) with copies i last, and (dim, taps, taps + 1) with taps j last.
  const Compute<T>*copies_last, *taps_last;
  const Compute<T>* position_bias;  // (taps) of the head
  Map<T> output;
  Grid<Compute<T>> logsumexp;
  // Backward only.
  Map<const T> grad_output;
  Map<T> grad_query, grad_key, grad_value;  // grad_query's factor is the scale
  Compute<T>* grad_weight;                  // added to, like taps_last
  Compute<T>* grad_position_bias;           // added to, (taps) of the head
};

template <typename T>
struct SlideKernels {
  // Values of scratch that the functions below need, aligned to kVectorBytes.
  int64_t (*forward_scratch)(const SlidePiece<T>&);
  int64_t (*backward_scratch)(const SlidePiece<T>&);
  void (*forward)(const SlidePiece<T>&, Compute<T>* scratch);
  void (*backward)(const SlidePiece<T>&, Compute<T>* scratch);
};

// The kernels of each instruction set, for float, double and BFloat16.
template <typename T>
SlideKernels<T> slide_kernels_portable();
#ifdef MMLOCALATTN_X86
template <typename T>
SlideKernels<T> slide_kernels_avx2();
template <typename T>
SlideKernels<T> slide_kernels_avx512();
#endif

}  // namespace cpu
}  // namespace mmlocalattn
