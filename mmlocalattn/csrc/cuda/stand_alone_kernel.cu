// Stand-alone self-attention forward on CUDA: see stand_alone.cuh.
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "stand_alone.cuh"

namespace mmlocalattn {
namespace {

template <typename T>
__global__ void __launch_bounds__(kThreads)
    stand_alone_kernel(StandAlone<T> problem, T* output, at::opmath_type<T>* logsumexp) {
  using accum_t = at::opmath_type<T>;
  constexpr int kRows = 4;
  // A running maximum may lag behind by this exponent of 2 before the sums are rescaled.
  constexpr accum_t kSlack = 8;
  const Place<T, kRows> place(problem);
  place.stage_tables();
  Vector<accum_t> query[kRows], sum[kRows];
  accum_t most[kRows], total[kRows] = {};
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    query[t] = place.load(problem.query, t);
    query[t].scale(problem.scale * static_cast<accum_t>(kLog2E));
    most[t] = std::numeric_limits<accum_t>::lowest();
  }
  const auto add_tap = [&](int t, int, accum_t logit, bool is_masked, const Vector<accum_t>&,
                           const Vector<accum_t>& value) {
    if (is_masked) {
      return;
    }
    if (logit > most[t] + kSlack) {
      const accum_t rescale = exp2_of(most[t] - logit);
      most[t] = logit;
      total[t] *= rescale;
      sum[t].scale(rescale);
    }
    const accum_t weight = exp2_of(logit - most[t]);
    total[t] += weight;
    sum[t].add(weight, value);
  };
  place.for_each_row(problem.key, problem.value, problem.zero_padding,
                     [&](int64_t u, int row) { place.for_each_tap(query, u, row, add_tap); });
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    sum[t].scale(1 / total[t]);
    place.store(output, t, sum[t]);
    if (place.is_inside(t) && place.part == 0) {
      logsumexp[place.token(t)] = (most[t] + std::log2(total[t])) / static_cast<accum_t>(kLog2E);
    }
  }
}

std::tuple<Tensor, Tensor> stand_alone_attention_cuda(
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& row_embedding,
    const Tensor& column_embedding, IntArrayRef kernel_size, bool zero_padding, double scale) {
  const Call caller{query,       key,          value, row_embedding, column_embedding,
                    kernel_size, zero_padding, scale};
  check(caller);
  const c10::cuda::CUDAGuard device_guard(query.device());
  const Call call = pack(caller);
  const auto accum = at::toOpMathType(query.scalar_type());
  const Tensor output = at::empty(query.sizes(), query.options());
  const Tensor logsumexp = at::empty(query.sizes().slice(0, 4), query.options().dtype(accum));
  dispatch(query, [&](auto type) {
    using T = decltype(type);
    launch_tiles<4>(stand_alone_kernel<T>, describe<T>(call), 0, output.mutable_data_ptr<T>(),
                    logsumexp.mutable_data_ptr<at::opmath_type<T>>());
  });
  return {output, logsumexp};
}

}  // namespace
}  // namespace mmlocalattn

TORCH_LIBRARY_IMPL(mmlocalattn, CUDA, m) {
  m.impl("stand_alone_attention", &mmlocalattn::stand_alone_attention_cuda);
}
