// Packing, threads and the choice of the instruction set around the row kernels of neighborhood.h.
#include "packed.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "neighborhood.h"
#include "pytorch_cpp_helper.hpp"

namespace mmlocalattn {
namespace cpu {
namespace {

// Rows of one head that one task works through: the unit of the deterministic sum over bias
// gradients.
constexpr int64_t kRowsPerTask = 4;

std::string best_isa() {
#ifdef MMLOCALATTN_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return "avx512";
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#endif
  return "portable";
}

// The best instruction set of this machine, or what the environment variable MMLOCALATTN_CPU_ISA
// asks for.
template <typename T>
RowKernels<T> row_kernels() {
  const char* wish = std::getenv("MMLOCALATTN_CPU_ISA");
  const std::string best = best_isa(), isa = wish ? wish : best;
  TORCH_CHECK(isa == "portable" || isa == best || (isa == "avx2" && best == "avx512"),
              "MMLOCALATTN_CPU_ISA=", isa,
              " cannot be used here, choose portable or anything up to ", best);
#ifdef MMLOCALATTN_X86
  if (isa == "avx512") return row_kernels_avx512<T>();
  if (isa == "avx2") return row_kernels_avx2<T>();
#endif
  return row_kernels_portable<T>();
}

at::ScalarType compute_type(const at::Tensor& tensor) {
  return at::toOpMathType(tensor.scalar_type());
}

// The tables in the compute dtype; undefined tensors without rotary.
Rotary rotary_tables(const std::optional<Rotary>& rotary, at::ScalarType dtype) {
  if (!rotary) return {};
  return {rotary->sin.to(dtype).contiguous(), rotary->cos.to(dtype).contiguous()};
}

template <typename T>
const T* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

// out[0..dim) = factor * x, rotated by sin and cos unless they are null.
template <typename In, typename Out, typename T>
void convert_channels(const In* __restrict__ x, Out* __restrict__ out, int64_t dim, T factor,
                      const T* __restrict__ sin, const T* __restrict__ cos) {
  if (!sin) {
    for (int64_t i = 0; i < dim; ++i) out[i] = static_cast<Out>(factor * static_cast<T>(x[i]));
    return;
  }
  for (int64_t i = 0; i < dim; i += 2) {
    const T even = factor * static_cast<T>(x[i]), odd = factor * static_cast<T>(x[i + 1]);
    out[i] = static_cast<Out>(even * cos[i] - odd * sin[i]);
    out[i + 1] = static_cast<Out>(odd * cos[i + 1] + even * sin[i + 1]);
  }
}

std::vector<WindowAt> windows_of(WindowAxis axis) {
  std::vector<WindowAt> windows;
  for (int64_t i = 0; i < axis.length; ++i) {
    windows.push_back(
        {axis.start(i), axis.first_offset(i), axis.inverse_start(i), axis.inverse_count(i)});
  }
  return windows;
}

// The public functions check their arguments and say what is wrong; this only keeps direct calls of
// the operators from touching memory that is not theirs.
void check_problem(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                   const at::Tensor& bias, WindowAxis rows, WindowAxis cols) {
  TORCH_CHECK(key.sizes() == query.sizes() && value.sizes() == query.sizes() &&
                  key.scalar_type() == query.scalar_type() &&
                  value.scalar_type() == query.scalar_type(),
              "query, key and value must have one shape and dtype");
  for (const auto& axis : {rows, cols}) {
    TORCH_CHECK(axis.kernel > 0 && axis.kernel % 2 == 1 && axis.dilation > 0 &&
                    axis.kernel * axis.dilation <= axis.length,
                "a window of ", axis.kernel, " taps with dilation ", axis.dilation,
                " does not fit ", axis.length, " positions");
  }
  const std::vector<int64_t> table{query.size(1), 2 * rows.kernel - 1, 2 * cols.kernel - 1};
  TORCH_CHECK(!bias.defined() || bias.sizes() == table, "bias must have shape ",
              at::IntArrayRef(table));
}

template <typename T>
Neighborhood<T> make_problem(const at::Tensor& query, const at::Tensor& key,
                             const at::Tensor& value, const at::Tensor& bias, WindowAxis rows,
                             WindowAxis cols, const std::vector<WindowAt>& col_windows) {
  check_problem(query, key, value, bias, rows, cols);
  Neighborhood<T> problem{};
  problem.rows = rows;
  problem.cols = cols;
  problem.col_windows = col_windows.data();
  problem.heads = query.size(1);
  problem.dim = query.size(4);
  problem.query = query.const_data_ptr<T>();
  problem.key = key.const_data_ptr<T>();
  problem.value = value.const_data_ptr<T>();
  problem.bias = data_or_null<T>(bias);
  return problem;
}

at::Tensor to_compute(const at::Tensor& bias, const at::Tensor& query) {
  return bias.defined() ? bias.to(query.scalar_type()).contiguous() : bias;
}

// Calls run(row, scratch, task) for every row of every map of every head, in parallel over tasks of
// up to kRowsPerTask rows of one head.
template <typename T, typename Run>
void for_each_row(const at::Tensor& query, const Neighborhood<T>& problem, const Run& run) {
  const int64_t height = query.size(2), tasks_per_map = (height + kRowsPerTask - 1) / kRowsPerTask;
  at::parallel_for(
      0, query.size(0) * query.size(1) * tasks_per_map, 1, [&](int64_t begin, int64_t end) {
        std::vector<T> scratch(scratch_size(problem));
        for (int64_t task = begin; task < end; ++task) {
          const int64_t map = task / tasks_per_map, first = task % tasks_per_map * kRowsPerTask;
          const int64_t last = std::min(first + kRowsPerTask, height);
          for (int64_t y = first; y < last; ++y) run(map * height + y, scratch.data(), task);
        }
      });
}

}  // namespace

at::Tensor pack(const at::Tensor& map, double factor, const std::optional<Rotary>& rotary) {
  CHECK_CPU(map);
  TORCH_CHECK(map.dim() == 5, "expected (B, H, W, num_heads, head_dim), got ", map.sizes());
  const auto src = map.stride(4) == 1 || map.size(4) == 1 ? map : map.contiguous();
  const int64_t batch = src.size(0), height = src.size(1), width = src.size(2), heads = src.size(3),
                dim = src.size(4);
  const auto dtype = compute_type(src);
  const int64_t lanes = kLaneBytes / static_cast<int64_t>(at::elementSize(dtype));
  const int64_t padded = (dim + lanes - 1) / lanes * lanes;
  const auto packed = at::empty({batch, heads, height, width, padded}, src.options().dtype(dtype));
  const Rotary tables = rotary_tables(rotary, dtype);
  const std::vector<int64_t> table_size{height, width, dim};
  TORCH_CHECK(
      !rotary ||
          (tables.sin.sizes() == table_size && tables.cos.sizes() == table_size && dim % 2 == 0),
      "rotary tables must have shape ", at::IntArrayRef(table_size), " with an even head_dim");
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, src.scalar_type(), "pack", [&] {
    using T = at::opmath_type<scalar_t>;
    const auto strides = src.strides();
    const scalar_t* in = src.const_data_ptr<scalar_t>();
    T* out = packed.mutable_data_ptr<T>();
    const T *sin = data_or_null<T>(tables.sin), *cos = data_or_null<T>(tables.cos);
    at::parallel_for(0, batch * heads * height, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t y = row % height, head = row / height % heads, b = row / height / heads;
        for (int64_t x = 0; x < width; ++x) {
          T* to = out + (row * width + x) * padded;
          const int64_t table = (y * width + x) * dim;
          const int64_t from = b * strides[0] + y * strides[1] + x * strides[2] + head * strides[3];
          convert_channels(in + from, to, dim, T(factor), sin ? sin + table : nullptr,
                           cos ? cos + table : nullptr);
          std::fill(to + dim, to + padded, T(0));
        }
      }
    });
  });
  return packed;
}

