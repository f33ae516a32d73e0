// CUDA operator: query and attend, backward. See query_and_attend.cuh.
#include <torch/library.h>

#include "query_and_attend.cuh"

namespace mmlocalattn {
namespace {

// Writes delta.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    query_and_attend_delta_kernel(Problem<T> p, at::opmath_type<T>* delta) {
  using accum_t = at::opmath_type<T>;
  const Place place = place_of_block(p.heads, p.cols.windows(), p.rows.windows(), kRows);
  const Area area = input_area(p, place.y, place.x);
  const int taps = p.taps(), col = threadIdx.x % kCols, row = threadIdx.x / kCols;
  const ForwardShared<accum_t> shared(area.size(), taps);
  const int64_t y = place.y + row, x = place.x + col, window = p.window(place.b, y, x);
  const bool is_window = y < p.rows.windows() && x < p.cols.windows();
  const int at = static_cast<int>(row * p.rows.stride * area.cols + col * p.cols.stride);
  for (int64_t first_query = 0; first_query < p.queries; first_query += kQueries) {
    accum_t sum[kQueries] = {};
    for (int64_t d = 0; d < p.dim; d += kChannels) {
      sync_block();
      load_vectors(p.values, area, place, d, p.dim, shared.values);
      if (d == 0) {
        load_scores(p, area, place, first_query, shared.scores);
        load_tables(p, first_query, place.head, shared.tables);
      }
      sync_block();
      if (!is_window) {
        continue;
      }
      accum_t grad[kChannels], lse[kQueries];
      read_channels(p.grad_output, p.grad_output.at(place.b, y, x, place.head), d, p.dim, grad);
#pragma unroll
      for (int q = 0; q < kQueries; ++q) {
        lse[q] = first_query + q < p.queries
                     ? p.logsumexp[(window * p.queries + first_query + q) * p.heads + place.head]
                     : 0;
      }
      for_each_tap(p.rows, p.cols, area.cols, [&](int tap, int offset) {
        accum_t product = 0;
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          product += grad[c] * shared.values[c * area.size() + at + offset];
        }
#pragma unroll
        for (int q = 0; q < kQueries; ++q) {
          if (first_query + q < p.queries) {
            const accum_t *scores = shared.scores + q * area.size() + at,
                          *table = shared.tables + q * 2 * taps + tap;
            sum[q] += table[taps] * exp_of(scores[offset] + table[0] - lse[q]) * product;
          }
        }
      });
    }
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      if (is_window && first_query + q < p.queries) {
        delta[(window * p.queries + first_query + q) * p.heads + place.head] = sum[q];
      }
    }
  }
}

template <typename accum_t>
struct BackwardShared {
  accum_t *grad_output, *logsumexp, *delta, *tables;
  accum_t* grad_scores;  // (queries, positions of the block)
  accum_t* sums;         // (warps, kQueries, taps, 2)

  __device__ BackwardShared(int area, int taps, int64_t queries) {
    grad_output = dynamic_shared<accum_t>();
    logsumexp = grad_output + kChannels * area;
    delta = logsumexp + kQueries * area;
    tables = delta + kQueries * area;
    grad_scores = tables + kQueries * 2 * taps;
    sums = grad_scores + queries * kThreads * kPositions;
  }
  static int64_t bytes(int area, int taps, int64_t queries) {
    return sizeof(accum_t) * ((kChannels + 2 * kQueries) * area +
                              (1 + kWarps) * kQueries * 2 * taps + queries * kThreads * kPositions);
  }
};

template <typename T>
__device__ void load_window_numbers(const Problem<T>& p, const Area& area, const Place& place,
                                    int64_t first_query,
                                    const BackwardShared<at::opmath_type<T>>& shared) {
  using accum_t = at::opmath_type<T>;
  area.for_each([&](int i, int64_t y, int64_t x, bool is_on_map) {
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      const bool has_query = is_on_map && first_query + q < p.queries;
      const int64_t from = (p.window(place.b, y, x) * p.queries + first_query + q) * p.heads;
      shared.logsumexp[q * area.size() + i] =
          has_query ? p.logsumexp[from + place.head] : std::numeric_limits<accum_t>::infinity();
      shared.delta[q * area.size() + i] = has_query ? p.delta[from + place.head] : 0;
    }
  });
}

// The sum over a warp, in every lane.
template <typename accum_t>
__device__ __forceinline__ accum_t sum_of_warp(accum_t value) {
#pragma unroll
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
    value += shuffle_xor(value, mask);
  }
  return value;
}

// One position of a thread.
template <typename accum_t>
struct Position {
  accum_t value[kChannels], grad_value[kChannels];
  accum_t score[kQueries], grad_score[kQueries];
  int64_t y, x;  // plus the positions of the first window before the axis
  bool is_on_map;
};

