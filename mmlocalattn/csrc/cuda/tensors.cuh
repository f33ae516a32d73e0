// What describes tensors to kernels, and checks and copies that make tensors fit. A vector is the
// channels of one (batch, y, x, head) of a tensor (batch, height, width, heads, head_dim); its
// channels are neighbors in memory.
#pragma once

#include <ATen/OpMathType.h>

#include <array>

#include "intrinsics.cuh"
#include "optional_tensor.h"

namespace mmlocalattn::cuda {

// A tensor that kernels read as rows: the vectors of a position's heads follow each other. From one
// position of the batch to the next it is `step` elements.
template <typename T>
struct Source {
  const T* data;
  int64_t step;
};

// A tensor of any strides, offsets in an image of which fit in 32 bits. What a block has one of,
// image and head, comes first in an address.
template <typename T>
struct Map {
  T* data;
  int64_t image, head;
  int row, column;
  bool has_chunks;  // vectors are whole chunks of kCopyBytes, aligned to as many

  // The vector of head h at position (0, 0) of image n.
  __device__ T* origin(int64_t n, int64_t h) const { return data + n * image + h * head; }
  // The vector at (y, x) from there.
  __device__ int offset(int y, int x) const { return y * row + x * column; }
  __device__ T* at(int64_t n, int y, int x, int64_t h) const { return origin(n, h) + offset(y, x); }
};

// Checks what a kernel would corrupt memory without: shape, and the device of `query`.
inline void check_like(const at::Tensor& tensor, at::IntArrayRef sizes, const at::Tensor& query) {
  TORCH_CHECK(tensor.sizes() == sizes && tensor.device() == query.device(), "expected ", sizes,
              " on ", query.device(), ", got ", tensor.sizes(), " on ", tensor.device());
}

// Bytes that a thread copies or loads at once where they are aligned.
constexpr int kCopyBytes = 16;

inline bool is_aligned(const at::Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kCopyBytes == 0;
}

// A contiguous tensor that starts at a multiple of kCopyBytes: this one or a copy.
inline at::Tensor aligned_contiguous(const at::Tensor& tensor) {
  const at::Tensor contiguous = tensor.contiguous();
  return is_aligned(contiguous) ? contiguous : contiguous.clone();
}

// The tensor if its positions are aligned and lie as Source says, else an aligned_contiguous copy.
inline at::Tensor aligned_rows(const at::Tensor& tensor) {
  const int64_t step = tensor.stride(2), line = tensor.size(2) * step;
  const std::array<int64_t, 5> strides{tensor.size(1) * line, line, step, tensor.size(4), 1};
  const bool has_rows = tensor.strides() == at::IntArrayRef(strides) && is_aligned(tensor) &&
                        step * tensor.element_size() % kCopyBytes == 0;
  return has_rows ? tensor : aligned_contiguous(tensor);
}

// Takes what one of the two returned. The strides of a contiguous tensor may lie where a size is 1.
template <typename T>
Source<T> source(const at::Tensor& tensor) {
  const bool has_gaps = !tensor.is_contiguous();
  return {tensor.const_data_ptr<T>(),
          has_gaps ? tensor.stride(2) : tensor.size(3) * tensor.size(4)};
}

// The tensor if its channels are neighbors, else a contiguous copy.
inline at::Tensor unit_channels(const at::Tensor& tensor) {
  return tensor.stride(-1) == 1 ? tensor : tensor.contiguous();
}

template <typename T>
Map<T> map_of(const at::Tensor& tensor, T* data) {
  constexpr int64_t kChunk = kCopyBytes / sizeof(T);
  int64_t last = tensor.size(4) - 1;
  bool has_chunks = is_aligned(tensor) && tensor.size(4) % kChunk == 0;
  for (int axis = 0; axis < 4; ++axis) {
    has_chunks = has_chunks && tensor.stride(axis) % kChunk == 0;
    last += axis > 0 ? (tensor.size(axis) - 1) * tensor.stride(axis) : 0;
  }
  TORCH_CHECK(last <= INT32_MAX, "an image of ", tensor.sizes(), " with strides ", tensor.strides(),
              " is too large for CUDA");
  return {data,
          tensor.stride(0),
          tensor.stride(3),
          static_cast<int>(tensor.stride(1)),
          static_cast<int>(tensor.stride(2)),
          has_chunks};
}

// Take what unit_channels returned.
template <typename T>
Map<const T> input_map(const at::Tensor& tensor) {
  return map_of(tensor, tensor.const_data_ptr<T>());
}
template <typename T>
Map<T> result_map(const at::Tensor& tensor) {
  return map_of(tensor, tensor.mutable_data_ptr<T>());
}

// kCount channels that are loaded or stored at once.
template <typename T, int kCount>
struct alignas(kCount * sizeof(T)) Channels {
  static_assert(kCount * sizeof(T) <= kCopyBytes, "one instruction takes no more");
  T of[kCount];
};

// kCount channels of a vector of `dim` from `channel` on, 0 past the last.
template <int kCount, typename T>
__device__ __forceinline__ void read_channels(const T* vector, bool has_chunks, int channel,
                                              int dim, at::opmath_type<T> (&out)[kCount]) {
  using accum_t = at::opmath_type<T>;
  if (has_chunks && channel < dim) {
    const auto channels = *reinterpret_cast<const Channels<T, kCount>*>(vector + channel);
#pragma unroll
    for (int i = 0; i < kCount; ++i) out[i] = static_cast<accum_t>(channels.of[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    out[i] = channel + i < dim ? static_cast<accum_t>(vector[channel + i]) : accum_t(0);
  }
}

// The way back.
template <int kCount, typename T>
__device__ __forceinline__ void write_channels(T* vector, bool has_chunks, int channel, int dim,
                                               const at::opmath_type<T> (&values)[kCount]) {
  if (has_chunks && channel < dim) {
    Channels<T, kCount> channels;
#pragma unroll
    for (int i = 0; i < kCount; ++i) channels.of[i] = static_cast<T>(values[i]);
    *reinterpret_cast<Channels<T, kCount>*>(vector + channel) = channels;
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (channel + i < dim) vector[channel + i] = static_cast<T>(values[i]);
  }
}

}  // namespace mmlocalattn::cuda