at::Tensor unpack(const at::Tensor& packed, const at::Tensor& like, double factor,
                  const std::optional<Rotary>& rotary) {
  const int64_t batch = like.size(0), height = like.size(1), width = like.size(2),
                heads = like.size(3);
  const int64_t dim = like.size(4), padded = packed.size(4);
  const auto map = at::empty(like.sizes(), like.options());
  const Rotary tables = rotary_tables(rotary, packed.scalar_type());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, like.scalar_type(), "unpack", [&] {
    using T = at::opmath_type<scalar_t>;
    const T* in = packed.const_data_ptr<T>();
    scalar_t* out = map.mutable_data_ptr<scalar_t>();
    const T *sin = data_or_null<T>(tables.sin), *cos = data_or_null<T>(tables.cos);
    at::parallel_for(0, batch * height, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t y = row % height, b = row / height;
        for (int64_t x = 0; x < width; ++x) {
          const int64_t table = (y * width + x) * dim;
          for (int64_t head = 0; head < heads; ++head) {
            convert_channels(in + (((b * heads + head) * height + y) * width + x) * padded,
                             out + ((row * width + x) * heads + head) * dim, dim, T(factor),
                             sin ? sin + table : nullptr, cos ? cos + table : nullptr);
          }
        }
      }
    });
  });
  return map;
}