// Part of the gradients of the tables: (blocks of one head, queries, heads, 2, taps), of bias and
// scale.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    query_and_attend_backward_kernel(Problem<T> p, T* grad_scores, T* grad_values,
                                     at::opmath_type<T>* parts) {
  using accum_t = at::opmath_type<T>;
  const Place place = place_of_block(p.heads, p.cols.length, p.rows.length, kRows * kPositions);
  const Area area = window_area(p, place.y, place.x);
  const int taps = p.taps(), stride = static_cast<int>(p.rows.stride),
            lane = threadIdx.x % kWarpSize;
  const BackwardShared<accum_t> shared(area.size(), taps, p.queries);
  accum_t* warp_sums = shared.sums + threadIdx.x / kWarpSize * kQueries * taps * 2;
  for (int64_t d = 0; d < p.dim; d += kChannels) {
    Position<accum_t> positions[kPositions];
#pragma unroll
    for (int i = 0; i < kPositions; ++i) {
      auto& position = positions[i];
      const int64_t y = place.y + threadIdx.x / kCols + i * kRows,
                    x = place.x + threadIdx.x % kCols;
      position = {};
      position.y = y + p.rows.low(), position.x = x + p.cols.low();
      position.is_on_map = y < p.rows.length && x < p.cols.length;
      if (position.is_on_map) {
        read_channels(p.values, p.values.at(place.b, y, x, place.head), d, p.dim, position.value);
      }
    }
    for (int64_t first_query = 0; first_query < p.queries; first_query += kQueries) {
      sync_block();
      if (first_query == 0) {
        load_vectors(p.grad_output, area, place, d, p.dim, shared.grad_output);
      }
      load_window_numbers(p, area, place, first_query, shared);
      load_tables(p, first_query, place.head, shared.tables);
      sync_block();
#pragma unroll
      for (int i = 0; i < kPositions; ++i) {
        auto& position = positions[i];
#pragma unroll
        for (int q = 0; q < kQueries; ++q) {
          position.grad_score[q] = 0;
          position.score[q] =
              position.is_on_map && first_query + q < p.queries
                  ? static_cast<accum_t>(*(p.scores.at(place.b, position.y - p.rows.low(),
                                                       position.x - p.cols.low(), first_query + q) +
                                           place.head))
                  : -std::numeric_limits<accum_t>::infinity();
        }
      }
      for_each_tap(p.rows, p.cols, 0, [&](int tap, int) {
        const int row = tap / static_cast<int>(p.cols.kernel),
                  col = tap % static_cast<int>(p.cols.kernel);
        accum_t grad_scale[kQueries] = {}, grad_bias[kQueries] = {};
#pragma unroll
        for (int i = 0; i < kPositions; ++i) {
          auto& position = positions[i];
          // A position sees no window through this tap if the stride leaves it out.
          const int64_t dy = position.y - row, dx = position.x - col;
          if (!position.is_on_map || (dy & (stride - 1)) != 0 || (dx & (stride - 1)) != 0) {
            continue;
          }
          const int at = static_cast<int>((dy / stride - area.first_row) * area.cols + dx / stride -
                                          area.first_col);
          accum_t product = 0, weights = 0;
#pragma unroll
          for (int c = 0; c < kChannels; ++c) {
            product += position.value[c] * shared.grad_output[c * area.size() + at];
          }
#pragma unroll
          for (int q = 0; q < kQueries; ++q) {
            if (first_query + q < p.queries) {
              const accum_t* table = shared.tables + q * 2 * taps + tap;
              const accum_t weight =
                  exp_of(position.score[q] + table[0] - shared.logsumexp[q * area.size() + at]);
              const accum_t delta = d == 0 ? shared.delta[q * area.size() + at] : 0;
              const accum_t grad = weight * (table[taps] * product - delta);
              weights += weight * table[taps];
              position.grad_score[q] += grad;
              grad_bias[q] += grad;
              grad_scale[q] += weight * product;
            }
          }
#pragma unroll
          for (int c = 0; c < kChannels; ++c) {
            position.grad_value[c] += weights * shared.grad_output[c * area.size() + at];
          }
        }
#pragma unroll
        for (int q = 0; q < kQueries; ++q) {
          const accum_t bias_sum = sum_of_warp(grad_bias[q]),
                        scale_sum = sum_of_warp(grad_scale[q]);
          if (lane == 0) {
            warp_sums[q * 2 * taps + tap] = bias_sum;
            warp_sums[(q * 2 + 1) * taps + tap] = scale_sum;
          }
        }
      });
#pragma unroll
      for (int i = 0; i < kPositions; ++i) {
#pragma unroll
        for (int q = 0; q < kQueries; ++q) {
          if (first_query + q < p.queries) {
            accum_t& sum =
                shared.grad_scores[((first_query + q) * kPositions + i) * kThreads + threadIdx.x];
            sum = d == 0 ? positions[i].grad_score[q] : sum + positions[i].grad_score[q];
          }
        }
      }
      sync_block();
      for (int i = threadIdx.x; i < kQueries * 2 * taps; i += kThreads) {
        const int64_t q = first_query + i / (2 * taps);
        if (q < p.queries) {
          accum_t sum = 0;
          for (int warp = 0; warp < kWarps; ++warp) {
            sum += shared.sums[warp * kQueries * 2 * taps + i];
          }
          const int64_t block = blockIdx.x / p.heads;
          accum_t* part = parts + ((block * p.queries + q) * p.heads + place.head) * 2 * taps;
          part[i % (2 * taps)] = d == 0 ? sum : part[i % (2 * taps)] + sum;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kPositions; ++i) {
      const auto& position = positions[i];
      if (position.is_on_map) {
        const int64_t index =
            (place.b * p.rows.length + position.y - p.rows.low()) * p.cols.length + position.x -
            p.cols.low();
        T* to = grad_values + (index * p.heads + place.head) * p.dim + d;
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          if (d + c < p.dim) {
            to[c] = static_cast<T>(position.grad_value[c]);
          }
        }
        for (int64_t q = 0; d + kChannels >= p.dim && q < p.queries; ++q) {
          grad_scores[(index * p.queries + q) * p.heads + place.head] =
              static_cast<T>(shared.grad_scores[(q * kPositions + i) * kThreads + threadIdx.x]);
        }
      }
    }
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> query_and_attend_backward_cuda(
    const Tensor& grad_output, const Tensor& scores, const Tensor& values,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& scale, const Tensor& logsumexp,
    IntArrayRef kernel_size, int64_t stride) {
  const c10::cuda::CUDAGuard guard(values.device());
  const Call call = make_call(scores, values, bias, scale, kernel_size, stride);
  TORCH_CHECK(grad_output.sizes() == call.window_sizes(values) &&
                  logsumexp.sizes() == call.window_sizes(scores) &&
                  grad_output.device() == values.device() && logsumexp.device() == values.device(),
              "grad_output and logsumexp must belong to scores and values");
  const Tensor ready_grad = ready(grad_output.to(values.options())),
               ready_logsumexp = logsumexp.to(call.bias.options()).contiguous();
  const Tensor delta = at::empty_like(ready_logsumexp);
  const Tensor grad_scores = at::empty(scores.sizes(), scores.options()),
               grad_values = at::empty(values.sizes(), values.options());
  const int64_t tiles = call.tiles(values.size(1), values.size(2), kRows * kPositions),
                heads = values.size(3);
  const Tensor parts = at::empty({tiles, scores.size(3), heads, 2, kernel_size[0], kernel_size[1]},
                                 call.bias.options());
  dispatch(values, [&](auto type) {
    using T = decltype(type);
    using accum_t = at::opmath_type<T>;
    auto p = describe<T>(call);
    p.grad_output = source<T>(ready_grad);
    p.logsumexp = ready_logsumexp.const_data_ptr<accum_t>();
    auto* deltas = delta.mutable_data_ptr<accum_t>();
    launch(query_and_attend_delta_kernel<T>,
           call.tiles(p.rows.windows(), p.cols.windows(), kRows) * heads, kThreads,
           ForwardShared<accum_t>::bytes(input_area(p, 0, 0).size(), p.taps()), p, deltas);
    p.delta = deltas;
    launch(query_and_attend_backward_kernel<T>, tiles * heads, kThreads,
           BackwardShared<accum_t>::bytes(window_area(p, 0, 0).size(), p.taps(), p.queries), p,
           grad_scores.mutable_data_ptr<T>(), grad_values.mutable_data_ptr<T>(),
           parts.mutable_data_ptr<accum_t>());
  });
  const Tensor grad_tables = parts.sum(0);
  const auto of_table = [&](const std::optional<Tensor>& table, int64_t index) {
    return table ? grad_tables.select(2, index).to(table->scalar_type()).contiguous()
                 : at::empty({0}, values.options());
  };
  return {grad_scores, grad_values, of_table(bias, 0), of_table(scale, 1)};
}

}  // namespace
}  // namespace mmlocalattn

TORCH_LIBRARY_IMPL(mmlocalattn, CUDA, m) {
  m.impl("_query_and_attend_backward", &mmlocalattn::query_and_attend_backward_cuda);
}
