// Stand-alone self-attention backward on CUDA: see stand_alone.cuh.
#include <torch/library.h>

#include <algorithm>

#include "stand_alone.cuh"

namespace mmlocalattn {
namespace {

// Gradient of query, and for the kernels below delta and grad_terms, (heads, rows + cols, batch,
// height, width): sums of ds over a row and over a column of the window. It goes over the window
// twice, first for delta.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    stand_alone_backward_query_kernel(StandAlone<T> problem, T* grad_query,
                                      at::opmath_type<T>* deltas, at::opmath_type<T>* grad_terms) {
  using accum_t = at::opmath_type<T>;
  constexpr int kRows = 4;
  const Place<T, kRows> place(problem);
  place.stage_tables();
  const int columns = problem.columns();
  // Sums of ds over the columns of windows, [tap][row of the block][column]: the lanes of a
  // position have one result, and the first of them keeps it.
  accum_t* column_sums = place.staged(2) + place.row * columns + place.column;
  const int step = kRows * kWarps * columns;
  Vector<accum_t> query[kRows], grad_output[kRows], sum[kRows];
  accum_t logsumexp[kRows], delta[kRows] = {}, total[kRows];
  const int64_t positions = problem.batch * problem.height * problem.width;
  accum_t* terms = grad_terms + place.head * (problem.rows + problem.cols) * positions;
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    query[t] = place.load(problem.query, t);
    query[t].scale(problem.scale * static_cast<accum_t>(kLog2E));
    grad_output[t] = place.load(problem.grad_output, t);
    logsumexp[t] = place.is_inside(t)
                       ? problem.logsumexp[place.token(t)] * static_cast<accum_t>(kLog2E)
                       : accum_t(0);
    total[t] = static_cast<accum_t>(1e-30);  // not 0 where all taps are masked, past the borders
    for (int b = 0; b < problem.cols && place.part == 0; ++b) {
      column_sums[b * step + t * columns] = 0;
    }
  }
  // The lanes of a position have a part each of the numerator, until all taps are in it.
  const auto add_delta = [&](int t, int, accum_t logit, bool is_masked, const Vector<accum_t>&,
                             const Vector<accum_t>& value) {
    if (is_masked) {
      return;
    }
    const accum_t weight = exp2_of(logit - logsumexp[t]);
    total[t] += weight;
    delta[t] += weight * grad_output[t].dot(value);
  };
  place.for_each_row(problem.key, problem.value, problem.zero_padding,
                     [&](int64_t u, int row) { place.for_each_tap(query, u, row, add_delta); });
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    delta[t] = place.sum_parts(delta[t]) / total[t];
    if (place.is_inside(t) && place.part == 0) {
      deltas[place.token(t)] = delta[t];
    }
  }
  accum_t row_sum[kRows];
  const auto add_tap = [&](int t, int b, accum_t logit, bool is_masked, const Vector<accum_t>& key,
                           const Vector<accum_t>& value) {
    const accum_t grad_weight = place.sum_parts(grad_output[t].dot(value));
    if (is_masked) {
      return;
    }
    const accum_t grad = exp2_of(logit - logsumexp[t]) * (grad_weight - delta[t]);
    sum[t].add(grad, key);
    row_sum[t] += grad;
    if (place.part == 0) {
      column_sums[b * step + t * columns] += grad;
    }
  };
  const auto add_row = [&](int64_t u, int row) {
#pragma unroll
    for (int t = 0; t < kRows; ++t) row_sum[t] = 0;
    place.for_each_tap(query, u, row, add_tap);
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      if (place.sees(t, u)) {
        sum[t].add(row_sum[t], place.table(place.tap_row(t, u)));
        if (place.is_inside(t) && place.part == 0) {
          terms[place.tap_row(t, u) * positions + place.position(place.y(t), place.x())] =
              row_sum[t];
        }
      }
    }
  };
  place.for_each_row(problem.key, problem.value, problem.zero_padding, add_row);
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    sum[t].scale(problem.scale);
    place.store(grad_query, t, sum[t]);
    for (int b = 0; b < problem.cols && place.is_inside(t) && place.part == 0; ++b) {
      terms[(problem.rows + b) * positions + place.position(place.y(t), place.x())] =
          column_sums[b * step + t * columns];
    }
  }
}

