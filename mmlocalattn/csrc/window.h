// Index maths of windows along one axis, shared by the CPU and the CUDA kernels.
#pragma once

#include <cstdint>

#if defined(__CUDACC__) || defined(__HIPCC__)
#define MMLOCALATTN_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Always inlined: no copy compiled for a newer instruction set may serve the whole program.
#define MMLOCALATTN_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace mmlocalattn {

// The neighborhood window. An axis of `length` positions with dilation d falls into d groups: index
// i is position i / d of group i % d. Inside its group every query sees `kernel` (odd) consecutive
// positions, centred on itself where that fits and shifted inward at the two ends. The caller
// guarantees kernel * dilation <= length.
template <typename index_t>
struct BasicWindowAxis {
  index_t length;
  index_t kernel;
  index_t dilation;

  // Number of positions in the dilation group of index i.
  MMLOCALATTN_HOST_DEVICE index_t group_length(index_t i) const {
    return (length - i % dilation + dilation - 1) / dilation;
  }

  // First index seen by query i; the others follow in steps of `dilation`.
  MMLOCALATTN_HOST_DEVICE index_t start(index_t i) const {
    const index_t last = group_length(i) - kernel;
    index_t position = i / dilation - kernel / 2;
    position = position < 0 ? 0 : position;
    position = position > last ? last : position;
    return position * dilation + i % dilation;
  }

  // Row of a relative position table (2 * kernel - 1 rows) for the first tap of query i; the taps
  // that follow use the rows that follow.
  MMLOCALATTN_HOST_DEVICE index_t first_offset(index_t i) const {
    return (start(i) - i) / dilation + kernel - 1;
  }

  // First query that sees key j; the others follow in steps of `dilation`. Near a border this is
  // not the window of j itself, because windows there are shifted.
  MMLOCALATTN_HOST_DEVICE index_t inverse_start(index_t j) const {
    const index_t position = j / dilation;
    return (position < kernel ? 0 : position - kernel / 2) * dilation + j % dilation;
  }

  // Number of queries that see key j: between 1 and 2 * kernel - 1.
  MMLOCALATTN_HOST_DEVICE index_t inverse_count(index_t j) const {
    const index_t position = j / dilation, group = group_length(j);
    const index_t end = position >= group - kernel ? group : position + kernel / 2 + 1;
    return end - inverse_start(j) / dilation;
  }
};

using WindowAxis = BasicWindowAxis<int64_t>;

// The windows of a convolution padded by half a kernel, one centred on every `stride`-th of
// `length` positions. They reach over the ends of the axis.
template <typename index_t>
struct BasicStridedAxis {
  index_t length, kernel, stride;

  MMLOCALATTN_HOST_DEVICE index_t windows() const { return (length + stride - 1) / stride; }

  // Positions of the first window before the axis: window i begins at i * stride - low().
  MMLOCALATTN_HOST_DEVICE index_t low() const { return kernel / 2; }
};

using StridedAxis = BasicStridedAxis<int64_t>;

}  // namespace mmlocalattn
