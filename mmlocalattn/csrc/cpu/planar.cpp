// Layout, threads and the choice of the instruction set around the kernels of neighborhood.h.
#include "planar.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>

#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

#include "neighborhood.h"
#include "pytorch_cpp_helper.hpp"

namespace mmlocalattn {
namespace cpu {
namespace {

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
Kernels<T> kernels() {
  const char* wish = std::getenv("MMLOCALATTN_CPU_ISA");
  const std::string best = best_isa(), isa = wish ? wish : best;
  TORCH_CHECK(isa == "portable" || isa == best || (isa == "avx2" && best == "avx512"),
              "MMLOCALATTN_CPU_ISA=", isa,
              " cannot be used here, choose portable or anything up to ", best);
#ifdef MMLOCALATTN_X86
  if (isa == "avx512") return kernels_avx512<T>();
  if (isa == "avx2") return kernels_avx2<T>();
#endif
  return kernels_portable<T>();
}

at::ScalarType compute_type(const at::Tensor& tensor) {
  return at::toOpMathType(tensor.scalar_type());
}

// A plane holds the width, one vector more, and an odd number of cache lines: planes then fall into
// different sets.
int64_t plane_size(int64_t width, at::ScalarType dtype) {
  const int64_t line = kVectorBytes / static_cast<int64_t>(at::elementSize(dtype));
  return (((width + line - 1) / line + 1) | 1) * line;
}

// Memory of planar maps, kept for the next call up to a limit: the pages of fresh memory cost as
// much time as the attention of a small window.
class Pool {
 public:
  at::Tensor take(at::IntArrayRef sizes, const at::TensorOptions& options) {
    const size_t bytes = c10::multiply_integers(sizes) * options.dtype().itemsize();
    Block block = find(bytes);
    if (block.bytes == 0) block = {std::max<size_t>(bytes, kVectorBytes), nullptr};
    if (block.data == nullptr) {
      const size_t rounded = (block.bytes + kVectorBytes - 1) / kVectorBytes * kVectorBytes;
      block.data = std::aligned_alloc(kVectorBytes, rounded);
      TORCH_CHECK(block.data != nullptr, "out of memory: ", rounded, " bytes for a planar map");
    }
    return at::from_blob(block.data, sizes, [this, block](void*) { give_back(block); }, options);
  }

 private:
  struct Block {
    size_t bytes;
    void* data;
  };

  static constexpr size_t kMostBytes = size_t(128) << 20;

  // A block that is not much larger than `bytes`, or none.
  Block find(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
      if (block->bytes >= bytes && block->bytes / 2 <= bytes) {
        const Block found = *block;
        blocks_.erase(block);
        bytes_ -= found.bytes;
        return found;
      }
    }
    return {0, nullptr};
  }

  void give_back(const Block& block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    blocks_.push_back(block);
    bytes_ += block.bytes;
    while (bytes_ > kMostBytes) {  // the oldest go first
      bytes_ -= blocks_.front().bytes;
      std::free(blocks_.front().data);
      blocks_.erase(blocks_.begin());
    }
  }

  std::mutex mutex_;
  std::vector<Block> blocks_;
  size_t bytes_ = 0;
};

Pool& pool() {
  static Pool* pool = new Pool;  // never destroyed: tensors may outlive the library
  return *pool;
}

template <typename T>
const T* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

// The tables in the compute dtype; undefined tensors without rotary.
Rotary rotary_tables(const std::optional<Rotary>& rotary, at::IntArrayRef map_sizes,
                     at::ScalarType dtype) {
  if (!rotary) return {};
  const std::vector<int64_t> sizes{map_sizes[1], map_sizes[2], map_sizes[4]};
  TORCH_CHECK(rotary->sin.sizes() == sizes && rotary->cos.sizes() == sizes && sizes[2] % 2 == 0,
              "rotary tables must have shape ", at::IntArrayRef(sizes), " with an even head_dim");
  return {rotary->sin.to(dtype).contiguous(), rotary->cos.to(dtype).contiguous()};
}

// Calls run(row, planar row) for all rows of a map in channels-last order: ChannelsRow of every
// (batch, head, y).
template <typename T, typename Data, typename Run>
void for_each_row(Data* data, at::IntArrayRef sizes, at::IntArrayRef strides, const Rotary& tables,
                  double factor, const Run& run) {
  const int64_t height = sizes[1], heads = sizes[3], table_row = sizes[2] * sizes[4];
  const T *sin = data_or_null<T>(tables.sin), *cos = data_or_null<T>(tables.cos);
  at::parallel_for(0, sizes[0] * heads * height, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t y = row % height, head = row / height % heads, b = row / height / heads;
      Data* first = data + b * strides[0] + y * strides[1] + head * strides[3];
      run(row, ChannelsRow<Data>{first, strides[2], sin ? sin + y * table_row : nullptr,
                                 cos ? cos + y * table_row : nullptr, static_cast<T>(factor)});
    }
  });
}