// Gradients of key and value: every key gathers from the queries that see it.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    stand_alone_backward_key_value_kernel(StandAlone<T> problem, const at::opmath_type<T>* deltas,
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
  const auto add_row = [&](int64_t u, int row) {
    Vector<accum_t> shifted[kRows];  // key plus row embedding; the window is seen from its query
    bool sees[kRows];
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      sees[t] = place.sees(t, u);
      shifted[t] = key[t];
      if (sees[t]) {
        shifted[t].add(1, place.table(problem.rows - 1 - place.tap_row(t, u)));
      }
    }
    for (int b = 0; b < problem.cols; ++b) {
      const int64_t x = place.x() + b - problem.cols / 2;
      accum_t logsumexp = 0, delta = 0;  // past the borders queries are 0, so that they add 0
      if (x >= 0 && x < problem.width) {
        const int64_t token = place.position(u, x) * problem.heads + place.head;
        logsumexp = problem.logsumexp[token] * static_cast<accum_t>(kLog2E);
        delta = deltas[token];
      }
      const Vector<accum_t> query = place.tap(0, row, b), grad_output = place.tap(1, row, b);
      const accum_t column_term = query.dot(place.table(problem.rows + problem.cols - 1 - b));
      const accum_t scale = problem.scale * static_cast<accum_t>(kLog2E);
#pragma unroll
      for (int t = 0; t < kRows; ++t) {
        if (!sees[t]) {
          continue;
        }
        const accum_t logit = scale * place.sum_parts(column_term + query.dot(shifted[t]));
        const accum_t grad_weight = place.sum_parts(grad_output.dot(value[t]));
        const accum_t weight = exp2_of(logit - logsumexp);
        key_sum[t].add(weight * (grad_weight - delta), query);
        value_sum[t].add(weight, grad_output);
      }
    }
  };
  place.for_each_row(problem.query, problem.grad_output, /*all=*/false, add_row);
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
    stand_alone_backward_embedding_kernel(StandAlone<T> problem,
                                          const at::opmath_type<T>* grad_terms, int64_t splits,
                                          at::opmath_type<T>* parts) {
  using accum_t = at::opmath_type<T>;
  __shared__ accum_t sums[kThreads];
  const int64_t positions = problem.batch * problem.height * problem.width;
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

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> stand_alone_attention_backward_cuda(
    const Tensor& grad_output_, const Tensor& query, const Tensor& key, const Tensor& value,
    const Tensor& row_embedding, const Tensor& column_embedding, const Tensor& logsumexp_,
    IntArrayRef kernel_size, bool zero_padding, double scale) {
  const Call caller{query,       key,          value, row_embedding, column_embedding,
                    kernel_size, zero_padding, scale};
  check(caller);
  check_like(grad_output_, query.sizes(), query);
  check_like(logsumexp_, query.sizes().slice(0, 4), query);
  const c10::cuda::CUDAGuard device_guard(query.device());
  const Call call = pack(caller);
  const Tensor grad_output = aligned_rows(grad_output_), logsumexp = logsumexp_.contiguous();
  const Tensor grad_query = at::empty(query.sizes(), query.options()),
               grad_key = at::empty(key.sizes(), key.options()),
               grad_value = at::empty(value.sizes(), value.options());
  const int64_t heads = query.size(3), half = query.size(4) / 2, rest = query.size(4) - half;
  const int64_t rows = kernel_size[0], cols = kernel_size[1];
  const int64_t positions = query.size(0) * query.size(1) * query.size(2);
  const int64_t splits = std::clamp<int64_t>(positions / 4096, 1, 64);
  const auto options = logsumexp.options();
  // Zeros: masked rows have no gradients.
  const Tensor delta = at::empty(logsumexp.sizes(), options),
               grad_terms = at::zeros({heads, rows + cols, positions}, options),
               parts = at::empty({splits, heads, rows * half + cols * rest}, options);
  dispatch(query, [&](auto type) {
    using T = decltype(type);
    using accum_t = at::opmath_type<T>;
    auto problem = describe<T>(call);
    problem.grad_output = source<T>(grad_output);
    problem.logsumexp = logsumexp.const_data_ptr<accum_t>();
    auto* deltas = delta.mutable_data_ptr<accum_t>();
    auto* terms = grad_terms.mutable_data_ptr<accum_t>();
    launch_tiles<4>(stand_alone_backward_query_kernel<T>, problem, 4 * kWarps * cols,
                    grad_query.mutable_data_ptr<T>(), deltas, terms);
    launch_tiles<2>(stand_alone_backward_key_value_kernel<T>, problem, 0, deltas,
                    grad_key.mutable_data_ptr<T>(), grad_value.mutable_data_ptr<T>());
    launch(stand_alone_backward_embedding_kernel<T>, splits * heads * (rows + cols), kThreads, 0,
           problem, terms, splits, parts.mutable_data_ptr<accum_t>());
  });
  const Tensor sums = parts.sum(0);
  const auto part = [&](int64_t begin, int64_t size, const Tensor& table) {
    return sums.slice(1, begin, begin + size).reshape(table.sizes()).to(table.scalar_type());
  };
  return {grad_query, grad_key, grad_value, part(0, rows * half, row_embedding),
          part(rows * half, cols * rest, column_embedding)};
}

}  // namespace
}  // namespace mmlocalattn

TORCH_LIBRARY_IMPL(mmlocalattn, CUDA, m) {
  m.impl("_stand_alone_attention_backward", &mmlocalattn::stand_alone_attention_backward_cuda);
}
