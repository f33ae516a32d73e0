// CPU operator: stand-alone self-attention, forward and backward.
//
//   output[b, i, n] = sum_j softmax_j(scale <query[b, i, n], key[b, j, n] + r[n, j - i]>)
//   value[b, j, n]
//
// with j over the window centred on i, and r[n, (a, b)] = (row_embedding[n, a],
// column_embedding[n, b]).
//
// query, key, value, output: (B, H, W, num_heads, head_dim); logsumexp: (B, H, W, num_heads) in the
// compute dtype. Work is split into bands of rows of a group of heads; each band packs the rows of
// keys around it, and computes anew the gradients of logits there, so that none adds to what is
// another's.
#include <torch/library.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "pytorch_cpp_helper.hpp"
#include "runtime.h"
#include "stand_alone.h"

namespace mmlocalattn {
namespace cpu {

namespace {

using at::IntArrayRef;
using at::Tensor;

constexpr int64_t kMostTaps = 11;  // along an axis
constexpr int64_t kBandRows = 48;  // about
constexpr int64_t kRowStep = 4;    // of the kernels
constexpr int64_t kGroupDim = 16;  // lanes of the longest vectors of fp32

// The kernels for the instruction set in use.
template <typename T>
StandAloneKernels<T> kernels() {
  switch (instruction_set()) {
#ifdef MMLOCALATTN_X86
    case InstructionSet::kAvx512Bf16:
    case InstructionSet::kAvx512:
      return stand_alone_avx512<T>();
    case InstructionSet::kAvx2:
      return stand_alone_avx2<T>();
#endif
    default:
      return stand_alone_portable<T>();
  }
}

// One call of the operator.
struct Problem {
  Tensor query, key, value, row_embedding, column_embedding;
  IntArrayRef kernel_size;
  bool zero_padding;
  double scale;
};

// The public function checks its arguments and says what is wrong; this only keeps direct calls of
// the operator from touching memory that is not theirs.
void check(const Problem& problem) {
  const auto& query = problem.query;
  CHECK_CPU(query);
  TORCH_CHECK(query.dim() == 5, "expected (B, H, W, num_heads, head_dim), got ", query.sizes());
  for (const auto& other : {problem.key, problem.value}) {
    TORCH_CHECK(other.sizes() == query.sizes() && other.scalar_type() == query.scalar_type(),
                "query, key and value must have one shape and dtype");
  }
  for (const int64_t kernel : problem.kernel_size) {
    TORCH_CHECK(kernel > 0 && kernel % 2 == 1 && kernel <= kMostTaps, "a window of ", kernel,
                " taps is even or larger than ", kMostTaps);
  }
  const int64_t heads = query.size(3), half = query.size(4) / 2;
  const std::vector<int64_t> rows{heads, problem.kernel_size[0], half},
      columns{heads, problem.kernel_size[1], query.size(4) - half};
  TORCH_CHECK(problem.row_embedding.sizes() == rows, "row_embedding must have shape ",
              IntArrayRef(rows));
  TORCH_CHECK(problem.column_embedding.sizes() == columns, "column_embedding must have shape ",
              IntArrayRef(columns));
}

// A problem as the kernels need it.
Problem make_ready(const Problem& problem) {
  const auto compute = at::toOpMathType(problem.query.scalar_type());
  Problem copy = problem;
  for (auto* map : {&copy.query, &copy.key, &copy.value}) *map = ready(*map);
  for (auto* table : {&copy.row_embedding, &copy.column_embedding}) {
    *table = table->to(compute).contiguous();
  }
  return copy;
}

// Where the pieces of a problem are.
struct Split {
  int64_t batch, bands, group_heads, groups;
  std::vector<int64_t> columns;

  Split(const Tensor& query, std::initializer_list<Tensor> maps)
      : batch(query.size(0)), bands(1), group_heads(1), columns(query.size(2)) {
    const int64_t height = query.size(1), heads = query.size(3), dim = query.size(4);
    // Narrow heads that lie side by side fill vectors of channels together.
    const bool are_neighbors = std::all_of(maps.begin(), maps.end(),
                                           [&](const Tensor& map) { return map.stride(3) == dim; });
    if (are_neighbors && dim % 4 == 0) {
      group_heads = std::clamp<int64_t>(kGroupDim / dim, 1, heads);
    }
    groups = (heads + group_heads - 1) / group_heads;
    bands = std::max<int64_t>(1, (height + kBandRows / 2) / kBandRows);
    std::iota(columns.begin(), columns.end(), 0);
  }

