// Neighborhood attention forward: see problem.cuh, tile.cuh and token.cuh.
#include <cmath>
#include <limits>

#include "tile.cuh"
#include "token.cuh"

namespace mmlocalattn::cuda::neighborhood {
namespace {

// A running maximum may lag behind by this exponent of 2 before the sums are rescaled.
constexpr float kSlack = 8;

template <typename T, int kDim>
using ForwardLimits = Limits<T, kDim, Kind::kForward>;

template <typename T, int kDim, bool kHasBias>
__global__ void __launch_bounds__(ForwardLimits<T, kDim>::kThreads, ForwardLimits<T, kDim>::kBlocks)
    tiled_kernel(Problem<T, T> problem, Tiling tiling, T* output, LogSumExp<float>* logsumexp) {
  const Scale problem_scale(problem.scale);
  const Tile<T, kDim, Kind::kForward, kHasBias> tile(problem, tiling, problem_scale.magnitude);
  if (tile.is_empty()) {
    return;
  }
  const auto query = tile.own(problem.query, problem_scale.sign);
  const float scale = problem_scale.magnitude * kLog2E<float>;
  // Per slot. `lowest` and not -inf, so that no difference is NaN.
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  float max[2] = {kLowest, kLowest}, total[2] = {}, sum[kDim / 8][4] = {};
  tile.for_each_product(problem.key, problem.value, nullptr, [&](const Product<T, kDim>& product) {
    float weight[2][4];
    product.start(weight);
    query.dot(weight, product.first());
    product.mask(weight);
    float high[2];
#pragma unroll
    for (int slot = 0; slot < 2; ++slot) {
      high[slot] = scale * fmaxf(fmaxf(weight[0][2 * slot], weight[0][2 * slot + 1]),
                                 fmaxf(weight[1][2 * slot], weight[1][2 * slot + 1]));
    }
    if (any(high[0] > max[0] + kSlack || high[1] > max[1] + kSlack)) {
#pragma unroll
      for (int slot = 0; slot < 2; ++slot) {
        const float new_max = fmaxf(max[slot], row_max(high[slot]));
        const float rescale = exp2_fast(max[slot] - new_max);
        max[slot] = new_max;
        total[slot] *= rescale;
#pragma unroll
        for (int part = 0; part < kDim / 8; ++part) {
          sum[part][2 * slot] *= rescale;
          sum[part][2 * slot + 1] *= rescale;
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        weight[half][i] = exp2_fast(scale * weight[half][i] - max[i / 2]);
        total[i / 2] += weight[half][i];
      }
    }
    query.add(sum, weight, product.second());
  });
#pragma unroll
  for (int slot = 0; slot < 2; ++slot) {
    const float row_total = row_sum(total[slot]), factor = 1 / row_total;
    if (!tile.has_token(own_row(slot))) {
      continue;
    }
    const int64_t token = tile.token(own_row(slot));
#pragma unroll
    for (int part = 0; part < kDim / 8; ++part) {
      *reinterpret_cast<Pair<T>*>(output + token * kDim + query.channel(part)) = {
          static_cast<T>(factor * sum[part][2 * slot]),
          static_cast<T>(factor * sum[part][2 * slot + 1])};
    }
    if (lane() % 4 == 0) {
      logsumexp[token] = LogSumExp<float>::from_base_2(max[slot], row_total);
    }
  }
}

template <typename query_t, typename value_t>
__global__ void __launch_bounds__(kThreads)
    token_kernel(TokenProblem<query_t, value_t> problem, value_t* output,
                 LogSumExp<at::opmath_type<value_t>>* logsumexp) {
  using accum_t = at::opmath_type<value_t>;
  for (int64_t item = problem.first_item(); item < problem.work_items();
       item += problem.item_step()) {
    const Work query = problem.work(item);
    const int64_t y = problem.rows.start(query.y), x = problem.cols.start(query.x);
    const int64_t row = problem.rows.first_offset(query.y),
                  col = problem.cols.first_offset(query.x);
    // `lowest` and not -inf: a bias of -inf masks its tap instead of making NaN.
    accum_t max = std::numeric_limits<accum_t>::lowest(), total = 0;
    Channels<accum_t> result;
    for (int64_t a = 0; a < problem.rows.kernel; ++a) {
      for (int64_t b = 0; b < problem.cols.kernel; ++b) {
        const int64_t key = problem.token(query.batch, y + a * problem.rows.dilation,
                                          x + b * problem.cols.dilation, query.head);
        const accum_t logit =
            problem.logit(query.token, key, problem.bias_index(query.head, row + a, col + b));
        const accum_t new_max = logit > max ? logit : max;
        const accum_t rescale = std::exp(max - new_max), weight = std::exp(logit - new_max);
        max = new_max;
        total = total * rescale + weight;
        result.scale(rescale);
        result.add(weight, problem.value.data + key * problem.head_dim, query.channel,
                   problem.head_dim);
      }
    }
    result.scale(1 / total);
    result.store(output + query.token * problem.head_dim, query.channel, problem.head_dim);
    if (query.channel == 0) {
      logsumexp[query.token] = {max, std::log(total)};
    }
  }
}

}  // namespace

template <typename query_t, typename value_t>
void launch_forward(const Problem<query_t, value_t>& problem, bool is_tiled, value_t* output,
                    LogSumExp<at::opmath_type<value_t>>* logsumexp) {
  if constexpr (kTiledTypes<query_t, value_t>) {
    if (is_tiled) {
      const bool has_bias = problem.bias != nullptr;
      with_instance<value_t>(problem.head_dim, has_bias, [&](auto head_dim, auto bias) {
        constexpr int kDim = decltype(head_dim)::value;
        constexpr bool kHasBias = decltype(bias)::value;
        const Launch shape = Tile<value_t, kDim, Kind::kForward, kHasBias>::launch_for(problem);
        launch(tiled_kernel<value_t, kDim, kHasBias>, shape.blocks, shape.threads,
               shape.shared_bytes, problem, shape.tiling, output, logsumexp);
      });
      return;
    }
  }
  launch_token(token_kernel<query_t, value_t>, {problem}, output, logsumexp);
}

template void launch_forward(const Problem<double, double>&, bool, double*, LogSumExp<double>*);
template void launch_forward(const Problem<float, float>&, bool, float*, LogSumExp<float>*);
template void launch_forward(const Problem<at::Half, at::Half>&, bool, at::Half*,
                             LogSumExp<float>*);
template void launch_forward(const Problem<at::BFloat16, at::BFloat16>&, bool, at::BFloat16*,
                             LogSumExp<float>*);
template void launch_forward(const Problem<float, at::Half>&, bool, at::Half*, LogSumExp<float>*);
template void launch_forward(const Problem<float, at::BFloat16>&, bool, at::BFloat16*,
                             LogSumExp<float>*);

}  // namespace mmlocalattn::cuda::neighborhood