// Column blocks of up to `lanes` neighboring columns. `inverse`: columns are keys, their taps
// queries.
std::vector<ColumnBlock> column_blocks(WindowAxis cols, int lanes, bool inverse) {
  std::vector<ColumnBlock> blocks;
  for (int64_t x = 0; x < cols.length;) {
    ColumnBlock block{};
    int64_t first[kMaxLanes], low = 0, high = 0;
    for (; block.lanes < lanes && x + block.lanes < cols.length; ++block.lanes) {
      const int64_t column = x + block.lanes;
      const int64_t start = inverse ? cols.inverse_start(column) : cols.start(column);
      low = block.lanes ? std::min(low, start) : start;
      high = block.lanes ? std::max(high, start) : start;
      if (high - low >= lanes) break;
      first[block.lanes] = start;
      block.base = low;
      block.count[block.lanes] = inverse ? cols.inverse_count(column) : cols.kernel;
      block.offset[block.lanes] =
          inverse ? (column - start) / cols.dilation + cols.kernel - 1 : cols.first_offset(column);
    }
    block.x = x;
    block.is_shift = true;
    for (int lane = 0; lane < lanes; ++lane) {
      const bool used = lane < block.lanes;
      block.source[lane] = used ? first[lane] - block.base : lane;
      block.taps = std::max<int64_t>(block.taps, used ? block.count[lane] : 0);
      block.is_shift = block.is_shift && block.source[lane] == lane &&
                       (!used || block.count[lane] == block.count[0]);
    }
    blocks.push_back(block);
    x += block.lanes;
  }
  return blocks;
}

