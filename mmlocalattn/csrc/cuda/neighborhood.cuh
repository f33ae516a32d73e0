// Neighborhood attention for the CUDA sources: the problem that kernels get, and the functions that
// operators are built of.
//
//   s_ij = scale <q_i, k_j> + bias[j - i]    p_ij = exp(s_ij - lse_i)    o_i = sum_j p_ij v_j
//   delta_i = <do_i, o_i>                    ds_ij = p_ij (<do_i, v_j> - delta_i)
//   dq_i = scale sum_j ds_ij k_j             dk_j = scale sum_i ds_ij q_i
//   dv_j = sum_i p_ij do_i                   dbias[r] = sum over j - i = r of ds_ij
//
// Memory; a token is one (batch, y, x, head):
//   query key value output, their gradients   (batch, height, width, heads, head_dim)
//   logsumexp                                 (batch, height, width, heads): one per token
//   bias grad_bias                            (heads, 2 kh - 1, 2 kw - 1)
// All are contiguous; inputs of the tiled kernels may have gaps between positions, like the parts
// of a joint projection.
//
// Softmax is online, p is recomputed in backward: nothing of the size of the attention matrix is
// stored. Keys gather from the queries that see them: no atomics, every sum has a fixed order.
#pragma once

#include <ATen/OpMathType.h>

#include <algorithm>
#include <array>
#include <limits>
#include <tuple>

#include "intrinsics.cuh"

namespace mmlocalattn {

// A tensor that a kernel reads. The heads of a position lie in a row; from one position of the
// batch to the next it is `step` elements.
template <typename T>
struct Source {
  const T* data;
  int64_t step;
};

template <typename query_t, typename value_t>
struct Neighborhood {
  using accum_t = at::opmath_type<value_t>;

  WindowAxis rows, cols;
  int64_t batch, heads, head_dim;
  accum_t scale;
  Source<query_t> query, key;
  Source<value_t> value;
  const value_t* bias;  // or null
  // Backward only.
  Source<value_t> grad_output, output;
  const accum_t* logsumexp;

  MMLOCALATTN_HOST_DEVICE int64_t tokens() const {
    return batch * rows.length * cols.length * heads;
  }

  __device__ int64_t token(int64_t n, int64_t y, int64_t x, int64_t head) const {
    return ((n * rows.length + y) * cols.length + x) * heads + head;
  }
};

// Two adjacent channels; the first is even.
template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T even, odd;
};

// Where the gradient of query or key goes. Steps of an operator that share query and key leave the
// sum of their gradients here, the last one rotates it back (see sparse_scan_kernel.cu).
template <typename T>
struct Gradient {
  using accum_t = at::opmath_type<T>;

  T* grad;                   // null if another step follows
  accum_t* sum;              // of all steps, null if there is only this one
  const accum_t *sin, *cos;  // (height, width, head_dim), null without rotation

  // Takes an even channel and, if there is one, the next. They are number `index` of the tensor,
  // their angles number `angle` of the tables.
  __device__ void store(int64_t index, int64_t angle, accum_t even, accum_t odd,
                        bool has_odd = true) const {
    if (grad == nullptr) {
      sum[index] = even;
      if (has_odd) {
        sum[index + 1] = odd;
      }
      return;
    }
    if (sum != nullptr) {
      even += sum[index];
      odd += has_odd ? sum[index + 1] : 0;
    }
    if (sin != nullptr) {
      const accum_t rotated = even * cos[angle] + odd * sin[angle + 1];
      odd = odd * cos[angle + 1] - even * sin[angle];
      even = rotated;
    }
    grad[index] = static_cast<T>(even);
    if (has_odd) {
      grad[index + 1] = static_cast<T>(odd);
    }
  }
};

// The tiled kernels (tiled_forward.cu, tiled_backward.cu): head_dim 16, 32, 64 and 128, no bias,
// positive scale, fp32 and, on tensor cores, fp16 and bf16. They read 16 bytes at once.
inline bool has_tiles(const at::Tensor& query, bool has_bias, double scale) {
  const int64_t head_dim = query.size(4);
  return query.scalar_type() != at::kDouble && !has_bias && scale > 0 &&
         (head_dim == 16 || head_dim == 32 || head_dim == 64 || head_dim == 128);
}

template <typename T>
void launch_tiled(const Neighborhood<T, T>& na, T* output, float* logsumexp);

// `workspace` has room for four numbers per token.
template <typename T>
void launch_tiled_backward(const Neighborhood<T, T>& na, const Gradient<T>& grad_query,
                           const Gradient<T>& grad_key, T* grad_value, float* workspace);

// Checks what a kernel would corrupt memory without: shape, and the device of `query`.
inline void check_like(const at::Tensor& tensor, at::IntArrayRef sizes, const at::Tensor& query) {
  TORCH_CHECK(tensor.sizes() == sizes && tensor.device() == query.device(), "expected ", sizes,
              " on ", query.device(), ", got ", tensor.sizes(), " on ", tensor.device());
}

inline bool is_aligned(const at::Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

// A contiguous tensor that starts at a multiple of 16 bytes: this one or a copy.
inline at::Tensor aligned_contiguous(const at::Tensor& tensor) {
  const at::Tensor contiguous = tensor.contiguous();
  return is_aligned(contiguous) ? contiguous : contiguous.clone();
}

// The tensor if its positions are aligned and lie as Source says, else an aligned_contiguous copy.
inline at::Tensor aligned_rows(const at::Tensor& tensor) {
  const int64_t step = tensor.stride(2), line = tensor.size(2) * step;
  const std::array<int64_t, 5> strides{tensor.size(1) * line, line, step, tensor.size(4), 1};
  const bool has_rows = tensor.strides() == at::IntArrayRef(strides) && is_aligned(tensor) &&
                        step * tensor.element_size() % 16 == 0;
  return has_rows ? tensor : aligned_contiguous(tensor);
}

// Takes what one of the two returned. The strides of a contiguous tensor may lie where a size is 1.
template <typename T>
Source<T> source(const at::Tensor& tensor) {
  const bool has_gaps = !tensor.is_contiguous();
  return {tensor.const_data_ptr<T>(),
          has_gaps ? tensor.stride(2) : tensor.size(3) * tensor.size(4)};
}

// One call of neighborhood attention, its tensors as the caller has them. An undefined bias is
// none. Without tiles, query and key may have the accumulation type of a 16 bit value.
struct Attention {
  at::Tensor query, key, value, bias;
  at::IntArrayRef kernel_size, dilation;
  double scale;
};

// Returns output and logsumexp.
std::tuple<at::Tensor, at::Tensor> attend(const Attention& call);

// Gradient as tensors: see there. `sum`, `sin` and `cos` have the accumulation type.
struct GradientTensors {
  at::Tensor grad, sum, sin, cos;
};

// Returns the gradients of value and of the bias, that of an undefined bias undefined.
std::tuple<at::Tensor, at::Tensor> attend_backward(const Attention& call,
                                                   const at::Tensor& grad_output,
                                                   const at::Tensor& output,
                                                   const at::Tensor& logsumexp,
                                                   const GradientTensors& grad_query,
                                                   const GradientTensors& grad_key);

}  // namespace mmlocalattn
