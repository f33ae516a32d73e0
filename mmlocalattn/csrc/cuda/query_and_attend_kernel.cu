// CUDA operator: query and attend, forward. See query_and_attend.cuh.
#include <torch/library.h>

#include "query_and_attend.cuh"

namespace mmlocalattn {
namespace {

template <typename T>
__global__ void __launch_bounds__(kThreads)
    query_and_attend_kernel(Problem<T> p, T* output, at::opmath_type<T>* logsumexp) {
  using accum_t = at::opmath_type<T>;
  const Place place = place_of_block(p.heads, p.cols.windows(), p.rows.windows(), kRows);
  const Area area = input_area(p, place.y, place.x);
  const int taps = p.taps(), col = threadIdx.x % kCols, row = threadIdx.x / kCols;
  const ForwardShared<accum_t> shared(area.size(), taps);
  const int64_t y = place.y + row, x = place.x + col, window = p.window(place.b, y, x);
  const bool is_window = y < p.rows.windows() && x < p.cols.windows();
  const int at = static_cast<int>(row * p.rows.stride * area.cols + col * p.cols.stride);
  for (int64_t d = 0; d < p.dim; d += kChannels) {
    accum_t sum[kChannels] = {};
    for (int64_t first_query = 0; first_query < p.queries; first_query += kQueries) {
      sync_block();
      if (first_query == 0) {
        load_vectors(p.values, area, place, d, p.dim, shared.values);
      }
      load_scores(p, area, place, first_query, shared.scores);
      load_tables(p, first_query, place.head, shared.tables);
      sync_block();
      if (!is_window) {
        continue;
      }
      accum_t lse[kQueries];
#pragma unroll
      for (int q = 0; q < kQueries; ++q) {
        if (first_query + q >= p.queries) {
          continue;
        }
        const accum_t *scores = shared.scores + q * area.size() + at,
                      *bias = shared.tables + q * 2 * taps;
        accum_t* own = logsumexp + (window * p.queries + first_query + q) * p.heads + place.head;
        if (d > 0) {
          lse[q] = *own;
          continue;
        }
        accum_t most = -std::numeric_limits<accum_t>::infinity(), total = 0;
        for_each_tap(p.rows, p.cols, area.cols, [&](int tap, int offset) {
          const accum_t logit = scores[offset] + bias[tap];
          most = logit > most ? logit : most;
        });
        for_each_tap(p.rows, p.cols, area.cols, [&](int tap, int offset) {
          total += exp_of(scores[offset] + bias[tap] - most);
        });
        lse[q] = *own = most + std::log(total);
      }
      for_each_tap(p.rows, p.cols, area.cols, [&](int tap, int offset) {
        accum_t weight = 0;
#pragma unroll
        for (int q = 0; q < kQueries; ++q) {
          if (first_query + q < p.queries) {
            const accum_t *scores = shared.scores + q * area.size() + at,
                          *table = shared.tables + q * 2 * taps + tap;
            weight += table[taps] * exp_of(scores[offset] + table[0] - lse[q]);
          }
        }
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          sum[c] += weight * shared.values[c * area.size() + at + offset];
        }
      });
    }
    if (is_window) {
      T* to = output + (window * p.heads + place.head) * p.dim + d;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if (d + c < p.dim) {
          to[c] = static_cast<T>(sum[c]);
        }
      }
    }
  }
}

std::tuple<Tensor, Tensor> query_and_attend_cuda(const Tensor& scores, const Tensor& values,
                                                 const std::optional<Tensor>& bias,
                                                 const std::optional<Tensor>& scale,
                                                 IntArrayRef kernel_size, int64_t stride) {
  const c10::cuda::CUDAGuard guard(values.device());
  const Call call = make_call(scores, values, bias, scale, kernel_size, stride);
  const Tensor output = at::empty(call.window_sizes(values), values.options());
  const Tensor logsumexp = at::empty(call.window_sizes(scores), call.bias.options());
  dispatch(values, [&](auto type) {
    using T = decltype(type);
    using accum_t = at::opmath_type<T>;
    const auto p = describe<T>(call);
    const int64_t blocks = call.tiles(p.rows.windows(), p.cols.windows(), kRows) * p.heads;
    launch(query_and_attend_kernel<T>, blocks, kThreads,
           ForwardShared<accum_t>::bytes(input_area(p, 0, 0).size(), p.taps()), p,
           output.mutable_data_ptr<T>(), logsumexp.mutable_data_ptr<accum_t>());
  });
  return {output, logsumexp};
}

}  // namespace
}  // namespace mmlocalattn

TORCH_LIBRARY_IMPL(mmlocalattn, CUDA, m) {
  m.impl("query_and_attend", &mmlocalattn::query_and_attend_cuda);
}