// All rows in pairs of neighbors in a dilation group.
std::vector<RowPair> row_pairs(WindowAxis rows, bool inverse) {
  std::vector<RowPair> pairs;
  for (int64_t group = 0; group < std::min(rows.dilation, rows.length); ++group) {
    for (int64_t y = group; y < rows.length; y += 2 * rows.dilation) {
      RowPair pair{};
      for (int64_t row = y; pair.rows < 2 && row < rows.length; row += rows.dilation) {
        const int64_t start = inverse ? rows.inverse_start(row) : rows.start(row);
        const int t = pair.rows++;
        if (t == 0) pair.first = start;
        pair.y[t] = row;
        pair.begin[t] = (start - pair.first) / rows.dilation;
        pair.end[t] = pair.begin[t] + (inverse ? rows.inverse_count(row) : rows.kernel);
        pair.offset[t] =
            inverse ? (row - start) / rows.dilation + rows.kernel - 1 : rows.first_offset(row);
      }
      pairs.push_back(pair);
    }
  }
  return pairs;
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

// Planar maps and tables of one problem, and the part of them that belongs to one map.
template <typename T>
struct Maps {
  at::Tensor query, key, value, bias, logsumexp, delta, grad_output, output, grad_key, grad_value,
      grad_bias;
  WindowAxis rows, cols;

  int64_t count() const { return query.size(0) * query.size(1); }

  Neighborhood<T> problem(int64_t map, const std::vector<ColumnBlock>& blocks) const {
    Neighborhood<T> problem{};
    problem.rows = rows;
    problem.cols = cols;
    problem.dim = query.size(3);
    problem.plane = query.size(4);
    problem.blocks = blocks.data();
    problem.num_blocks = blocks.size();
    problem.query = part(query, map);
    problem.key = part(key, map);
    problem.value = part(value, map);
    problem.grad_output = part(grad_output, map);
    problem.output = part(output, map);
    problem.grad_key = part(grad_key, map);
    problem.grad_value = part(grad_value, map);
    problem.logsumexp = part(logsumexp, map);
    problem.delta = part(delta, map);
    problem.bias =
        bias.defined() ? bias.data_ptr<T>() + map % query.size(1) * bias[0].numel() : nullptr;
    return problem;
  }

 private:
  T* part(const at::Tensor& maps, int64_t map) const {
    return maps.defined() ? maps.data_ptr<T>() + map * (maps.numel() / count()) : nullptr;
  }
};

// A planar map to write, with the 0 past the width that kernels count on where it becomes an input.
at::Tensor empty_planar(const at::Tensor& like, int64_t width) {
  const auto planar = pool().take(like.sizes(), like.options());
  planar.slice(4, width).zero_();
  return planar;
}

// Runs a kernel over all pairs of rows of all maps in parallel; task is map * pairs.size() + pair.
template <typename T, typename Kernel>
void for_each_pair(const Maps<T>& maps, int lanes, bool inverse, const Kernel& kernel) {
  const auto blocks = column_blocks(maps.cols, lanes, inverse);
  const auto pairs = row_pairs(maps.rows, inverse);
  const int64_t num_pairs = pairs.size();
  at::parallel_for(0, maps.count() * num_pairs, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> memory;
    for (int64_t task = begin; task < end; ++task) {
      auto problem = maps.problem(task / num_pairs, blocks);
      memory.resize(scratch_size(problem) + kMaxLanes);
      const auto address = reinterpret_cast<uintptr_t>(memory.data());
      T* scratch = reinterpret_cast<T*>((address + kVectorBytes - 1) / kVectorBytes * kVectorBytes);
      kernel(problem, pairs[task % num_pairs], task, scratch);
    }
  });
}

}  // namespace

at::Tensor pack(const at::Tensor& map, double factor, const std::optional<Rotary>& rotary) {
  CHECK_CPU(map);
  TORCH_CHECK(map.dim() == 5, "expected (B, H, W, num_heads, head_dim), got ", map.sizes());
  const auto dtype = compute_type(map);
  const auto source = map.stride(4) == 1 ? map.to(dtype) : map.to(dtype).contiguous();
  const int64_t width = source.size(2), dim = source.size(4), plane = plane_size(width, dtype);
  const auto planar =
      pool().take({source.size(0), source.size(3), source.size(1), dim, plane}, source.options());
  const Rotary tables = rotary_tables(rotary, source.sizes(), dtype);
  AT_DISPATCH_FLOATING_TYPES(dtype, "pack", [&] {
    scalar_t* out = planar.mutable_data_ptr<scalar_t>();
    const auto run = kernels<scalar_t>().pack;
    for_each_row<scalar_t>(source.const_data_ptr<scalar_t>(), source.sizes(), source.strides(),
                           tables, factor,
                           [&](int64_t row, const ChannelsRow<const scalar_t>& channels) {
                             run(channels, width, dim, plane, out + row * dim * plane);
                           });
  });
  return planar;
}

at::Tensor unpack(const at::Tensor& planar, const at::Tensor& like, double factor,
                  const std::optional<Rotary>& rotary) {
  const auto dtype = planar.scalar_type();
  const auto map = at::empty(like.sizes(), like.options().dtype(dtype));
  const int64_t width = map.size(2), dim = map.size(4), plane = planar.size(4);
  const Rotary tables = rotary_tables(rotary, map.sizes(), dtype);
  AT_DISPATCH_FLOATING_TYPES(dtype, "unpack", [&] {
    const scalar_t* in = planar.const_data_ptr<scalar_t>();
    const auto run = kernels<scalar_t>().unpack;
    for_each_row<scalar_t>(map.mutable_data_ptr<scalar_t>(), map.sizes(), map.strides(), tables,
                           factor, [&](int64_t row, const ChannelsRow<scalar_t>& channels) {
                             run(channels, width, dim, plane, in + row * dim * plane);
                           });
  });
  return map.to(like.scalar_type());
}

