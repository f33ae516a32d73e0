// Stand-alone self-attention backward: see problem.cuh and tile.cuh.
#include "tile.cuh"

namespace mmlocalattn::cuda::stand_alone {
namespace {

// Own positions of a lane of the kernel that gives dq.
template <typename T>
constexpr int kQueryRows = sizeof(T) == 8 ? 2 : 4;

// What a lane of that kernel knows of its positions. It goes over the window once: sums of ds are
// those of p (dp - base) less delta - base times those of p. Where one tap has most of the weight,
// ds is a small difference that the first would not see, so that tap's dp is then the base.
template <typename T>
struct QueryGradient {
  using accum_t = at::opmath_type<T>;
  static constexpr int kRows = kQueryRows<T>;
  using Lane = Place<T, kRows>;

  const Lane& place;
  const Problem<T>& problem;
  accum_t* const terms;  // of the head; rows have sums of p where columns will have theirs of ds
  Vector<accum_t> query[kRows], grad_output[kRows];
  Vector<accum_t> grads[kRows], weights[kRows];  // sums of keys and embeddings
  accum_t base[kRows], logsumexp[kRows], grad[kRows] = {}, weight[kRows];

  __device__ QueryGradient(const Lane& place, accum_t* grad_terms)
      : place(place),
        problem(place.problem),
        terms(grad_terms + place.head * problem.terms() * problem.positions()) {
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      query[t] = place.load(problem.query, t);
      query[t].scale(problem.scale);
      grad_output[t] = place.load(problem.grad_output, t);
      base[t] = grad_output[t].dot(place.load(problem.value, t));
      logsumexp[t] = std::numeric_limits<accum_t>::infinity();
      if (place.is_inside(t)) {
        const auto [most, rest] = in_base_2<T>(problem.logsumexp[place.token(t)]);
        logsumexp[t] = most + rest;  // what rounding takes, the total takes back
      }
      weight[t] = static_cast<accum_t>(1e-30);  // not 0 where all taps are masked
    }
    place.sum_parts(base);
    // The lanes of a position have one result, and the first of them keeps it.
    for (int b = 0; b < problem.cols && place.part == 0; ++b) place.of_column(b) = {};
  }

  __device__ accum_t& term(int tap, int t) const {
    return terms[tap * problem.positions() + place.position(place.y(t), place.x())];
  }

  // Makes dp of a tap in row u the base of own position t: adds `step` times p to all sums.
  __device__ accum_t move_base(int t, int u, accum_t dp) {
    const accum_t step = base[t] - dp;
    base[t] = dp;
    grads[t].add(step, weights[t]);
    grad[t] += step * weight[t];
    if (place.part == 0) {
      for (int b = 0; b < problem.cols; ++b) {
        auto& sums = place.of_column(b);
        sums.grad.at[t] += step * sums.weight.at[t];
      }
      for (int a = 0; a < place.tap_row(t, u); ++a) term(a, t) += step * term(problem.rows + a, t);
    }
    return step;
  }

