// Query and attend forward: see problem.cuh and tile.cuh.
#include <cmath>
#include <limits>

#include "tile.cuh"

namespace mmlocalattn::cuda::query_and_attend {
namespace {

// Taps of the windows of most models, in each direction.
constexpr int kSmall = 3;

// The window of a thread.
template <typename T>
struct Window {
  using accum_t = at::opmath_type<T>;
  static constexpr accum_t kLeast = -std::numeric_limits<accum_t>::infinity();

  const Problem<T>& problem;
  Place place;
  Area area;  // of the input, that the block sees
  WindowShared<accum_t> shared;
  int y, x, at;  // on the map of windows, and in the area
  bool is_on_map;
  LogSumExp<accum_t>* logsumexp;  // of its first query

  __device__ Window(const Problem<T>& problem, LogSumExp<accum_t>* logsumexps)
      : problem(problem),
        place(place_of_block(problem.heads, problem.cols.windows(), problem.rows.windows(), kRows)),
        area(input_area(problem, place.y, place.x)),
        shared(problem, area) {
    const int col = threadIdx.x % kCols, row = threadIdx.x / kCols;
    y = place.y + row;
    x = place.x + col;
    at = row * problem.rows.stride * area.cols + col * problem.cols.stride;
    is_on_map = y < problem.rows.windows() && x < problem.cols.windows();
    const int64_t number = (place.b * problem.rows.windows() + y) * problem.cols.windows() + x;
    logsumexp = logsumexps + number * problem.queries * problem.heads + place.head;
  }

  // Bring to shared memory what the block needs of kQueries queries, and of kChannels channels.
  __device__ void load_queries(int query) const {
    sync_block();
    load_scores(problem, area, place, query, shared.scores);
    load_tables(problem, query, place.head, shared.tables);
    sync_block();
  }
  __device__ void load_values(int channel) const {
    sync_block();
    load_vectors(problem.values, area, place, channel, problem.dim, shared.values);
    sync_block();
  }

  __device__ void add_tap(accum_t (&sum)[kChannels], accum_t weight, int offset) const {
    add(sum, weight, shared.values + at + offset, area.size());
  }
  __device__ void store(int channel, const accum_t (&sum)[kChannels]) const {
    write_vector(problem.output.at(place.b, y, x, place.head), problem.output.has_chunks, channel,
                 problem.dim, sum);
  }
  __device__ void store_logsumexp(int query, const accum_t (&most)[kQueries],
                                  const accum_t (&total)[kQueries]) const {
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      if (query + q < problem.queries) {
        logsumexp[(query + q) * problem.heads] = {most[q], std::log(total[q])};
      }
    }
  }

  // Makes `most` that of a logit, if that is larger.
  __device__ static void add_logit(accum_t& most, accum_t score, accum_t bias) {
    most = larger(score + bias * (1 / kLog2E<accum_t>), most);
  }

  // Logarithms of the sums of exponentials of kQueries queries, of which some are none.
  __device__ void sum_exponentials(int query) const {
    accum_t most[kQueries] = {kLeast, kLeast}, total[kQueries] = {};
    shared.for_each_tap(0, problem.taps(), [&](int tap, int offset) {
      const Pair<accum_t> scores = shared.scores[at + offset], bias = shared.tables[tap].first;
#pragma unroll
      for (int q = 0; q < kQueries; ++q) add_logit(most[q], scores.of[q], bias.of[q]);
    });
    shared.for_each_tap(0, problem.taps(), [&](int tap, int offset) {
      const Pair<accum_t> scores = shared.scores[at + offset], bias = shared.tables[tap].first;
#pragma unroll
      for (int q = 0; q < kQueries; ++q) {
        total[q] += power_of(scores.of[q], bias.of[q], most[q]);
      }
    });
    store_logsumexp(query, most, total);
  }

