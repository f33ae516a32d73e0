// Interface between the CPU operators (any dtype and layout, threads) and the kernels for one
// instruction set (planar fp32 or fp64 maps).
//
// A planar map is (batch * heads, height, dim, plane): one plane of a row holds one channel of all
// its columns, so that the lanes of a vector are neighboring queries (or keys) and a tap is the
// same vector some columns further. `plane` is the width and at least one vector more: loads and
// stores may pass the width. Inputs are 0 there.
#pragma once

#include <cstdint>

#include "window.h"

#if defined(__x86_64__)
#define MMLOCALATTN_X86
#endif

namespace mmlocalattn {
namespace cpu {

constexpr int kVectorBytes = 64;  // the longest of any instruction set
constexpr int kMaxLanes = kVectorBytes / sizeof(float);

// Up to one vector of neighboring columns. In forward and in the gradient of the query they are
// queries and their taps are keys, in the gradients of key and value they are keys and their taps
// the queries that see them.
struct ColumnBlock {
  int64_t x;     // first column
  int64_t base;  // smallest column that is the first tap of one of them
  int64_t taps;  // most taps of one of them
  int32_t lanes;
  bool is_shift;              // lane i has its first tap at base + i, and `taps` taps
  int32_t source[kMaxLanes];  // column of the first tap of each lane, minus base: below the lanes
                              // of a vector
  int32_t count[kMaxLanes];   // taps of each lane
  int32_t offset[kMaxLanes];  // column of the first tap in a relative position table
};

// One or two rows of one dilation group, with the rows that hold their taps: `first`, `first +
// dilation`, ...
struct RowPair {
  int64_t y[2];
  int rows;
  int64_t first;
  int64_t begin[2],
      end[2];         // range of those rows that each sees, counted from `first`; nondecreasing
  int64_t offset[2];  // row of the tap `begin` in a relative position table
};

// One attention problem.
template <typename T>
struct Neighborhood {
  WindowAxis rows, cols;
  int64_t dim, plane;
  const ColumnBlock* blocks;
  int64_t num_blocks;
  // Planar maps. query is multiplied by the scale already.
  const T *query, *key, *value, *grad_output;
  T* output;  // or the gradient of query
  T *grad_key, *grad_value;
  const T* bias;  // (2 * rows.kernel - 1, 2 * cols.kernel - 1) or null
  T* grad_bias;   // likewise, is added to
  T* logsumexp;   // (height, plane), as is delta = <grad_output, output>
  const T* delta;
};

// A row of channels-last vectors: x counts `step` values.
template <typename T>
struct ChannelsRow {
  T* first;
  int64_t step;
  const T *sin, *cos;  // (width, dim) or null: rotates adjacent pairs
  T factor;
};

template <typename T>
struct Kernels {
  int lanes;
  // One pair of rows of one map.
  void (*forward)(const Neighborhood<T>&, const RowPair&, T* scratch);
  void (*backward_query)(const Neighborhood<T>&, const RowPair&, T* scratch);
  void (*backward_key_value)(const Neighborhood<T>&, const RowPair&, T* scratch);
  // One row (dim, plane) from and to channels-last.
  void (*pack)(const ChannelsRow<const T>&, int64_t width, int64_t dim, int64_t plane, T* row);
  void (*unpack)(const ChannelsRow<T>&, int64_t width, int64_t dim, int64_t plane, const T* row);
};

// Taps whose logits are worked on at a time, so that they stay in L1; a row of taps is never split.
constexpr int64_t kChunkTaps = 96;

// Values of scratch, aligned to a vector, that the kernels use: two rows of logits, twice, and two
// accumulators.
template <typename T>
MMLOCALATTN_HOST_DEVICE int64_t scratch_size(const Neighborhood<T>& problem) {
  const int64_t taps = 2 * problem.cols.kernel + kChunkTaps;
  return (4 * taps + 4 * problem.dim) * (kVectorBytes / static_cast<int64_t>(sizeof(T)));
}

// The kernels of each instruction set, for float and double.
template <typename T>
Kernels<T> kernels_portable();
#ifdef MMLOCALATTN_X86
template <typename T>
Kernels<T> kernels_avx2();
template <typename T>
Kernels<T> kernels_avx512();
#endif

}  // namespace cpu
}  // namespace mmlocalattn