  int64_t pieces() const { return batch * bands * groups; }
  int64_t band(int64_t piece) const { return piece / groups % bands; }
  int64_t head(int64_t piece) const { return piece % groups * group_heads; }
  int64_t image(int64_t piece) const { return piece / groups / bands; }
  // First row of a band, a multiple of kRowStep.
  int64_t row(int64_t band, int64_t height) const {
    const int64_t steps = (height + kRowStep - 1) / kRowStep;
    return std::min(height, band * steps / bands * kRowStep);
  }
};

// What kernels read or write of a map, from one image and head on.
template <typename T>
Map<T> view(const Tensor& map, const Split& split, int64_t piece, double factor = 1) {
  return {{data_of<T>(map) + split.image(piece) * map.stride(0) + split.head(piece) * map.stride(3),
           map.stride(1), map.stride(2), split.columns.data()},
          static_cast<Compute<T>>(factor)};
}

// A piece of a problem from make_ready().
template <typename T>
StandAlonePiece<T> make_piece(const Problem& problem, const Split& split, int64_t index,
                              const Tensor& logsumexp) {
  using C = Compute<T>;
  const auto& query = problem.query;
  const int64_t head = split.head(index);
  StandAlonePiece<T> piece{};
  piece.height = query.size(1);
  piece.width = query.size(2);
  piece.kernel_rows = problem.kernel_size[0];
  piece.kernel_cols = problem.kernel_size[1];
  piece.zero_padding = problem.zero_padding;
  piece.heads = std::min(split.group_heads, query.size(3) - head);
  piece.dim = query.size(4);
  piece.y_begin = split.row(split.band(index), piece.height);
  piece.y_end = split.row(split.band(index) + 1, piece.height);
  piece.query = view<const T>(query, split, index, problem.scale * kLog2E);
  piece.key = view<const T>(problem.key, split, index);
  piece.value = view<const T>(problem.value, split, index);
  piece.row_embedding = data_of<C>(problem.row_embedding) + head * problem.row_embedding.stride(0);
  piece.column_embedding =
      data_of<C>(problem.column_embedding) + head * problem.column_embedding.stride(0);
  piece.logsumexp = {
      data_of<C>(logsumexp) + split.image(index) * logsumexp.stride(0) + head * logsumexp.stride(3),
      logsumexp.stride(1), logsumexp.stride(2), split.columns.data()};
  return piece;
}

// A map for results of the kernels.
Tensor make_result(const Tensor& map) {
  return at::empty(map.sizes(), map.options().dtype(kernel_type(map.scalar_type())));
}

std::tuple<Tensor, Tensor> stand_alone_attention_cpu(
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& row_embedding,
    const Tensor& column_embedding, IntArrayRef kernel_size, bool zero_padding, double scale) {
  const Problem caller{query,       key,          value, row_embedding, column_embedding,
                       kernel_size, zero_padding, scale};
  check(caller);
  const Problem problem = make_ready(caller);
  const Tensor output = make_result(query);
  const Tensor logsumexp = at::empty(query.sizes().slice(0, 4),
                                     query.options().dtype(at::toOpMathType(query.scalar_type())));
  if (query.numel() == 0) return {output.to(query.scalar_type()), logsumexp.zero_()};
  const Split split(query, {problem.query, problem.key, problem.value});
  dispatch(query.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto kernel = kernels<T>();
    run_in_turns(split.pieces(), [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        auto piece = make_piece<T>(problem, split, index, logsumexp);
        piece.output = view<T>(output, split, index);
        kernel.forward(piece, scratch<Compute<T>>(kernel.forward_scratch(piece)));
      }
    });
  });
  return {output.to(query.scalar_type()), logsumexp};
}

// The parts (parts, ...) added up in their order.
Tensor sum_parts(const Tensor& parts, at::ScalarType dtype) {
  Tensor sum = at::zeros(parts.sizes().slice(1), parts.options());
  for (int64_t part = 0; part < parts.size(0); ++part) sum += parts[part];
  return sum.to(dtype);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> stand_alone_attention_backward_cpu(
    const Tensor& grad_output_, const Tensor& query, const Tensor& key, const Tensor& value,
    const Tensor& row_embedding, const Tensor& column_embedding, const Tensor& logsumexp_,
    IntArrayRef kernel_size, bool zero_padding, double scale) {
  const Problem caller{query,       key,          value, row_embedding, column_embedding,
                       kernel_size, zero_padding, scale};
  check(caller);
  TORCH_CHECK(
      grad_output_.sizes() == query.sizes() && logsumexp_.sizes() == query.sizes().slice(0, 4),
      "grad_output and logsumexp must fit query");
  const Problem problem = make_ready(caller);
  const Tensor grad_output = ready(grad_output_.to(query.scalar_type()));
  const Tensor logsumexp = logsumexp_.to(at::toOpMathType(query.scalar_type()));
  const Tensor grad_query = make_result(query), grad_key = make_result(key),
               grad_value = make_result(value);
  const Split split(query, {problem.query, problem.key, problem.value, grad_output});
  // Every piece writes its part of the gradients of the embeddings.
  const auto parts = [&](const Tensor& table) {
    std::vector<int64_t> sizes = table.sizes().vec();
    sizes.insert(sizes.begin(), split.batch * split.bands);
    return at::zeros(sizes, table.options());
  };
  const Tensor row_parts = parts(problem.row_embedding),
               column_parts = parts(problem.column_embedding);
  dispatch(query.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using C = Compute<T>;
    const auto kernel = kernels<T>();
    run_in_turns(query.numel() == 0 ? 0 : split.pieces(), [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        auto piece = make_piece<T>(problem, split, index, logsumexp);
        const int64_t part = index / split.groups, head = split.head(index);
        piece.grad_output = view<const T>(grad_output, split, index);
        piece.grad_query = view<T>(grad_query, split, index, scale);
        piece.grad_key = view<T>(grad_key, split, index, kLn2);
        piece.grad_value = view<T>(grad_value, split, index);
        piece.grad_row_embedding =
            data_of<C>(row_parts) + part * row_parts.stride(0) + head * row_parts.stride(1);
        piece.grad_column_embedding = data_of<C>(column_parts) + part * column_parts.stride(0) +
                                      head * column_parts.stride(1);
        kernel.backward(piece, scratch<C>(kernel.backward_scratch(piece)));
      }
    });
  });
  const auto dtype = query.scalar_type();
  return {grad_query.to(dtype), grad_key.to(dtype), grad_value.to(dtype),
          sum_parts(row_parts, row_embedding.scalar_type()),
          sum_parts(column_parts, column_embedding.scalar_type())};
}

}  // namespace
}  // namespace cpu
}  // namespace mmlocalattn

TORCH_LIBRARY_IMPL(mmlocalattn, CPU, m) {
  m.impl("stand_alone_attention", &mmlocalattn::cpu::stand_alone_attention_cpu);
  m.impl("_stand_alone_attention_backward", &mmlocalattn::cpu::stand_alone_attention_backward_cpu);
}