  // Adds what kQueries queries give taps [begin, end) of weight to shared memory.
  __device__ void weigh(int query, int begin, int end) const {
    LogSumExp<accum_t> lse[kQueries] = {};
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      if (query + q < problem.queries) {
        lse[q] = read_logsumexp(logsumexp[(query + q) * problem.heads]);
      }
    }
    accum_t* own = shared.taps + threadIdx.x;
    shared.for_each_tap(begin, end, [&](int tap, int offset) {
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

  // Adds what kQueries queries give a window of kSmall x kSmall taps of weight.
  __device__ void weigh_small(int query, accum_t (&weights)[kSmall * kSmall]) const {
    accum_t most[kQueries] = {kLeast, kLeast}, total[kQueries] = {}, factor[kQueries];
    Pair<accum_t> powers[kSmall * kSmall];  // scores at first
#pragma unroll
    for (int tap = 0; tap < kSmall * kSmall; ++tap) {
      powers[tap] = shared.scores[at + small_offset(tap)];
#pragma unroll
      for (int q = 0; q < kQueries; ++q) {
        add_logit(most[q], powers[tap].of[q], shared.tables[tap].first.of[q]);
      }
    }
#pragma unroll
    for (int tap = 0; tap < kSmall * kSmall; ++tap) {
#pragma unroll
      for (int q = 0; q < kQueries; ++q) {
        accum_t& power = powers[tap].of[q];
        power = power_of(power, shared.tables[tap].first.of[q], most[q]);
        total[q] += power;
      }
    }
    store_logsumexp(query, most, total);
#pragma unroll
    for (int q = 0; q < kQueries; ++q) factor[q] = 1 / total[q];
#pragma unroll
    for (int tap = 0; tap < kSmall * kSmall; ++tap) {
#pragma unroll
      for (int q = 0; q < kQueries; ++q) {
        weights[tap] += shared.tables[tap].second.of[q] * (factor[q] * powers[tap].of[q]);
      }
    }
  }
  __device__ int small_offset(int tap) const { return tap / kSmall * area.cols + tap % kSmall; }
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    query_and_attend_kernel(Problem<T> problem, LogSumExp<at::opmath_type<T>>* logsumexp) {
  using accum_t = at::opmath_type<T>;
  const Window<T> window(problem, logsumexp);
  const int taps = problem.taps();
  for (int channel = 0; channel < problem.dim; channel += kChannels) {
    accum_t sum[kChannels] = {};
    for (int begin = 0; begin < taps; begin += problem.kept_taps) {
      const int end = end_of_chunk(problem, begin);
      for (int query = 0; query < problem.queries; query += kQueries) {
        if (channel > 0 && problem.kept_taps == taps) break;  // the weights are still there
        window.load_queries(query);
        if (!window.is_on_map) continue;
        if (channel == 0 && begin == 0) window.sum_exponentials(query);
        window.weigh(query, begin, end);
      }
      if (begin == 0) window.load_values(channel);
      if (!window.is_on_map) continue;
      const accum_t* weight = window.shared.taps + threadIdx.x;
      window.shared.for_each_tap(begin, end, [&](int, int offset) {
        window.add_tap(sum, *weight, offset);
        weight += kThreads;
      });
    }
    if (window.is_on_map) window.store(channel, sum);
  }
}

// The same where a window has kSmall x kSmall taps, whose weights then have registers.
template <typename T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 7)
    query_and_attend_small_kernel(Problem<T> problem, LogSumExp<at::opmath_type<T>>* logsumexp) {
  using accum_t = at::opmath_type<T>;
  const Window<T> window(problem, logsumexp);
  accum_t weights[kSmall * kSmall] = {};
  for (int query = 0; query < problem.queries; query += kQueries) {
    window.load_queries(query);
    if (window.is_on_map) window.weigh_small(query, weights);
  }
  for (int channel = 0; channel < problem.dim; channel += kChannels) {
    window.load_values(channel);
    if (!window.is_on_map) continue;
    accum_t sum[kChannels] = {};
#pragma unroll
    for (int tap = 0; tap < kSmall * kSmall; ++tap) {
      window.add_tap(sum, weights[tap], window.small_offset(tap));
    }
    window.store(channel, sum);
  }
}

}  // namespace

template <typename T>
void launch_forward(Problem<T> problem, LogSumExp<at::opmath_type<T>>* logsumexp) {
  using accum_t = at::opmath_type<T>;
  const int64_t bytes =
      WindowShared<accum_t>::bytes(input_area(problem, 0, 0).size(), problem.taps());
  if (problem.rows.kernel == kSmall && problem.cols.kernel == kSmall) {
    launch(query_and_attend_small_kernel<T>, problem.window_tiles() * problem.heads, kThreads,
           bytes, problem, logsumexp);
    return;
  }
  launch_tiles(query_and_attend_kernel<T>, problem, problem.window_tiles(), bytes,
               kThreads * sizeof(accum_t), logsumexp);
}

template void launch_forward(Problem<double>, LogSumExp<double>*);
template void launch_forward(Problem<float>, LogSumExp<float>*);
template void launch_forward(Problem<at::Half>, LogSumExp<float>*);
template void launch_forward(Problem<at::BFloat16>, LogSumExp<float>*);

}  // namespace mmlocalattn::cuda::query_and_attend
