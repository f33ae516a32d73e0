// Stand-alone self-attention forward: see problem.cuh and tile.cuh.
#include <cmath>
#include <limits>

#include "tile.cuh"

namespace mmlocalattn::cuda::stand_alone {
namespace {

template <typename T>
__global__ void __launch_bounds__(kThreads)
    stand_alone_kernel(Problem<T> problem, T* output, LogSumExp<at::opmath_type<T>>* logsumexp) {
  using accum_t = at::opmath_type<T>;
  constexpr int kRows = 4;
  // A running maximum may lag behind by so much before the sums are rescaled.
  constexpr accum_t kSlack = 8;
  const Place<T, kRows> place(problem);
  place.stage_tables();
  Vector<accum_t> query[kRows], sum[kRows];
  // The running maximum in base 2, and how large a logit, not in base 2, leaves it as it is.
  accum_t most2[kRows], bound[kRows], total[kRows] = {};
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    query[t] = place.load(problem.query, t);
    query[t].scale(problem.scale);
    most2[t] = std::numeric_limits<accum_t>::lowest();
    bound[t] = most2[t] / 2;
  }
  place.stage_column_terms(query);
  const auto add_row = [&](auto all, int u, int row) {
    place.for_each_tap(
        all, query, u, row,
        [&](accum_t(&logits)[kRows], const Vector<accum_t>&, const Vector<accum_t>& value) {
          place.sum_parts(logits);
          bool is_high = false;
#pragma unroll
          for (int t = 0; t < kRows; ++t) is_high |= logits[t] > bound[t];
          if (is_high) {
#pragma unroll
            for (int t = 0; t < kRows; ++t) {
              const accum_t low = bound[t] - kSlack, high = logits[t] > low ? logits[t] : low;
              const accum_t high2 = multiply_rounded(high, kLog2E<accum_t>);
              const accum_t rescale = exp2_of(most2[t] - high2);
              most2[t] = high2;
              bound[t] = high + kSlack;
              total[t] *= rescale;
              sum[t].scale(rescale);
            }
          }
#pragma unroll
          for (int t = 0; t < kRows; ++t) {
            if (place.sees(all, t, u)) {
              const accum_t weight = exp2_of(logits[t] * kLog2E<accum_t> - most2[t]);
              total[t] += weight;
              sum[t].add(weight, value);
            }
          }
        });
  };
  place.for_each_row(problem.key, problem.value, problem.zero_padding, add_row);
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    sum[t].scale(1 / total[t]);
    place.store(output, t, sum[t]);
    if (place.is_inside(t) && place.part == 0) {
      logsumexp[place.token(t)] = LogSumExp<accum_t>::from_base_2(most2[t], total[t]);
    }
  }
}

}  // namespace

template <typename T>
void launch_forward(const Problem<T>& problem, T* output,
                    LogSumExp<at::opmath_type<T>>* logsumexp) {
  launch_tiles<4>(stand_alone_kernel<T>, problem, 0, Place<T, 4>::kTerms * problem.cols, output,
                  logsumexp);
}

template void launch_forward(const Problem<double>&, double*, LogSumExp<double>*);
template void launch_forward(const Problem<float>&, float*, LogSumExp<float>*);
template void launch_forward(const Problem<at::Half>&, at::Half*, LogSumExp<float>*);
template void launch_forward(const Problem<at::BFloat16>&, at::BFloat16*, LogSumExp<float>*);

}  // namespace mmlocalattn::cuda::stand_alone
