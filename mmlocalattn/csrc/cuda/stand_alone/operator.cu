// Stand-alone self-attention on CUDA, tensors in and out: see problem.cuh.
#include <torch/library.h>

#include <algorithm>

#include "problem.cuh"

namespace mmlocalattn::cuda::stand_alone {
namespace {

using at::IntArrayRef;
using at::Tensor;

// One call of the operator, its tensors as the caller has them.
struct Call {
  Tensor query, key, value, row_embedding, column_embedding;
  IntArrayRef kernel_size;
  bool zero_padding;
  double scale;
};

// Only what would corrupt memory; the public function checks for users, data_ptr checks types.
void check(const Call& call) {
  const Tensor& query = call.query;
  TORCH_CHECK(query.dim() == 5, "expected (B, H, W, num_heads, head_dim), got ", query.sizes());
  check_like(call.key, query.sizes(), query);
  check_like(call.value, query.sizes(), query);
  for (const int64_t kernel : call.kernel_size) {
    TORCH_CHECK(kernel > 0 && kernel % 2 == 1 && kernel <= kMostTaps, "a window of ", kernel,
                " taps is even or larger than ", kMostTaps);
  }
  const int64_t heads = query.size(3), head_dim = query.size(4), half = head_dim / 2;
  TORCH_CHECK(head_dim <= kWarpSize * kPart, "head_dim must be at most ", kWarpSize * kPart,
              " on CUDA, got ", head_dim, ": use more heads");
  check_like(call.row_embedding, {heads, call.kernel_size[0], half}, query);
  check_like(call.column_embedding, {heads, call.kernel_size[1], head_dim - half}, query);
}

// aligned_rows, of which 32 bits must number those of an image.
Tensor small_rows(const Tensor& map) {
  const Tensor rows = aligned_rows(map);
  TORCH_CHECK(rows.size(1) * rows.size(2) * rows.stride(2) <= INT32_MAX, "an image of ",
              rows.sizes(), " is too large for CUDA");
  return rows;
}

// The call with tensors as the kernels read them.
Call pack(const Call& call) {
  const auto accum = at::toOpMathType(call.query.scalar_type());
  Call packed = call;
  for (Tensor* map : {&packed.query, &packed.key, &packed.value}) {
    *map = small_rows(*map);
  }
  for (Tensor* table : {&packed.row_embedding, &packed.column_embedding}) {
    *table = table->to(accum).contiguous();
  }
  return packed;
}

// Takes a call from pack().
template <typename T>
Problem<T> describe(const Call& call) {
  using accum_t = at::opmath_type<T>;
  const Tensor& query = call.query;
  Problem<T> problem{};
  problem.batch = query.size(0);
  problem.height = static_cast<int>(query.size(1));
  problem.width = static_cast<int>(query.size(2));
  problem.heads = static_cast<int>(query.size(3));
  problem.head_dim = static_cast<int>(query.size(4));
  problem.has_chunks = query.size(4) * query.element_size() % kCopyBytes == 0;
  problem.rows = static_cast<int>(call.kernel_size[0]);
  problem.cols = static_cast<int>(call.kernel_size[1]);
  problem.zero_padding = call.zero_padding;
  problem.scale = static_cast<accum_t>(call.scale);
  problem.query = source<T>(query);
  problem.key = source<T>(call.key);
  problem.value = source<T>(call.value);
  problem.row_embedding = call.row_embedding.const_data_ptr<accum_t>();
  problem.column_embedding = call.column_embedding.const_data_ptr<accum_t>();
  while (problem.lanes() * kPart < problem.head_dim) ++problem.lanes_log2;
  return problem;
}

// Calls body(T()) with the dtype.
template <typename Body>
void dispatch(const Tensor& query, const Body& body) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, query.scalar_type(),
                                  "stand_alone_attention", [&] { body(scalar_t()); });
}

