// Neighborhood attention on CUDA: the problem that kernels get, and what launches them.
//
//   s_ij = scale <q_i, k_j> + bias[j - i]    p_ij = exp(s_ij - lse_i)    o_i = sum_j p_ij v_j
//   delta_i = <do_i, o_i>                    ds_ij = p_ij (<do_i, v_j> - delta_i)
//   dq_i = scale sum_j ds_ij k_j             dk_j = scale sum_i ds_ij q_i
//   dv_j = sum_i p_ij do_i                   dbias[r] = sum over j - i = r of ds_ij
//
// Memory; a token is one (batch, y, x, head):
//   query key value output, their gradients   (batch, height, width, heads, head_dim)
//   logsumexp                                 (batch, height, width, heads, 2)
//   bias grad_bias                            (heads, 2 kh - 1, 2 kw - 1)
// All are contiguous; inputs of the tiled kernels may have gaps between positions, like the parts
// of a joint projection.
//
// Softmax is online, p is recomputed in backward: nothing of the size of the attention matrix is
// stored. Keys gather from the queries that see them: no atomics, every sum has a fixed order.
//
// There are two kinds of kernels, whose work split tile.cuh and token.cuh describe: tiled ones for
// the common problems, and those of one warp per token for all others.
#pragma once

#include "cuda/logsumexp.cuh"

namespace mmlocalattn::cuda::neighborhood {

template <typename query_t, typename value_t>
struct Problem {
  using accum_t = at::opmath_type<value_t>;

  WindowAxis rows, cols;
  int64_t batch, heads, head_dim;
  accum_t scale;
  Source<query_t> query, key;
  Source<value_t> value;
  const value_t* bias;  // or null
  // Backward only.
  Source<value_t> grad_output, output;
  const LogSumExp<accum_t>* logsumexp;

  MMLOCALATTN_HOST_DEVICE int64_t tokens() const {
    return batch * rows.length * cols.length * heads;
  }

  // Of the bias of a head.
  MMLOCALATTN_HOST_DEVICE int64_t bias_entries() const {
    return (2 * rows.kernel - 1) * (2 * cols.kernel - 1);
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
// sum of their gradients here, the last one rotates it back (see sparse_scan.cu).
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

// forward.cu. The maps are not empty. The tiled kernels take what has_tiles() of operator.cuh says.
template <typename query_t, typename value_t>
void launch_forward(const Problem<query_t, value_t>& problem, bool is_tiled, value_t* output,
                    LogSumExp<at::opmath_type<value_t>>* logsumexp);

// backward.cu. The numbers that launch_backward leaves in its workspace.
template <typename query_t, typename value_t>
int64_t backward_numbers(const Problem<query_t, value_t>& problem, bool is_tiled);

// backward.cu, likewise. Without a bias `grad_bias` is null.
template <typename query_t, typename value_t>
void launch_backward(const Problem<query_t, value_t>& problem, bool is_tiled,
                     const Gradient<value_t>& grad_query, const Gradient<value_t>& grad_key,
                     value_t* grad_value, value_t* grad_bias, at::opmath_type<value_t>* workspace);

}  // namespace mmlocalattn::cuda::neighborhood