at::Tensor pack_heads(const at::Tensor& logsumexp, int64_t plane) {
  const auto planar = at::zeros({logsumexp.size(0), logsumexp.size(3), logsumexp.size(1), plane},
                                logsumexp.options());
  planar.slice(3, 0, logsumexp.size(2)).copy_(logsumexp.permute({0, 3, 1, 2}));
  return planar;
}

at::Tensor unpack_heads(const at::Tensor& planar, int64_t width) {
  return planar.slice(3, 0, width).permute({0, 2, 3, 1}).contiguous();
}

std::tuple<at::Tensor, at::Tensor> attend(const at::Tensor& query, const at::Tensor& key,
                                          const at::Tensor& value, const at::Tensor& bias,
                                          WindowAxis rows, WindowAxis cols) {
  check_problem(query, key, value, bias, rows, cols);
  const auto output = empty_planar(query, cols.length);
  const auto logsumexp =
      at::empty({query.size(0), query.size(1), query.size(2), query.size(4)}, query.options());
  AT_DISPATCH_FLOATING_TYPES(query.scalar_type(), "neighborhood_attention_cpu", [&] {
    Maps<scalar_t> maps{query, key, value};
    maps.bias = bias.defined() ? bias.to(query.scalar_type()).contiguous() : bias;
    maps.rows = rows, maps.cols = cols;
    maps.output = output, maps.logsumexp = logsumexp;
    const auto run = kernels<scalar_t>();
    for_each_pair(maps, run.lanes, false,
                  [&](auto& problem, const RowPair& pair, int64_t, scalar_t* scratch) {
                    run.forward(problem, pair, scratch);
                  });
  });
  return {output, logsumexp};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> attend_backward(
    const at::Tensor& grad_output, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const at::Tensor& bias, const at::Tensor& output,
    const at::Tensor& logsumexp, WindowAxis rows, WindowAxis cols) {
  check_problem(query, key, value, bias, rows, cols);
  const auto delta = (grad_output * output).sum(3);
  TORCH_CHECK(grad_output.sizes() == query.sizes() && logsumexp.sizes() == delta.sizes(),
              "grad_output, output and logsumexp must belong to query");
  const auto grad_query = empty_planar(query, cols.length),
             grad_key = empty_planar(query, cols.length),
             grad_value = empty_planar(query, cols.length);
  at::Tensor grad_bias;  // one table for each task
  if (bias.defined()) {
    const int64_t pairs = row_pairs(rows, false).size();
    grad_bias = at::zeros({query.size(0), query.size(1), pairs, bias.size(1), bias.size(2)},
                          query.options());
  }
  AT_DISPATCH_FLOATING_TYPES(query.scalar_type(), "neighborhood_attention_backward_cpu", [&] {
    Maps<scalar_t> maps{query, key, value};
    maps.bias = bias.defined() ? bias.to(query.scalar_type()).contiguous() : bias;
    maps.rows = rows, maps.cols = cols;
    maps.logsumexp = logsumexp, maps.delta = delta, maps.grad_output = grad_output;
    maps.output = grad_query, maps.grad_key = grad_key, maps.grad_value = grad_value;
    const auto run = kernels<scalar_t>();
    for_each_pair(maps, run.lanes, false,
                  [&](auto& problem, const RowPair& pair, int64_t task, scalar_t* scratch) {
                    if (bias.defined())
                      problem.grad_bias = grad_bias.data_ptr<scalar_t>() + task * bias[0].numel();
                    run.backward_query(problem, pair, scratch);
                  });
    for_each_pair(maps, run.lanes, true,
                  [&](auto& problem, const RowPair& pair, int64_t, scalar_t* scratch) {
                    run.backward_key_value(problem, pair, scratch);
                  });
  });
  return {grad_query, grad_key, grad_value,
          bias.defined() ? grad_bias.sum(at::IntArrayRef{0, 2}) : at::Tensor()};
}

}  // namespace cpu
}  // namespace mmlocalattn
