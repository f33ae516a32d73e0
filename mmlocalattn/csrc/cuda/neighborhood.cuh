// What the CUDA sources share: the warp, the launch, and neighborhood attention for operators built
// on it. The only warp intrinsic and the only `<<<>>>` of the package are here.
#pragma once

#include <ATen/OpMathType.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "pytorch_cuda_helper.hpp"
#include "window.h"

namespace mmlocalattn {

constexpr int kWarpSize = 32;
constexpr int kWarpsPerBlock = 4;
constexpr int kThreads = kWarpsPerBlock * kWarpSize;

// Sum over the 32 lanes, the same bits in every lane. All lanes must call it.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffff, value, offset);
  }
  return value;
}

// Index of this thread or warp in the grid, and the stride of a loop over more items than that.
__device__ __forceinline__ int64_t grid_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t grid_threads() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}
__device__ __forceinline__ int64_t grid_warp() { return grid_thread() / kWarpSize; }
__device__ __forceinline__ int64_t grid_warps() { return grid_threads() / kWarpSize; }

// Launches blocks of kThreads on the current stream, as many as `threads` needs or the device can
// use; kernels loop over the rest.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t threads, const Arguments&... arguments) {
  if (threads == 0) {
    return;
  }
  constexpr int64_t kMostThreads = 1 << 30;
  const int blocks = GET_BLOCKS(static_cast<int>(std::min(threads, kMostThreads)), kThreads);
  kernel<<<blocks, kThreads, 0, at::cuda::getCurrentCUDAStream()>>>(arguments...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// Checks what a kernel would corrupt memory without: shape, and the device of `query`.
inline void check_like(const at::Tensor& tensor, at::IntArrayRef sizes, const at::Tensor& query) {
  TORCH_CHECK(tensor.sizes() == sizes && tensor.device() == query.device(), "expected ", sizes,
              " on ", query.device(), ", got ", tensor.sizes(), " on ", tensor.device());
}

// Neighborhood attention (neighborhood_kernel.cu). Beyond its operator, query and key may have the
// accumulation type of a 16-bit value; their gradients then have it too.
std::tuple<at::Tensor, at::Tensor> neighborhood_attention_cuda(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const std::optional<at::Tensor>& bias, at::IntArrayRef kernel_size, at::IntArrayRef dilation,
    double scale);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> neighborhood_attention_backward_cuda(
    const at::Tensor& grad_output, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const std::optional<at::Tensor>& bias, const at::Tensor& output,
    const at::Tensor& logsumexp, at::IntArrayRef kernel_size, at::IntArrayRef dilation,
    double scale);

}  // namespace mmlocalattn