std::tuple<at::Tensor, at::Tensor> attend(const at::Tensor& query, const at::Tensor& key,
                                          const at::Tensor& value, const at::Tensor& bias,
                                          WindowAxis rows, WindowAxis cols) {
  const auto output = at::empty_like(query);
  const auto logsumexp = at::empty(query.sizes().slice(0, 4), query.options());
  const auto table = to_compute(bias, query);
  const auto col_windows = windows_of(cols);
  AT_DISPATCH_FLOATING_TYPES(query.scalar_type(), "neighborhood_attention_cpu", [&] {
    auto problem = make_problem<scalar_t>(query, key, value, table, rows, cols, col_windows);
    problem.logsumexp = logsumexp.mutable_data_ptr<scalar_t>();
    scalar_t* out = output.mutable_data_ptr<scalar_t>();
    const auto kernels = row_kernels<scalar_t>();
    for_each_row(query, problem, [&](int64_t row, scalar_t* scratch, int64_t) {
      kernels.forward(problem, row, scratch, out + row * problem.cols.length * problem.dim);
    });
  });
  return {output, logsumexp};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> attend_backward(
    const at::Tensor& grad_output, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const at::Tensor& bias, const at::Tensor& output,
    const at::Tensor& logsumexp, WindowAxis rows, WindowAxis cols) {
  const auto grad_query = at::empty_like(query), grad_key = at::empty_like(query),
             grad_value = at::empty_like(query);
  const auto delta = (grad_output * output).sum(-1);
  TORCH_CHECK(delta.sizes() == query.sizes().slice(0, 4) && logsumexp.sizes() == delta.sizes(),
              "grad_output, output and logsumexp must belong to query");
  const auto table = to_compute(bias, query);
  const auto col_windows = windows_of(cols);
  const int64_t tasks_per_map = (query.size(2) + kRowsPerTask - 1) / kRowsPerTask;
  at::Tensor grad_tables;  // one bias table per task
  if (bias.defined()) {
    grad_tables = at::zeros(
        {query.size(0), query.size(1), tasks_per_map, bias.size(1), bias.size(2)}, query.options());
  }
  AT_DISPATCH_FLOATING_TYPES(query.scalar_type(), "neighborhood_attention_backward_cpu", [&] {
    auto problem = make_problem<scalar_t>(query, key, value, table, rows, cols, col_windows);
    problem.logsumexp = logsumexp.mutable_data_ptr<scalar_t>();
    problem.grad_output = grad_output.const_data_ptr<scalar_t>();
    problem.delta = delta.const_data_ptr<scalar_t>();
    scalar_t *dq = grad_query.mutable_data_ptr<scalar_t>(),
             *dk = grad_key.mutable_data_ptr<scalar_t>(),
             *dv = grad_value.mutable_data_ptr<scalar_t>();
    scalar_t* db = bias.defined() ? grad_tables.mutable_data_ptr<scalar_t>() : nullptr;
    const int64_t table_size = bias.defined() ? bias.size(1) * bias.size(2) : 0;
    const int64_t row_size = problem.cols.length * problem.dim;
    const auto kernels = row_kernels<scalar_t>();
    for_each_row(query, problem, [&](int64_t row, scalar_t* scratch, int64_t task) {
      kernels.backward_query(problem, row, scratch, dq + row * row_size,
                             db ? db + task * table_size : nullptr);
      kernels.backward_key_value(problem, row, scratch, dk + row * row_size, dv + row * row_size);
    });
  });
  return {grad_query, grad_key, grad_value,
          bias.defined() ? grad_tables.sum(at::IntArrayRef{0, 2}) : at::Tensor()};
}

}  // namespace cpu
}  // namespace mmlocalattn