std::tuple<Tensor, Tensor> stand_alone_attention_cuda(
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& row_embedding,
    const Tensor& column_embedding, IntArrayRef kernel_size, bool zero_padding, double scale) {
  const Call caller{query,       key,          value, row_embedding, column_embedding,
                    kernel_size, zero_padding, scale};
  check(caller);
  const c10::cuda::CUDAGuard device_guard(query.device());
  const Call call = pack(caller);
  const auto accum = at::toOpMathType(query.scalar_type());
  const Tensor output = at::empty(query.sizes(), query.options());
  const Tensor logsumexp = at::empty(logsumexp_sizes(query), query.options().dtype(accum));
  dispatch(query, [&](auto type) {
    using T = decltype(type);
    launch_forward(describe<T>(call), output.mutable_data_ptr<T>(),
                   logsumexp_of<at::opmath_type<T>>(logsumexp));
  });
  return {output, logsumexp};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> stand_alone_attention_backward_cuda(
    const Tensor& grad_output_, const Tensor& query, const Tensor& key, const Tensor& value,
    const Tensor& row_embedding, const Tensor& column_embedding, const Tensor& logsumexp_,
    IntArrayRef kernel_size, bool zero_padding, double scale) {
  const Call caller{query,       key,          value, row_embedding, column_embedding,
                    kernel_size, zero_padding, scale};
  check(caller);
  check_like(grad_output_, query.sizes(), query);
  check_like(logsumexp_, logsumexp_sizes(query), query);
  const c10::cuda::CUDAGuard device_guard(query.device());
  const Call call = pack(caller);
  const Tensor grad_output = small_rows(grad_output_), logsumexp = aligned_contiguous(logsumexp_);
  const Tensor grad_query = at::empty(query.sizes(), query.options()),
               grad_key = at::empty(key.sizes(), key.options()),
               grad_value = at::empty(value.sizes(), value.options());
  const int64_t heads = query.size(3), half = query.size(4) / 2, rest = query.size(4) - half;
  const int64_t rows = kernel_size[0], cols = kernel_size[1];
  const int64_t positions = query.size(0) * query.size(1) * query.size(2);
  const int64_t splits = std::clamp<int64_t>(positions / 4096, 1, 64);
  const auto options = logsumexp.options();
  // Zeros: masked rows have no gradients.
  const Tensor delta = at::empty(query.sizes().slice(0, 4), options),
               grad_terms = at::zeros({heads, rows + std::max(rows, cols), positions}, options),
               parts = at::empty({splits, heads, rows * half + cols * rest}, options);
  dispatch(query, [&](auto type) {
    using T = decltype(type);
    using accum_t = at::opmath_type<T>;
    auto problem = describe<T>(call);
    problem.grad_output = source<T>(grad_output);
    problem.logsumexp = logsumexp_of<accum_t>(logsumexp);
    launch_backward(
        problem, Gradients<T>{grad_query.mutable_data_ptr<T>(), grad_key.mutable_data_ptr<T>(),
                              grad_value.mutable_data_ptr<T>(), delta.mutable_data_ptr<accum_t>(),
                              grad_terms.mutable_data_ptr<accum_t>(),
                              parts.mutable_data_ptr<accum_t>(), splits});
  });
  const Tensor sums = parts.sum(0);
  const auto part = [&](int64_t begin, int64_t size, const Tensor& table) {
    return sums.slice(1, begin, begin + size).reshape(table.sizes()).to(table.scalar_type());
  };
  return {grad_query, grad_key, grad_value, part(0, rows * half, row_embedding),
          part(rows * half, cols * rest, column_embedding)};
}

}  // namespace
}  // namespace mmlocalattn::cuda::stand_alone

TORCH_LIBRARY_IMPL(mmlocalattn, CUDA, m) {
  m.impl("stand_alone_attention", &mmlocalattn::cuda::stand_alone::stand_alone_attention_cuda);
  m.impl("_stand_alone_attention_backward",
         &mmlocalattn::cuda::stand_alone::stand_alone_attention_backward_cuda);
}
