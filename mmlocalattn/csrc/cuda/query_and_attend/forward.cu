// Query and attend forward: see problem.cuh and tile.cuh.
#include <cmath>
#include <limits>

#include "tile.cuh"

namespace mmlocalattn::cuda::query_and_attend {
namespace {

// The window of a thread.
template <typename T>
struct Window {
  using accum_t = at::opmath_type<T>;

  const Problem<T>& problem;
  const WindowShared<accum_t>& shared;
  int area_cols, at;              // of the area of the input, and of the window there
  LogSumExp<accum_t>* logsumexp;  // of its first query
  bool is_on_map;

  // Logarithms of the sums of exponentials of kQueries queries, of which some are none.
  __device__ void sum_exponentials(int query) const {
    constexpr accum_t kLeast = -std::numeric_limits<accum_t>::infinity();
    accum_t most[kQueries] = {kLeast, kLeast}, total[kQueries] = {};
    for_each_tap(problem, 0, problem.taps(), area_cols, [&](int tap, int offset) {
      const Pair<accum_t> scores = shared.scores[at + offset], bias = shared.tables[tap].first;
#pragma unroll
      for (int q = 0; q < kQueries; ++q) {
        const accum_t logit = scores.of[q] + bias.of[q];
        most[q] = logit > most[q] ? logit : most[q];
      }
    });
    for_each_tap(problem, 0, problem.taps(), area_cols, [&](int tap, int offset) {
      const Pair<accum_t> scores = shared.scores[at + offset], bias = shared.tables[tap].first;
#pragma unroll
      for (int q = 0; q < kQueries; ++q) {
        total[q] += exp_of(scores.of[q] - most[q] + bias.of[q]);
      }
    });
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      if (query + q < problem.queries) {
        logsumexp[(query + q) * problem.heads] = {most[q], std::log(total[q])};
      }
    }
  }

  // Adds what kQueries queries give taps [begin, end) of weight to shared memory.
  __device__ void weigh(int query, int begin, int end) const {
    LogSumExp<accum_t> lse[kQueries] = {};
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      if (query + q < problem.queries) lse[q] = logsumexp[(query + q) * problem.heads];
    }
    accum_t* own = shared.taps + threadIdx.x;
    for_each_tap(problem, begin, end, area_cols, [&](int tap, int offset) {
      const Pair<accum_t> scores = shared.scores[at + offset];
      const Pairs<accum_t> table = shared.tables[tap];
      accum_t weight = query == 0 ? accum_t(0) : *own;
#pragma unroll
      for (int q = 0; q < kQueries; ++q) {
        weight += table.second.of[q] * weight_of(scores.of[q], table.first.of[q], lse[q]);
      }
      *own = weight;
      own += kThreads;
    });
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    query_and_attend_kernel(Problem<T> problem, LogSumExp<at::opmath_type<T>>* logsumexp) {
  using accum_t = at::opmath_type<T>;
  const Place place =
      place_of_block(problem.heads, problem.cols.windows(), problem.rows.windows(), kRows);
  const Area area = input_area(problem, place.y, place.x);
  const int taps = problem.taps(), col = threadIdx.x % kCols, row = threadIdx.x / kCols;
  const WindowShared<accum_t> shared(area.size(), taps);
  const int y = place.y + row, x = place.x + col;
  const int64_t number = (place.b * problem.rows.windows() + y) * problem.cols.windows() + x;
  const Window<T> window{problem,
                         shared,
                         area.cols,
                         row * problem.rows.stride * area.cols + col * problem.cols.stride,
                         logsumexp + number * problem.queries * problem.heads + place.head,
                         y < problem.rows.windows() && x < problem.cols.windows()};
  for (int channel = 0; channel < problem.dim; channel += kChannels) {
    accum_t sum[kChannels] = {};
    for (int begin = 0; begin < taps; begin += problem.kept_taps) {
      const int end = end_of_chunk(problem, begin);
      for (int query = 0; query < problem.queries; query += kQueries) {
        if (channel > 0 && problem.kept_taps == taps) break;  // the weights are still there
        sync_block();
        load_scores(problem, area, place, query, shared.scores);
        load_tables(problem, query, place.head, shared.tables);
        sync_block();
        if (!window.is_on_map) continue;
        if (channel == 0 && begin == 0) window.sum_exponentials(query);
        window.weigh(query, begin, end);
      }
      if (begin == 0) {
        sync_block();
        load_vectors(problem.values, area, place, channel, problem.dim, shared.values);
        sync_block();
      }
      if (!window.is_on_map) continue;
      const accum_t* weight = shared.taps + threadIdx.x;
      for_each_tap(problem, begin, end, area.cols, [&](int, int offset) {
        add(sum, *weight, shared.values + window.at + offset, area.size());
        weight += kThreads;
      });
    }
    if (window.is_on_map) {
      write_vector(problem.output.at(place.b, y, x, place.head), problem.output.has_chunks, channel,
                   problem.dim, sum);
    }
  }
}

}  // namespace

template <typename T>
void launch_forward(Problem<T> problem, LogSumExp<at::opmath_type<T>>* logsumexp) {
  using accum_t = at::opmath_type<T>;
  launch_tiles(query_and_attend_kernel<T>, problem, problem.window_tiles(),
               WindowShared<accum_t>::bytes(input_area(problem, 0, 0).size(), problem.taps()),
               kThreads * sizeof(accum_t), logsumexp);
}

template void launch_forward(Problem<double>, LogSumExp<double>*);
template void launch_forward(Problem<float>, LogSumExp<float>*);
template void launch_forward(Problem<at::Half>, LogSumExp<float>*);
template void launch_forward(Problem<at::BFloat16>, LogSumExp<float>*);

}  // namespace mmlocalattn::cuda::query_and_attend
