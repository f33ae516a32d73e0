// Stand-alone self-attention backward: see problem.cuh and tile.cuh.
#include "tile.cuh"

namespace mmlocalattn::cuda::stand_alone {
namespace {

// Gradient of query, and for the kernels below delta and grad_terms, (heads, rows + cols, batch,
// height, width): sums of ds over a row and over a column of the window. It goes over the window
// twice, first for delta.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    stand_alone_backward_query_kernel(Problem<T> problem, T* grad_query, at::opmath_type<T>* deltas,
                                      at::opmath_type<T>* grad_terms) {
  using accum_t = at::opmath_type<T>;
  constexpr int kRows = 4;
  const Place<T, kRows> place(problem);
  place.stage_tables();
  Vector<accum_t> query[kRows], grad_output[kRows], sum[kRows];
  accum_t most[kRows], delta[kRows] = {}, total[kRows];
  const int64_t positions = problem.positions();
  accum_t* terms = grad_terms + place.head * (problem.rows + problem.cols) * positions;
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    query[t] = place.load(problem.query, t);
    query[t].scale(problem.scale);
    grad_output[t] = place.load(problem.grad_output, t);
    most[t] =
        place.is_inside(t) ? in_base_2<T>(problem.logsumexp[place.token(t)]).most : accum_t(0);
    total[t] = static_cast<accum_t>(1e-30);  // not 0 where all taps are masked, past the borders
  }
  place.stage_column_terms(query);
  // Sums of ds over the columns of windows: the lanes of a position have one result, and the first
  // of them keeps it.
  for (int b = 0; b < problem.cols && place.part == 0; ++b) place.of_column(b) = {};
  // Weights here sum up to a total of their own: sums are divided by it. The lanes of a position
  // have a part each of the numerator of delta, until all taps are in it.
  const auto weight_of = [&](int t, accum_t logit) {
    return exp2_of(logit * kLog2E<accum_t> - most[t]);
  };
  const auto add_deltas = [&](auto all, int u, int row) {
    place.for_each_tap(
        all, query, u, row,
        [&](int, accum_t(&logits)[kRows], const Vector<accum_t>&, const Vector<accum_t>& value) {
#pragma unroll
          for (int t = 0; t < kRows; ++t) {
            if (place.sees(all, t, u)) {
              const accum_t weight = weight_of(t, logits[t]);
              total[t] += weight;
              delta[t] += weight * grad_output[t].dot(value);
            }
          }
        });
  };
  place.for_each_row(problem.key, problem.value, problem.zero_padding, add_deltas);
  place.sum_parts(delta);
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    delta[t] /= total[t];
    total[t] = 1 / total[t];
    if (place.is_inside(t) && place.part == 0) {
      deltas[place.token(t)] = delta[t];
    }
  }
  const auto add_row = [&](auto all, int u, int row) {
    accum_t row_sum[kRows] = {};
    place.for_each_tap(all, query, u, row,
                       [&](int b, accum_t(&logits)[kRows], const Vector<accum_t>& key,
                           const Vector<accum_t>& value) {
                         accum_t grads[kRows];
#pragma unroll
                         for (int t = 0; t < kRows; ++t) {
                           grads[t] =
                               place.sees(all, t, u) ? grad_output[t].dot(value) : accum_t(0);
                         }
                         place.sum_parts(grads);
#pragma unroll
                         for (int t = 0; t < kRows; ++t) {
                           if (place.sees(all, t, u)) {
                             grads[t] = weight_of(t, logits[t]) * (grads[t] - delta[t]);
                             sum[t].add(grads[t], key);
                             row_sum[t] += grads[t];
                           }
                         }
                         if (place.part == 0) {
                           auto sums = place.of_column(b);
#pragma unroll
                           for (int t = 0; t < kRows; ++t) sums.at[t] += grads[t];
                           place.of_column(b) = sums;
                         }
                       });
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      if (place.sees(all, t, u)) {
        sum[t].add(row_sum[t], place.table(place.tap_row(t, u)));
        if (place.is_inside(t) && place.part == 0) {
          terms[place.tap_row(t, u) * positions + place.position(place.y(t), place.x())] =
              total[t] * row_sum[t];
        }
      }
    }
  };
  place.for_each_row(problem.key, problem.value, problem.zero_padding, add_row);
  sync_warp();
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    for (int b = 0; b < problem.cols; ++b) {
      const accum_t column_sum = place.of_column(b).at[t];
      sum[t].add(column_sum, place.table(problem.rows + b));
      if (place.is_inside(t) && place.part == 0) {
        terms[(problem.rows + b) * positions + place.position(place.y(t), place.x())] =
            total[t] * column_sum;
      }
    }
    sum[t].scale(problem.scale * total[t]);
    place.store(grad_query, t, sum[t]);
  }
}

