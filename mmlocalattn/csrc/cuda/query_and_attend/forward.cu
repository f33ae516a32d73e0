// Query and attend forward: see problem.cuh and tile.cuh.
#include <cmath>
#include <limits>

#include "tile.cuh"

namespace mmlocalattn::cuda::query_and_attend {
namespace {

template <typename T>
__global__ void __launch_bounds__(kThreads)
    query_and_attend_kernel(Problem<T> problem, T* output, at::opmath_type<T>* logsumexp) {
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
  for (int64_t d = 0; d < problem.dim; d += kChannels) {
    accum_t sum[kChannels] = {};
    for (int64_t first_query = 0; first_query < problem.queries; first_query += kQueries) {
      sync_block();
      if (first_query == 0) {
        load_vectors(problem.values, area, place, d, problem.dim, shared.values);
      }
      load_scores(problem, area, place, first_query, shared.scores);
      load_tables(problem, first_query, place.head, shared.tables);
      sync_block();
      if (!is_window) {
        continue;
      }
      accum_t lse[kQueries];
#pragma unroll
      for (int q = 0; q < kQueries; ++q) {
        if (first_query + q >= problem.queries) {
          continue;
        }
        const accum_t *scores = shared.scores + q * area.size() + at,
                      *bias = shared.tables + q * 2 * taps;
        accum_t* own =
            logsumexp + (window * problem.queries + first_query + q) * problem.heads + place.head;
        if (d > 0) {
          lse[q] = *own;
          continue;
        }
        accum_t most = -std::numeric_limits<accum_t>::infinity(), total = 0;
        for_each_tap(problem.rows, problem.cols, area.cols, [&](int tap, int offset) {
          const accum_t logit = scores[offset] + bias[tap];
          most = logit > most ? logit : most;
        });
        for_each_tap(problem.rows, problem.cols, area.cols, [&](int tap, int offset) {
          total += exp_of(scores[offset] + bias[tap] - most);
        });
        lse[q] = *own = most + std::log(total);
      }
      for_each_tap(problem.rows, problem.cols, area.cols, [&](int tap, int offset) {
        accum_t weight = 0;
#pragma unroll
        for (int q = 0; q < kQueries; ++q) {
          if (first_query + q < problem.queries) {
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
      T* to = output + (window * problem.heads + place.head) * problem.dim + d;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if (d + c < problem.dim) {
          to[c] = static_cast<T>(sum[c]);
        }
      }
    }
  }
}

}  // namespace

template <typename T>
void launch_forward(const Problem<T>& problem, T* output, at::opmath_type<T>* logsumexp) {
  launch(query_and_attend_kernel<T>, problem.window_tiles() * problem.heads, kThreads,
         ForwardShared<at::opmath_type<T>>::bytes(input_area(problem, 0, 0).size(), problem.taps()),
         problem, output, logsumexp);
}

template void launch_forward(const Problem<double>&, double*, double*);
template void launch_forward(const Problem<float>&, float*, float*);
template void launch_forward(const Problem<at::Half>&, at::Half*, float*);
template void launch_forward(const Problem<at::BFloat16>&, at::BFloat16*, float*);

}  // namespace mmlocalattn::cuda::query_and_attend
