// Query and attend backward: see problem.cuh and tile.cuh.
#include <limits>

#include "tile.cuh"

namespace mmlocalattn::cuda::query_and_attend {
namespace {

// Writes delta. A thread keeps <grad_output, values> of its taps.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    query_and_attend_delta_kernel(Problem<T> problem, at::opmath_type<T>* deltas) {
  using accum_t = at::opmath_type<T>;
  const Place place =
      place_of_block(problem.heads, problem.cols.windows(), problem.rows.windows(), kRows);
  const Area area = input_area(problem, place.y, place.x);
  const int taps = problem.taps(), col = threadIdx.x % kCols, row = threadIdx.x / kCols;
  const WindowShared<accum_t> shared(problem, area);
  const int y = place.y + row, x = place.x + col;
  const bool is_window = y < problem.rows.windows() && x < problem.cols.windows();
  const int at = row * problem.rows.stride * area.cols + col * problem.cols.stride;
  const int64_t number = (place.b * problem.rows.windows() + y) * problem.cols.windows() + x;
  const int64_t first = number * problem.queries * problem.heads + place.head;
  for (int query = 0; query < problem.queries; query += kQueries) {
    accum_t delta[kQueries] = {}, total[kQueries] = {};
    LogSumExp<accum_t> lse[kQueries] = {};
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      if (is_window && query + q < problem.queries) {
        lse[q] = read_logsumexp(problem.logsumexp[first + (query + q) * problem.heads]);
      }
    }
    for (int begin = 0; begin < taps; begin += problem.kept_taps) {
      const int end = end_of_chunk(problem, begin);
      const bool has_products = query > 0 && problem.kept_taps == taps;
      for (int channel = 0; channel < problem.dim && !has_products; channel += kChannels) {
        sync_block();
        load_vectors(problem.values, area, place, channel, problem.dim, shared.values);
        sync_block();
        if (!is_window) continue;
        accum_t grad[kChannels];
        read_vector(problem.grad_output.at(place.b, y, x, place.head),
                    problem.grad_output.has_chunks, channel, problem.dim, grad);
        accum_t* own = shared.taps + threadIdx.x;
        shared.for_each_tap(begin, end, [&](int, int offset) {
          *own =
              dot(grad, shared.values + at + offset, area.size(), channel == 0 ? accum_t(0) : *own);
          own += kThreads;
        });
      }
      if (begin == 0) {
        sync_block();
        load_scores(problem, area, place, query, shared.scores);
        load_tables(problem, query, place.head, shared.tables);
        sync_block();
      }
      if (!is_window) continue;
      const accum_t* product = shared.taps + threadIdx.x;
      shared.for_each_tap(begin, end, [&](int tap, int offset) {
        const Pair<accum_t> scores = shared.scores[at + offset];
        const Pairs<accum_t> table = shared.tables[tap];
#pragma unroll
        for (int q = 0; q < kQueries; ++q) {
          const accum_t weight = weight_of(scores.of[q], table.first.of[q], lse[q]);
          total[q] += weight;
          delta[q] += table.second.of[q] * weight * *product;
        }
        product += kThreads;
      });
    }
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      if (is_window && query + q < problem.queries) {
        deltas[first + (query + q) * problem.heads] = delta[q] / total[q];
      }
    }
  }
}

// What the positions need of a window and kQueries queries.
template <typename accum_t>
struct Numbers {
  LogSumExp<accum_t> logsumexp[kQueries];
  Pair<accum_t> delta;
};

template <typename accum_t>
struct BackwardShared {
  Quad<accum_t>* grad_output;
  Pairs<accum_t>* tables;
  Numbers<accum_t>* numbers;  // of the windows
  accum_t* sums;              // (warps, taps, 2 kQueries): of the gradients of bias and scale
  // (kept_taps, positions): <grad_output, value>, and c, one place where no query needs the product
  // after the weight.
  accum_t *products, *weights;

