// Interface between the CPU operators (any dtype and layout, threads) and the row kernels (packed
// fp32 or fp64, one instruction set each).
#pragma once

#include <cstdint>

#include "window.h"

#if defined(__x86_64__)
#define MMLOCALATTN_X86
#endif

namespace mmlocalattn {
namespace cpu {

// What WindowAxis says about one index.
struct WindowAt {
  int64_t start, first_offset, inverse_start, inverse_count;
};

// One attention problem on packed tensors: a map is (batch * heads, height, width, dim) with dim
// padded by zeros to a multiple of kLaneBytes, a log-sum-exp is (batch * heads, height, width).
template <typename T>
struct Neighborhood {
  WindowAxis rows, cols;
  const WindowAt* col_windows;  // of every column: the index maths divides, too slow for each query
  int64_t heads, dim;
  const T* query;  // already multiplied by the scale
  const T* key;
  const T* value;
  const T* bias;  // (heads, 2 * rows.kernel - 1, 2 * cols.kernel - 1) or null
  // Forward writes logsumexp, backward reads it and the two below.
  T* logsumexp;
  const T* grad_output;
  const T* delta;  // <grad_output, output>, shaped like logsumexp
};

// The vector length every packed dim is a multiple of: the longest of any instruction set.
constexpr int64_t kLaneBytes = 64;

// Kernels for one row: `row` counts (batch * heads + head) * height + y. `out`, `grad_*` are
// (width, dim) packed rows. `scratch` holds scratch_size() values. `grad_bias` is one table (2 *
// rows.kernel - 1, 2 * cols.kernel - 1) that is added to, or null.
template <typename T>
struct RowKernels {
  void (*forward)(const Neighborhood<T>&, int64_t row, T* scratch, T* out);
  void (*backward_query)(const Neighborhood<T>&, int64_t row, T* scratch, T* grad_query,
                         T* grad_bias);
  void (*backward_key_value)(const Neighborhood<T>&, int64_t row, T* scratch, T* grad_key,
                             T* grad_value);
};

// Values of scratch that any of the row kernels may use: two rows of taps, each padded to whole
// vectors.
template <typename T>
MMLOCALATTN_HOST_DEVICE int64_t scratch_size(const Neighborhood<T>& problem) {
  const int64_t most_taps = (2 * problem.rows.kernel - 1) * (2 * problem.cols.kernel - 1);
  return 2 * (most_taps + 2 * kLaneBytes / static_cast<int64_t>(sizeof(T)));
}

// The row kernels of each instruction set, for float and double.
template <typename T>
RowKernels<T> row_kernels_portable();
#ifdef MMLOCALATTN_X86
template <typename T>
RowKernels<T> row_kernels_avx2();
template <typename T>
RowKernels<T> row_kernels_avx512();
#endif

}  // namespace cpu
}  // namespace mmlocalattn
