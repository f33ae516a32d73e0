// Query and attend backward: see problem.cuh and tile.cuh.
#include <limits>

#include "tile.cuh"

namespace mmlocalattn::cuda::query_and_attend {
namespace {

// Writes delta.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    query_and_attend_delta_kernel(Problem<T> problem, at::opmath_type<T>* delta) {
  using accum_t = at::opmath_type<T>;
  const Place place =
      place_of_block(problem.heads, problem.cols.windows(), problem.rows.windows(), kRows);
  const Area area = input_area(problem, place.y, place.x);
  const int taps = problem.taps(), col = threadIdx.x % kCols, row = threadIdx.x / kCols;
  const ForwardShared<accum_t> shared(area.size(), taps);
  const int64_t y = place.y + row, x = place.x + col, window = problem.window(place.b, y, x);
  const bool is_window = y < problem.rows.windows() && x < problem.cols.windows();
  const int at =
      static_cast<int>(row * problem.rows.stride * area.cols + col * problem.cols.stride);
  for (int64_t first_query = 0; first_query < problem.queries; first_query += kQueries) {
    accum_t sum[kQueries] = {};
    for (int64_t d = 0; d < problem.dim; d += kChannels) {
      sync_block();
      load_vectors(problem.values, area, place, d, problem.dim, shared.values);
      if (d == 0) {
        load_scores(problem, area, place, first_query, shared.scores);
        load_tables(problem, first_query, place.head, shared.tables);
      }
      sync_block();
      if (!is_window) {
        continue;
      }
      accum_t grad[kChannels], lse[kQueries];
      read_channels(problem.grad_output, problem.grad_output.at(place.b, y, x, place.head), d,
                    problem.dim, grad);
#pragma unroll
      for (int q = 0; q < kQueries; ++q) {
        lse[q] =
            first_query + q < problem.queries
                ? problem.logsumexp[(window * problem.queries + first_query + q) * problem.heads +
                                    place.head]
                : 0;
      }
      for_each_tap(problem.rows, problem.cols, area.cols, [&](int tap, int offset) {
        accum_t product = 0;
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          product += grad[c] * shared.values[c * area.size() + at + offset];
        }
#pragma unroll
        for (int q = 0; q < kQueries; ++q) {
          if (first_query + q < problem.queries) {
            const accum_t *scores = shared.scores + q * area.size() + at,
                          *table = shared.tables + q * 2 * taps + tap;
            sum[q] += table[taps] * exp_of(scores[offset] + table[0] - lse[q]) * product;
          }
        }
      });
    }
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      if (is_window && first_query + q < problem.queries) {
        delta[(window * problem.queries + first_query + q) * problem.heads + place.head] = sum[q];
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
__device__ void load_window_numbers(const Problem<T>& problem, const Area& area, const Place& place,
                                    int64_t first_query,
                                    const BackwardShared<at::opmath_type<T>>& shared) {
  using accum_t = at::opmath_type<T>;
  area.for_each([&](int i, int64_t y, int64_t x, bool is_on_map) {
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      const bool has_query = is_on_map && first_query + q < problem.queries;
      const int64_t from =
          (problem.window(place.b, y, x) * problem.queries + first_query + q) * problem.heads;
      shared.logsumexp[q * area.size() + i] = has_query ? problem.logsumexp[from + place.head]
                                                        : std::numeric_limits<accum_t>::infinity();
      shared.delta[q * area.size() + i] = has_query ? problem.delta[from + place.head] : 0;
    }
  });
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
    query_and_attend_backward_kernel(Problem<T> problem, T* grad_scores, T* grad_values,
                                     at::opmath_type<T>* parts) {
  using accum_t = at::opmath_type<T>;
  const Place place =
      place_of_block(problem.heads, problem.cols.length, problem.rows.length, kRows * kPositions);
  const Area area = window_area(problem, place.y, place.x);
  const int taps = problem.taps(), stride = static_cast<int>(problem.rows.stride);
  const BackwardShared<accum_t> shared(area.size(), taps, problem.queries);
  accum_t* warp_sums = shared.sums + warp() * kQueries * taps * 2;
  for (int64_t d = 0; d < problem.dim; d += kChannels) {
    Position<accum_t> positions[kPositions];
#pragma unroll
    for (int i = 0; i < kPositions; ++i) {
      auto& position = positions[i];
      const int64_t y = place.y + threadIdx.x / kCols + i * kRows,
                    x = place.x + threadIdx.x % kCols;
      position = {};
      position.y = y + problem.rows.low(), position.x = x + problem.cols.low();
      position.is_on_map = y < problem.rows.length && x < problem.cols.length;
      if (position.is_on_map) {
        read_channels(problem.values, problem.values.at(place.b, y, x, place.head), d, problem.dim,
                      position.value);
      }
    }
    for (int64_t first_query = 0; first_query < problem.queries; first_query += kQueries) {
      sync_block();
      if (first_query == 0) {
        load_vectors(problem.grad_output, area, place, d, problem.dim, shared.grad_output);
      }
      load_window_numbers(problem, area, place, first_query, shared);
      load_tables(problem, first_query, place.head, shared.tables);
      sync_block();
#pragma unroll
      for (int i = 0; i < kPositions; ++i) {
        auto& position = positions[i];
#pragma unroll
        for (int q = 0; q < kQueries; ++q) {
          position.grad_score[q] = 0;
          position.score[q] =
              position.is_on_map && first_query + q < problem.queries
                  ? static_cast<accum_t>(
                        *(problem.scores.at(place.b, position.y - problem.rows.low(),
                                            position.x - problem.cols.low(), first_query + q) +
                          place.head))
                  : -std::numeric_limits<accum_t>::infinity();
        }
      }
      for_each_tap(problem.rows, problem.cols, 0, [&](int tap, int) {
        const int row = tap / static_cast<int>(problem.cols.kernel),
                  col = tap % static_cast<int>(problem.cols.kernel);
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
            if (first_query + q < problem.queries) {
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
          const accum_t bias_sum = warp_sum(grad_bias[q]), scale_sum = warp_sum(grad_scale[q]);
          if (lane() == 0) {
            warp_sums[q * 2 * taps + tap] = bias_sum;
            warp_sums[(q * 2 + 1) * taps + tap] = scale_sum;
          }
        }
      });
#pragma unroll
      for (int i = 0; i < kPositions; ++i) {
#pragma unroll
        for (int q = 0; q < kQueries; ++q) {
          if (first_query + q < problem.queries) {
            accum_t& sum =
                shared.grad_scores[((first_query + q) * kPositions + i) * kThreads + threadIdx.x];
            sum = d == 0 ? positions[i].grad_score[q] : sum + positions[i].grad_score[q];
          }
        }
      }
      sync_block();
      for (int i = threadIdx.x; i < kQueries * 2 * taps; i += kThreads) {
        const int64_t q = first_query + i / (2 * taps);
        if (q < problem.queries) {
          accum_t sum = 0;
          for (int warp = 0; warp < kWarps; ++warp) {
            sum += shared.sums[warp * kQueries * 2 * taps + i];
          }
          const int64_t block = blockIdx.x / problem.heads;
          accum_t* part =
              parts + ((block * problem.queries + q) * problem.heads + place.head) * 2 * taps;
          part[i % (2 * taps)] = d == 0 ? sum : part[i % (2 * taps)] + sum;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kPositions; ++i) {
      const auto& position = positions[i];
      if (position.is_on_map) {
        const int64_t index = (place.b * problem.rows.length + position.y - problem.rows.low()) *
                                  problem.cols.length +
                              position.x - problem.cols.low();
        T* to = grad_values + (index * problem.heads + place.head) * problem.dim + d;
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          if (d + c < problem.dim) {
            to[c] = static_cast<T>(position.grad_value[c]);
          }
        }
        for (int64_t q = 0; d + kChannels >= problem.dim && q < problem.queries; ++q) {
          grad_scores[(index * problem.queries + q) * problem.heads + place.head] =
              static_cast<T>(shared.grad_scores[(q * kPositions + i) * kThreads + threadIdx.x]);
        }
      }
    }
  }
}

}  // namespace

template <typename T>
void launch_backward(Problem<T> problem, at::opmath_type<T>* delta, T* grad_scores, T* grad_values,
                     at::opmath_type<T>* parts) {
  using accum_t = at::opmath_type<T>;
  launch(query_and_attend_delta_kernel<T>, problem.window_tiles() * problem.heads, kThreads,
         ForwardShared<accum_t>::bytes(input_area(problem, 0, 0).size(), problem.taps()), problem,
         delta);
  problem.delta = delta;
  launch(query_and_attend_backward_kernel<T>, problem.position_tiles() * problem.heads, kThreads,
         BackwardShared<accum_t>::bytes(window_area(problem, 0, 0).size(), problem.taps(),
                                        problem.queries),
         problem, grad_scores, grad_values, parts);
}

template void launch_backward(Problem<double>, double*, double*, double*, double*);
template void launch_backward(Problem<float>, float*, float*, float*, float*);
template void launch_backward(Problem<at::Half>, float*, at::Half*, at::Half*, float*);
template void launch_backward(Problem<at::BFloat16>, float*, at::BFloat16*, at::BFloat16*, float*);

}  // namespace mmlocalattn::cuda::query_and_attend