  template <typename T>
  __device__ BackwardShared(const Problem<T>& problem, int area) {
    const int taps = problem.taps();
    grad_output = dynamic_shared<Quad<accum_t>>();
    tables = reinterpret_cast<Pairs<accum_t>*>(grad_output + kChannels / kQuad<accum_t> * area);
    numbers = reinterpret_cast<Numbers<accum_t>*>(tables + taps);
    sums = reinterpret_cast<accum_t*>(numbers + area);
    products = sums + kWarps * taps * 2 * kQueries;
    weights = products;
    if (problem.has_more_queries()) weights += problem.kept_taps * kThreads * kPositions<T>;
  }
  static int64_t bytes(int area, int taps) {
    return sizeof(accum_t) *
           ((kChannels + 3 * kQueries) * area + (1 + kWarps) * taps * 2 * kQueries);
  }
};

// What a block of backward has, and the positions of a thread.
template <typename T>
struct Tile {
  using accum_t = at::opmath_type<T>;
  static constexpr int kMine = kPositions<T>;

  const Problem<T>& problem;
  const Place place;
  const Area area;  // of the windows that see the positions
  const BackwardShared<accum_t> shared;

  __device__ explicit Tile(const Problem<T>& problem)
      : problem(problem),
        place(
            place_of_block(problem.heads, problem.cols.length, problem.rows.length, kRows * kMine)),
        area(window_area(problem, place.y, place.x)),
        shared(problem, area.size()) {}

  __device__ int y(int i) const {
    return place.y + static_cast<int>(threadIdx.x) / kCols + i * kRows;
  }
  __device__ int x() const { return place.x + static_cast<int>(threadIdx.x) % kCols; }
  __device__ bool is_on_map(int i) const {
    return y(i) < problem.rows.length && x() < problem.cols.length;
  }
  // Place of position i and a kept tap in products and weights.
  __device__ int kept(int i, int tap) const {
    return (tap * kMine + i) * kThreads + static_cast<int>(threadIdx.x);
  }

  // Place in the area of the window that sees position i through the first tap, or would if the
  // stride did not leave it out.
  __device__ int at(int i) const {
    const int shift = problem.rows.stride - 1;  // 0 or 1
    return (((y(i) + problem.rows.low()) >> shift) - area.first_row) * area.cols +
           ((x() + problem.cols.low()) >> shift) - area.first_col;
  }

  // Calls run(tap, how far the window there is before the first, whether there is one) for taps
  // [begin, end). The positions of a thread have one answer, those outside the map included.
  template <typename Run>
  __device__ __forceinline__ void for_each_tap(int begin, int end, const Run& run) const {
    const int shift = problem.rows.stride - 1, cols = problem.cols.kernel;
    const int my_row = y(0) + problem.rows.low(), my_col = x() + problem.cols.low();
    int row = begin / cols, tap = begin;
    for (int first = row * cols; first < end; first += cols, ++row) {
      const int stop = first + cols < end ? first + cols : end;
      const int before = (row >> shift) * area.cols, row_apart = (my_row ^ row) & shift;
#pragma unroll 1
      for (int col = tap - first; tap < stop; ++tap, ++col) {
        run(tap, before + (col >> shift), (row_apart | ((my_col ^ col) & shift)) == 0);
      }
    }
  }

  // The same of the taps that see a position, which lanes of a warp do not share: run(tap, before).
  template <typename Run>
  __device__ __forceinline__ void for_each_seen_tap(int begin, int end, const Run& run) const {
    const int stride = problem.rows.stride, shift = stride - 1, cols = problem.cols.kernel;
    const int my_row = y(0) + problem.rows.low(), my_col = x() + problem.cols.low();
    int row = begin / cols, col = begin - row * cols;
    for (int first = row * cols; first < end; first += cols, ++row, col = 0) {
      if (((my_row ^ row) & shift) != 0) continue;
      const int stop = first + cols < end ? first + cols : end;
      col += (my_col ^ col) & shift;
      int tap = first + col, before = (row >> shift) * area.cols + (col >> shift);
#pragma unroll 1
      for (; tap + stride < stop; tap += 2 * stride, before += 2) {
        run(tap, before);
        run(tap + stride, before + 1);
      }
      if (tap < stop) run(tap, before);
    }
  }

  __device__ void load_grad_output(int channel) const {
    sync_block();
    load_vectors(problem.grad_output, area, place, channel, problem.dim, shared.grad_output);
    sync_block();
  }