// Gradients of key and value: every key gathers from the queries that see it. With more blocks the
// compiler would spill.
template <typename T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 3)
    stand_alone_backward_key_value_kernel(Problem<T> problem, const at::opmath_type<T>* deltas,
                                          T* grad_key, T* grad_value) {
  using accum_t = at::opmath_type<T>;
  constexpr int kRows = 2;
  const Place<T, kRows> place(problem);
  place.stage_tables();
  Vector<accum_t> key[kRows], value[kRows], key_sum[kRows], value_sum[kRows];
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    key[t] = place.load(problem.key, t);
    value[t] = place.load(problem.value, t);
  }
  // Numbers of the queries that are staged; past the borders queries are 0, so that they add 0.
  auto* const numbers = reinterpret_cast<Numbers<accum_t>*>(place.staged(2));
  const int columns = problem.staged_columns();
  const auto stage_numbers = [&](int begin, int end) {
    for (int i = threadIdx.x; i < (end - begin) * columns; i += kThreads) {
      const int row = i / columns, x = place.left + i - row * columns - problem.cols / 2;
      Numbers<accum_t> of_query{};
      if (x >= 0 && x < problem.width) {
        const int64_t token = place.position(begin + row, x) * problem.heads + place.head;
        const auto [most, rest] = in_base_2<T>(problem.logsumexp[token]);
        of_query = {most, rest, deltas[token]};
      }
      numbers[i] = of_query;
    }
  };
  const accum_t scale = problem.scale * kLog2E<accum_t>;
  const auto add_row = [&](auto all, int u, int row) {
    Vector<accum_t> shifted[kRows];  // key plus row embedding; the window is seen from its query
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      shifted[t] = key[t];
      if (place.sees(all, t, u)) {
        shifted[t].add(1, place.table(problem.rows - 1 - place.tap_row(t, u)));
      }
    }
    auto queries = place.staged_row(0, row), grad_outputs = place.staged_row(1, row);
    const Numbers<accum_t>* of_queries = numbers + row * columns + place.column;
    for (int b = 0; b < problem.cols; ++b) {
      const Vector<accum_t> query = queries.next(), grad_output = grad_outputs.next();
      const Numbers<accum_t> of_query = *of_queries++;
      const accum_t column_term = query.dot(place.table(problem.rows + problem.cols - 1 - b));
      accum_t products[2 * kRows];  // of keys, and of values
#pragma unroll
      for (int t = 0; t < kRows; ++t) {
        products[t] = query.dot(shifted[t], column_term);
        products[kRows + t] = grad_output.dot(value[t]);
      }
      place.sum_parts(products);
#pragma unroll
      for (int t = 0; t < kRows; ++t) {
        if (place.sees(all, t, u)) {
          const accum_t weight =
              weight_in_base_2<T>(scale * products[t], of_query.most, of_query.rest);
          key_sum[t].add(weight * (products[kRows + t] - of_query.delta), query);
          value_sum[t].add(weight, grad_output);
        }
      }
    }
  };
  place.template for_each_row</*kApart=*/false>(problem.query, problem.grad_output, /*all=*/false,
                                                stage_numbers, add_row);
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    key_sum[t].scale(problem.scale);
    place.store(grad_key, t, key_sum[t]);
    place.store(grad_value, t, value_sum[t]);
  }
}

// Parts of the gradients of the embeddings, (splits, heads, rows half + cols rest): a block has one
// row or column of a window, one head and one split of the positions. Lanes run over channels.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    stand_alone_backward_embedding_kernel(Problem<T> problem, const at::opmath_type<T>* grad_terms,
                                          int64_t splits, at::opmath_type<T>* parts) {
  using accum_t = at::opmath_type<T>;
  __shared__ accum_t sums[kThreads];
  const int64_t positions = problem.positions();
  const int64_t half = problem.head_dim / 2, rest = problem.head_dim - half;
  const int taps = problem.rows + problem.cols;
  const int64_t tap = blockIdx.x % taps, head = blockIdx.x / taps % problem.heads,
                split = blockIdx.x / taps / problem.heads;
  const bool is_row = tap < problem.rows;
  const int64_t channels = is_row ? half : rest;
  int width = 1;
  while (width < channels && width < kThreads) {
    width *= 2;
  }
  const int64_t begin = positions * split / splits, end = positions * (split + 1) / splits;
  const accum_t* terms = grad_terms + (head * taps + tap) * positions;
  const T* query = problem.query.data + head * problem.head_dim + (is_row ? 0 : half);
  parts += split * problem.heads * (problem.rows * half + problem.cols * rest) +
           head * (problem.rows * half + problem.cols * rest) +
           (is_row ? tap * half : problem.rows * half + (tap - problem.rows) * rest);
  for (int64_t first = 0; first < channels; first += width) {
    const int64_t channel = first + threadIdx.x % width;
    accum_t sum = 0;
    for (int64_t i = begin + threadIdx.x / width; i < end && channel < channels;
         i += kThreads / width) {
      sum += terms[i] * static_cast<accum_t>(query[i * problem.query.step + channel]);
    }
    sync_block();
    sums[threadIdx.x] = sum;
    sync_block();
    if (threadIdx.x < width && channel < channels) {
      for (int other = threadIdx.x + width; other < kThreads; other += width) {
        sum += sums[other];
      }
      parts[channel] = problem.scale * sum;
    }
  }
}

}  // namespace

template <typename T>
void launch_backward(const Problem<T>& problem, const Gradients<T>& gradients) {
  constexpr int kTerms = Place<T, 4>::kTerms;
  launch_tiles<4>(stand_alone_backward_query_kernel<T>, problem, 0,
                  (kTerms + 4 * kWarps * problem.columns()) * problem.cols, gradients.query,
                  gradients.delta, gradients.terms);
  using accum_t = at::opmath_type<T>;
  constexpr int64_t kNumbers = sizeof(Numbers<accum_t>) / sizeof(accum_t);
  launch_tiles<2>(stand_alone_backward_key_value_kernel<T>, problem,
                  kNumbers * problem.staged_columns(), 0, gradients.delta, gradients.key,
                  gradients.value);
  launch(stand_alone_backward_embedding_kernel<T>,
         gradients.splits * problem.heads * (problem.rows + problem.cols), kThreads, 0, problem,
         gradients.terms, gradients.splits, gradients.parts);
}

template void launch_backward(const Problem<double>&, const Gradients<double>&);
template void launch_backward(const Problem<float>&, const Gradients<float>&);
template void launch_backward(const Problem<at::Half>&, const Gradients<at::Half>&);
template void launch_backward(const Problem<at::BFloat16>&, const Gradients<at::BFloat16>&);

}  // namespace mmlocalattn::cuda::stand_alone
