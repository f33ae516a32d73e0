// The log-sum-exp of the logits of a query as two numbers whose sum it is: log_sum_exp of
// ops/_softmax.py says why.
#pragma once

#include <cmath>
#include <vector>

#include "arithmetic.cuh"
#include "tensors.cuh"

namespace mmlocalattn::cuda {

template <typename accum_t>
struct alignas(2 * sizeof(accum_t)) LogSumExp {
  accum_t most, rest;

  // The weight of a logit.
  __device__ accum_t weight(accum_t logit) const { return std::exp(logit - most - rest); }

  // That of logits in base 2 whose sum of exponentials is 2^most2 total.
  __device__ static LogSumExp from_base_2(accum_t most2, accum_t total) {
    const accum_t most = most2 / kLog2E<accum_t>;
    const accum_t rounding = most2 - multiply_rounded(most, kLog2E<accum_t>);
    return {most, (std::log2(total) + rounding) / kLog2E<accum_t>};
  }
};

// A log-sum-exp in base 2 for kernels of T. 16 bits do not see what one number would lose.
template <typename T, typename accum_t>
__device__ __forceinline__ LogSumExp<accum_t> in_base_2(const LogSumExp<accum_t>& logsumexp) {
  const accum_t most = multiply_rounded(logsumexp.most, kLog2E<accum_t>);
  const accum_t rest = logsumexp.rest * kLog2E<accum_t>;
  return sizeof(T) == 2 ? LogSumExp<accum_t>{most + rest, 0} : LogSumExp<accum_t>{most, rest};
}

// The weight of a logit, both in base 2.
template <typename T, typename accum_t>
__device__ __forceinline__ accum_t weight_in_base_2(accum_t logit, accum_t most, accum_t rest) {
  const accum_t exponent = logit - most;
  return exp2_of(sizeof(T) == 2 ? exponent : exponent - rest);
}

// A tensor (..., 2) of them, contiguous and aligned.
template <typename accum_t>
LogSumExp<accum_t>* logsumexp_of(const at::Tensor& tensor) {
  return reinterpret_cast<LogSumExp<accum_t>*>(tensor.mutable_data_ptr<accum_t>());
}

// Its sizes for a map (batch, height, width, heads, head_dim).
inline std::vector<int64_t> logsumexp_sizes(const at::Tensor& map) {
  return {map.size(0), map.size(1), map.size(2), map.size(3), 2};
}

}  // namespace mmlocalattn::cuda