  // Numbers of the windows and tables of kQueries queries.
  __device__ void load_queries(int query) const {
    sync_block();
    const int step = problem.queries * problem.heads, cols = problem.cols.windows();
    const int64_t first =
        place.b * problem.rows.windows() * cols * step + query * problem.heads + place.head;
    area.for_each([&](int i, int y, int x, bool is_on_map) {
      constexpr accum_t kNever = std::numeric_limits<accum_t>::infinity();
      Numbers<accum_t> numbers{{{kNever, kNever}, {kNever, kNever}}, {}};
#pragma unroll
      for (int q = 0; q < kQueries; ++q) {
        if (is_on_map && query + q < problem.queries) {
          const int from = (y * cols + x) * step + q * problem.heads;
          numbers.logsumexp[q] = read_logsumexp(problem.logsumexp[first + from]);
          numbers.delta.of[q] = problem.delta[first + from];
        }
      }
      shared.numbers[i] = numbers;
    });
    load_tables(problem, query, place.head, shared.tables);
    sync_block();
  }

  // Products of taps [begin, end).
  __device__ void multiply(int begin, int end) const {
    for (int channel = 0; channel < problem.dim; channel += kChannels) {
      load_grad_output(channel);
      accum_t value[kMine][kChannels] = {};
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        if (is_on_map(i)) {
          read_vector(problem.values.at(place.b, y(i), x(), place.head), problem.values.has_chunks,
                      channel, problem.dim, value[i]);
        }
      }
      const Quad<accum_t>* first[kMine];
#pragma unroll
      for (int i = 0; i < kMine; ++i) first[i] = shared.grad_output + at(i);
      for_each_seen_tap(begin, end, [&](int tap, int before) {
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
          accum_t& own = shared.products[kept(i, tap - begin)];
          own = dot(value[i], first[i] - before, area.size(), channel == 0 ? accum_t(0) : own);
        }
      });
    }
  }

  // Adds what kQueries queries give taps [begin, end) to the weights, and of the gradients, if any:
  // those of the scores to grad_scores, those of the tables of a warp to shared memory.
  template <bool kHasGradients>
  __device__ void weigh(int query, int begin, int end, const Pair<accum_t> (&scores)[kMine],
                        accum_t (&grad_scores)[kMine][kQueries]) const {
    for_each_tap(begin, end, [&](int tap, int before, bool is_seen) {
      const Pairs<accum_t> table = shared.tables[tap];
      accum_t grads[2 * kQueries] = {};  // of bias and scale
#pragma unroll
      for (int i = 0; i < kMine && is_seen; ++i) {
        const Numbers<accum_t> numbers = shared.numbers[at(i) - before];
        accum_t& own = shared.weights[kept(i, tap - begin)];
        accum_t weight = query == 0 ? accum_t(0) : own;
        const accum_t product = kHasGradients ? shared.products[kept(i, tap - begin)] : 0;
#pragma unroll
        for (int q = 0; q < kQueries; ++q) {
          const accum_t p = weight_of(scores[i].of[q], table.first.of[q], numbers.logsumexp[q]);
          weight += p * table.second.of[q];
          if (kHasGradients) {
            const accum_t grad = p * (table.second.of[q] * product - numbers.delta.of[q]);
            grad_scores[i][q] += grad;
            grads[q] += grad;
            grads[kQueries + q] += p * product;
          }
        }
        own = weight;
      }
      if (kHasGradients) {
        const accum_t sum = warp_sum_of_four(grads);
        if (lane() % 8 == 0) {
          shared.sums[(warp() * problem.taps() + tap) * 2 * kQueries + lane() / 8] = sum;
        }
      }
    });
  }

  // -inf outside the map.
  __device__ void read_own_scores(int query, Pair<accum_t> (&own)[kMine]) const {
    const Scores<T> scores(problem, place, query);
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      own[i] = scores.at(problem.scores.offset(y(i), x()), is_on_map(i));
    }
  }
};

