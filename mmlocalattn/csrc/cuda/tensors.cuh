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

// A tensor of any strides. What a block has one of, image and head, comes first in an address.
template <typename T>
struct Map {
  T* data;
  int64_t image, row, column, head;

  __device__ T* at(int64_t n, int64_t y, int64_t x, int64_t h) const {
    return data + n * image + h * head + y * row + x * column;
  }
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

// Take what unit_channels returned.
template <typename T>
Map<const T> input_map(const at::Tensor& tensor) {
  return {tensor.const_data_ptr<T>(), tensor.stride(0), tensor.stride(1), tensor.stride(2),
          tensor.stride(3)};
}
template <typename T>
Map<T> result_map(const at::Tensor& tensor) {
  return {tensor.mutable_data_ptr<T>(), tensor.stride(0), tensor.stride(1), tensor.stride(2),
          tensor.stride(3)};
}

}  // namespace mmlocalattn::cuda