  template <typename All>
  __device__ void add_row(All all, int u, int row) {
    accum_t row_grad[kRows] = {}, row_weight[kRows] = {};
    auto* of_column = &place.of_column(0);
    place.for_each_tap(all, query, u, row,
                       [&](const accum_t(&logits)[kRows], const Vector<accum_t>& key,
                           const Vector<accum_t>& value) {
                         accum_t dots[2 * kRows], powers[kRows], products[kRows];
#pragma unroll
                         for (int t = 0; t < kRows; ++t) {
                           dots[t] = logits[t];
                           dots[kRows + t] =
                               place.sees(all, t, u) ? grad_output[t].dot(value) : accum_t(0);
                         }
                         place.sum_parts(dots);
                         bool is_high = false;
#pragma unroll
                         for (int t = 0; t < kRows; ++t) {
                           powers[t] = exp2_of(dots[t] * kLog2E<accum_t> - logsumexp[t]);
                           is_high |= powers[t] > accum_t(0.5);
                         }
                         if (is_high) {
#pragma unroll
                           for (int t = 0; t < kRows; ++t) {
                             if (powers[t] > accum_t(0.5)) {
                               row_grad[t] += move_base(t, u, dots[kRows + t]) * row_weight[t];
                             }
                           }
                         }
#pragma unroll
                         for (int t = 0; t < kRows; ++t) {
                           products[t] = 0;
                           if (place.sees(all, t, u)) {
                             products[t] = powers[t] * (dots[kRows + t] - base[t]);
                             grads[t].add(products[t], key);
                             weights[t].add(powers[t], key);
                             row_grad[t] += products[t];
                             row_weight[t] += powers[t];
                           }
                         }
                         if (place.part == 0) {
                           auto sums = *of_column;
#pragma unroll
                           for (int t = 0; t < kRows; ++t) {
                             sums.grad.at[t] += products[t];
                             sums.weight.at[t] += powers[t];
                           }
                           *of_column = sums;
                         }
                         of_column += place.column_step();
                       });
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      if (place.sees(all, t, u)) {
        const Vector<accum_t> embedding = place.table(place.tap_row(t, u));
        grads[t].add(row_grad[t], embedding);
        weights[t].add(row_weight[t], embedding);
        grad[t] += row_grad[t];
        weight[t] += row_weight[t];
        if (place.is_inside(t) && place.part == 0) {
          term(place.tap_row(t, u), t) = row_grad[t];
          term(problem.rows + place.tap_row(t, u), t) = row_weight[t];
        }
      }
    }
  }

  // Leaves the gradient of query, delta and the terms of own position t.
  __device__ void finish(int t, T* grad_query, accum_t* deltas) {
    const accum_t scale = 1 / weight[t], step = -grad[t] * scale;  // to delta
    const bool keeps = place.part == 0 && place.is_inside(t);
    if (keeps) {
      deltas[place.token(t)] = base[t] - step;
      for (int a = 0; a < problem.rows; ++a) {
        term(a, t) = scale * (term(a, t) + step * term(problem.rows + a, t));
      }
    }
    grads[t].add(step, weights[t]);
    for (int b = 0; b < problem.cols; ++b) {
      const auto& sums = place.of_column(b);
      const accum_t sum = sums.grad.at[t] + step * sums.weight.at[t];
      grads[t].add(sum, place.table(problem.rows + b));
      if (keeps) term(problem.rows + b, t) = scale * sum;
    }
    grads[t].scale(problem.scale * scale);
    place.store(grad_query, t, grads[t]);
  }
};

// Gradient of query, and for the kernels below delta and grad_terms, (heads, terms(), batch,
// height, width): sums of ds over a row and over a column of the window.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    stand_alone_backward_query_kernel(Problem<T> problem, T* grad_query, at::opmath_type<T>* deltas,
                                      at::opmath_type<T>* grad_terms) {
  constexpr int kRows = kQueryRows<T>;
  const Place<T, kRows> place(problem);
  place.stage_tables();
  QueryGradient<T> gradient(place, grad_terms);
  place.stage_column_terms(gradient.query);
  place.for_each_row(problem.key, problem.value, problem.zero_padding,
                     [&](auto all, int u, int row) { gradient.add_row(all, u, row); });
  sync_warp();
#pragma unroll
  for (int t = 0; t < kRows; ++t) gradient.finish(t, grad_query, deltas);
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
  const accum_t* terms = grad_terms + (head * problem.terms() + tap) * positions;
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
  using accum_t = at::opmath_type<T>;
  constexpr int kRows = kQueryRows<T>, kTerms = Place<T, kRows>::kTerms;
  launch_tiles<kRows>(stand_alone_backward_query_kernel<T>, problem, 0,
                      (kTerms + 2 * kRows * kWarps * problem.columns()) * problem.cols,
                      gradients.query, gradients.delta, gradients.terms);
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