// Part of the gradients of the tables: (blocks of one head, queries, heads, 2, taps), of bias and
// scale.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    query_and_attend_backward_kernel(Problem<T> problem, T* grad_scores, Map<T> grad_values,
                                     at::opmath_type<T>* parts) {
  using accum_t = at::opmath_type<T>;
  const Tile<T> tile(problem);
  const Place& place = tile.place;
  const int taps = problem.taps();
  const bool keeps_all = problem.kept_taps == taps;
  for (int query = 0; query < problem.queries; query += kQueries) {
    Pair<accum_t> scores[Tile<T>::kMine];
    accum_t grads[Tile<T>::kMine][kQueries] = {};
    tile.load_queries(query);
    tile.read_own_scores(query, scores);
    for (int begin = 0; begin < taps; begin += problem.kept_taps) {
      const int end = end_of_chunk(problem, begin);
      if (query == 0 || !keeps_all) tile.multiply(begin, end);
      tile.template weigh<true>(query, begin, end, scores, grads);
    }
#pragma unroll
    for (int i = 0; i < Tile<T>::kMine; ++i) {
      const int64_t index =
          (place.b * problem.rows.length + tile.y(i)) * problem.cols.length + tile.x();
#pragma unroll
      for (int q = 0; q < kQueries; ++q) {
        if (tile.is_on_map(i) && query + q < problem.queries) {
          grad_scores[(index * problem.queries + query + q) * problem.heads + place.head] =
              static_cast<T>(grads[i][q]);
        }
      }
    }
    sync_block();
    for (int i = threadIdx.x; i < taps * 2 * kQueries; i += kThreads) {
      const int tap = i / (2 * kQueries), which = i % (2 * kQueries) / kQueries;
      const int q = query + i % kQueries;
      if (q >= problem.queries) continue;
      accum_t sum = 0;
      for (int warp = 0; warp < kWarps; ++warp) {
        sum += tile.shared.sums[warp * taps * 2 * kQueries + i];
      }
      const int64_t block = blockIdx.x / problem.heads;
      parts[(((block * problem.queries + q) * problem.heads + place.head) * 2 + which) * taps +
            tap] = sum;
    }
  }
  for (int channel = 0; channel < problem.dim; channel += kChannels) {
    accum_t grads[Tile<T>::kMine][kChannels] = {};
    tile.load_grad_output(channel);
    for (int begin = 0; begin < taps; begin += problem.kept_taps) {
      const int end = end_of_chunk(problem, begin);
      for (int query = 0; query < problem.queries && !keeps_all; query += kQueries) {
        Pair<accum_t> scores[Tile<T>::kMine];
        accum_t none[Tile<T>::kMine][kQueries];
        tile.load_queries(query);
        tile.read_own_scores(query, scores);
        tile.template weigh<false>(query, begin, end, scores, none);
      }
      tile.for_each_seen_tap(begin, end, [&](int tap, int before) {
#pragma unroll
        for (int i = 0; i < Tile<T>::kMine; ++i) {
          add(grads[i], tile.shared.weights[tile.kept(i, tap - begin)],
              tile.shared.grad_output + tile.at(i) - before, tile.area.size());
        }
      });
    }
#pragma unroll
    for (int i = 0; i < Tile<T>::kMine; ++i) {
      if (tile.is_on_map(i)) {
        write_vector(grad_values.at(place.b, tile.y(i), tile.x(), place.head),
                     grad_values.has_chunks, channel, problem.dim, grads[i]);
      }
    }
  }
}

}  // namespace

template <typename T>
void launch_backward(Problem<T> problem, at::opmath_type<T>* delta, T* grad_scores,
                     const Map<T>& grad_values, at::opmath_type<T>* parts) {
  using accum_t = at::opmath_type<T>;
  constexpr int64_t kPerTap = kThreads * sizeof(accum_t);
  launch_tiles(query_and_attend_delta_kernel<T>, problem, problem.window_tiles(),
               WindowShared<accum_t>::bytes(input_area(problem, 0, 0).size(), problem.taps()),
               kPerTap, delta);
  problem.delta = delta;
  launch_tiles(query_and_attend_backward_kernel<T>, problem, problem.position_tiles(),
               BackwardShared<accum_t>::bytes(window_area(problem, 0, 0).size(), problem.taps()),
               (problem.has_more_queries() ? 2 : 1) * kPositions<T> * kPerTap, grad_scores,
               grad_values, parts);
}

template void launch_backward(Problem<double>, double*, double*, const Map<double>&, double*);
template void launch_backward(Problem<float>, float*, float*, const Map<float>&, float*);
template void launch_backward(Problem<at::Half>, float*, at::Half*, const Map<at::Half>&, float*);
template void launch_backward(Problem<at::BFloat16>, float*, at::BFloat16*,
                              const Map<at::BFloat16>&, float*);

}  // namespace mmlocalattn::cuda::query_and_attend
