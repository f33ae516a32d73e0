// Pieces, threads and the choice of the instruction set around the kernels of neighborhood.h.
#include "attention.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "neighborhood.h"
#include "pytorch_cpp_helper.hpp"
#include "runtime.h"

namespace mmlocalattn {
namespace cpu {
namespace {

// The kernels for the instruction set in use.
template <typename T>
Kernels<T> kernels() {
  switch (instruction_set()) {
#ifdef MMLOCALATTN_X86
    case InstructionSet::kAvx512Bf16:
      if constexpr (std::is_same_v<T, BFloat16>) return kernels_avx512_bf16();
      [[fallthrough]];
    case InstructionSet::kAvx512:
      return kernels_avx512<T>();
    case InstructionSet::kAvx2:
      return kernels_avx2<T>();
#endif
    default:
      return kernels_portable<T>();
  }
}

// The public functions check their arguments and say what is wrong; this only keeps direct calls of
// the operators from touching memory that is not theirs.
void check(const Problem& problem) {
  const auto& query = problem.query;
  CHECK_CPU(query);
  TORCH_CHECK(query.dim() == 5, "expected (B, H, W, num_heads, head_dim), got ", query.sizes());
  for (const auto& other : {problem.key, problem.value}) {
    TORCH_CHECK(other.sizes() == query.sizes() && other.scalar_type() == query.scalar_type(),
                "query, key and value must have one shape and dtype");
  }
  for (const auto& axis : {problem.rows, problem.cols}) {
    TORCH_CHECK(axis.kernel > 0 && axis.kernel % 2 == 1 && axis.dilation > 0 &&
                    axis.kernel * axis.dilation <= axis.length,
                "a window of ", axis.kernel, " taps with dilation ", axis.dilation,
                " does not fit ", axis.length, " positions");
  }
  const std::vector<int64_t> table{query.size(3), 2 * problem.rows.kernel - 1,
                                   2 * problem.cols.kernel - 1};
  TORCH_CHECK(!problem.bias.defined() || problem.bias.sizes() == table, "bias must have shape ",
              at::IntArrayRef(table));
}

// The columns of some dilation groups side by side, see ColumnAxis.
struct ColumnSet {
  std::vector<int64_t> column, first_tap, table_column;
};

// The queries of a piece: in rows of the dilation group gy, and in columns of a set.
struct Place {
  int64_t gy, set, y_begin, y_end, x_begin, x_end;
};

// All pieces of one (batch, head), those of a group of rows and a set of columns one after the
// other.
struct Split {
  std::vector<ColumnSet> sets;
  std::vector<Place> places;
};

// The axis of one dilation group.
WindowAxis group_axis(const WindowAxis& axis, int64_t group) {
  return {axis.group_length(group), axis.kernel, 1};
}

constexpr int64_t kMostRows = 32, kMostCols = 64;  // of a piece: its keys then stay in L2

// How many of the groups from `first` on to work on side by side, so that their columns fill
// vectors: as many as leave the smallest part of groups of 8 lanes unused.
int64_t groups_of_set(const WindowAxis& cols, int64_t first) {
  const auto lanes = [](int64_t columns) { return (columns + 7) / 8 * 8; };
  int64_t columns = 0, best = 1, best_columns = cols.group_length(first);
  for (int64_t groups = 1; first + groups <= cols.dilation; ++groups) {
    columns += cols.group_length(first + groups - 1);
    if (columns > kMostCols) break;
    if (columns * lanes(best_columns) >= best_columns * lanes(columns)) {
      best = groups, best_columns = columns;
    }
  }
  return best;
}

// The split depends on the shape alone, so that results do not depend on the number of threads.
Split split(const WindowAxis& rows, const WindowAxis& cols) {
  Split split;
  for (int64_t gx = 0; gx < cols.dilation;) {
    ColumnSet set;
    for (const int64_t end = gx + groups_of_set(cols, gx); gx < end; ++gx) {
      const WindowAxis axis = group_axis(cols, gx);
      const int64_t first = set.column.size();
      for (int64_t x = 0; x < axis.length; ++x) {
        set.column.push_back(gx + x * cols.dilation);
        set.first_tap.push_back(first + axis.start(x));
        set.table_column.push_back(axis.first_offset(x));
      }
    }
    split.sets.push_back(std::move(set));
  }
  for (int64_t gy = 0; gy < rows.dilation; ++gy) {
    for (size_t set = 0; set < split.sets.size(); ++set) {
      const auto y = cuts(rows.group_length(gy), kMostRows, 4),
                 x = cuts(split.sets[set].column.size(), kMostCols, 8);
      for (size_t i = 0; i + 1 < y.size(); ++i) {
        for (size_t j = 0; j + 1 < x.size(); ++j) {
          split.places.push_back({gy, static_cast<int64_t>(set), y[i], y[i + 1], x[j], x[j + 1]});
        }
      }
    }
  }
  return split;
}

// The maps of a problem and their pieces.
template <typename T>
class Pieces {
 public:
  using C = Compute<T>;

  explicit Pieces(const Problem& problem)
      : problem_(problem),
        split_(split(problem.rows, problem.cols)),
        dtype_(kernel_type(problem.query.scalar_type())),
        query_(ready(problem.query)),
        key_(ready(problem.key)),
        value_(ready(problem.value)) {
    const auto compute = compute_options().dtype();
    if (problem.bias.defined()) {
      // A vector of values past the end may be read.
      bias_ = at::constant_pad_nd(problem.bias.to(compute).mul(kLog2E).flatten(),
                                  {0, kVectorBytes / static_cast<int64_t>(sizeof(C))});
    }
  }

  at::TensorOptions options() const { return problem_.query.options().dtype(dtype_); }
  at::TensorOptions compute_options() const { return options().dtype(at::toOpMathType(dtype_)); }
  const std::vector<Place>& places() const { return split_.places; }
  int64_t batch() const { return query_.size(0); }
  int64_t heads() const { return query_.size(3); }
  int64_t dim() const { return query_.size(4); }

  // Vectors, or in (B, H, W, num_heads) scalars, of the rows and columns of a place.
  template <typename U>
  Grid<U> grid(const at::Tensor& tensor, int64_t b, int64_t head, const Place& place) const {
    const auto strides = tensor.strides();
    U* data = data_of<U>(tensor) + b * strides[0] + place.gy * strides[1] + head * strides[3];
    return {data, strides[1] * problem_.rows.dilation, strides[2],
            split_.sets[place.set].column.data()};
  }

  template <typename U>
  Map<U> map(const at::Tensor& tensor, int64_t b, int64_t head, const Place& place,
             double factor = 1) const {
    return {grid<U>(tensor, b, head, place), static_cast<C>(factor)};
  }

  Piece<T> piece(int64_t b, int64_t head, const Place& place) const {
    Piece<T> piece{};
    piece.rows = group_axis(problem_.rows, place.gy);
    const auto& set = split_.sets[place.set];
    piece.cols = {static_cast<int64_t>(set.column.size()), problem_.cols.kernel, set.column.data(),
                  set.first_tap.data(), set.table_column.data()};
    piece.dim = dim();
    piece.y_begin = place.y_begin, piece.y_end = place.y_end;
    piece.x_begin = place.x_begin, piece.x_end = place.x_end;
    piece.query = map<const T>(query_, b, head, place, problem_.scale * kLog2E);
    piece.key = map<const T>(key_, b, head, place);
    piece.value = map<const T>(value_, b, head, place);
    if (bias_.defined()) {
      piece.bias = data_of<C>(bias_) +
                   head * (2 * problem_.rows.kernel - 1) * (2 * problem_.cols.kernel - 1);
    }
    return piece;
  }

 private:
  const Problem& problem_;
  Split split_;
  at::ScalarType dtype_;
  at::Tensor query_, key_, value_, bias_;
};

// Calls run(piece) for the pieces that make(b, place, head) describes, in parallel, with the
// beginning of the next one on its way to the caches.
template <typename T, typename Make, typename Run>
void run_pieces(const Kernels<T>& kernels, int64_t batch, int64_t places, int64_t heads,
                const Make& make, const Run& run) {
  const auto make_at = [&](int64_t i) {
    return make(i / heads / places, i / heads % places, i % heads);
  };
  const int64_t pieces = batch * places * heads;
  run_in_turns(pieces, [&](int64_t begin, int64_t end) {
    auto piece = make_at(begin);
    kernels.prefetch(piece);
    for (int64_t i = begin + 1; i <= end; ++i) {
      const auto next = make_at(std::min(i, pieces - 1));
      kernels.prefetch(next);
      run(piece);
      piece = next;
    }
  });
}

// Gradients of keys and values: pieces overlap there, so that each first writes its own part.
template <typename T>
class KeyValueGrads {
 public:
  using C = Compute<T>;

  explicit KeyValueGrads(const Pieces<T>& pieces) : pieces_(pieces), places_(pieces.places()) {
    for (const auto& place : places_) {
      offsets_.push_back(size_);
      size_ += pieces_.piece(0, 0, place).grad_size();
    }
    parts_ = at::empty({pieces_.batch(), pieces_.heads(), size_}, pieces_.compute_options());
  }

  C* part(int64_t b, int64_t place, int64_t head) const {
    return data_of<C>(parts_) + (b * pieces_.heads() + head) * size_ + offsets_[place];
  }

  // Adds the parts up, always in the same order.
  void write(const Kernels<T>& kernels, const Grads& grads, bool add_key) const {
    std::vector<int64_t> groups;  // the first place of each group of rows and set of columns
    for (size_t i = 0; i < places_.size(); ++i) {
      if (places_[i].y_begin == 0 && places_[i].x_begin == 0) groups.push_back(i);
    }
    const int64_t num_groups = groups.size(), heads = pieces_.heads();
    groups.push_back(places_.size());
    // Row y of all groups of rows, for all y in the longest.
    const int64_t rows = pieces_.piece(0, 0, places_[0]).rows.length;
    at::parallel_for(0, pieces_.batch() * num_groups * heads * rows, 1,
                     [&](int64_t begin, int64_t end) {
                       for (int64_t i = begin; i < end; ++i) {
                         const int64_t task = i / rows, group = task / heads % num_groups;
                         write_row(kernels, grads, add_key, task / heads / num_groups, task % heads,
                                   i % rows, groups[group], groups[group + 1]);
                       }
                     });
  }

 private:
  void write_row(const Kernels<T>& kernels, const Grads& grads, bool add_key, int64_t b,
                 int64_t head, int64_t y, int64_t begin, int64_t end) const {
    const Place& place = places_[begin];
    const auto first = pieces_.piece(b, head, place);
    if (y >= first.rows.length) return;
    const int64_t width = first.cols.length, padded = padded_dim<T>(first.dim), step = 2 * padded;
    C* sums = scratch<C>(width * step);
    std::fill_n(sums, width * step, C(0));
    for (int64_t i = begin; i < end; ++i) {
      const auto piece = pieces_.piece(b, head, places_[i]);
      const int64_t u = y - piece.first_row();
      if (u < 0 || u >= piece.key_rows()) continue;
      const C* row = part(b, i, head) + u * piece.grad_cols() * step;
      C* to = sums + piece.first_col() * step;
      for (int64_t j = 0; j < piece.key_cols() * step; ++j) to[j] += row[j];
    }
    const auto write = [&](auto type, const auto& kernel) {
      using U = decltype(type);
      auto key = pieces_.template map<U>(grads.key, b, head, place, kLn2);
      key.add = add_key;
      kernel(key, y, width, first.dim, sums, step);
      kernel(pieces_.template map<U>(grads.value, b, head, place), y, width, first.dim,
             sums + padded, step);
    };
    grads.key.scalar_type() == c10::typeMetaToScalarType(pieces_.options().dtype())
        ? write(T(), kernels.write_rounded)
        : write(C(), kernels.write);
  }

  const Pieces<T>& pieces_;
  const std::vector<Place>& places_;
  std::vector<int64_t> offsets_;
  int64_t size_ = 0;
  at::Tensor parts_;
};

}  // namespace

std::tuple<at::Tensor, at::Tensor> attend(const Problem& problem) {
  check(problem);
  at::Tensor output, logsumexp;
  dispatch(problem.query.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const Pieces<T> pieces(problem);
    const auto& places = pieces.places();
    const auto kernels = cpu::kernels<T>();
    output = at::empty(problem.query.sizes(), pieces.options());
    logsumexp = at::empty(problem.query.sizes().slice(0, 4), pieces.compute_options());
    run_pieces(
        kernels, pieces.batch(), places.size(), pieces.heads(),
        [&](int64_t b, int64_t i, int64_t head) {
          auto piece = pieces.piece(b, head, places[i]);
          piece.output = pieces.template map<T>(output, b, head, places[i]);
          piece.logsumexp = pieces.template grid<Compute<T>>(logsumexp, b, head, places[i]);
          return piece;
        },
        [&](const Piece<T>& piece) {
          kernels.forward(piece, scratch<Compute<T>>(kernels.forward_scratch(piece)));
        });
  });
  return {output.to(problem.query.scalar_type()), logsumexp};
}

Grads attend_backward(const Problem& problem, const at::Tensor& grad_output,
                      const at::Tensor& output, const at::Tensor& logsumexp, bool rounded,
                      Grads grads) {
  check(problem);
  TORCH_CHECK(grad_output.sizes() == problem.query.sizes() &&
                  output.sizes() == problem.query.sizes() &&
                  logsumexp.sizes() == problem.query.sizes().slice(0, 4),
              "grad_output, output and logsumexp must belong to query");
  const bool add = grads.query.defined();
  dispatch(problem.query.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const Pieces<T> pieces(problem);
    const auto& places = pieces.places();
    const int64_t num_places = places.size();
    const auto kernels = cpu::kernels<T>();
    const auto ready_output = ready(output.to(pieces.options())),
               ready_grad = ready(grad_output.to(pieces.options()));
    const auto ready_logsumexp = logsumexp.to(pieces.compute_options()).contiguous();
    const auto options = rounded ? pieces.options() : pieces.compute_options();
    if (!add) {
      grads.query = at::empty(problem.query.sizes(), options);
      grads.key = at::empty_like(grads.query);
    }
    grads.value = at::empty(problem.query.sizes(), options);
    at::Tensor grad_bias;  // one table for each piece
    if (problem.bias.defined()) {
      grad_bias = at::zeros(
          {pieces.batch(), num_places, pieces.heads(), problem.bias.size(1), problem.bias.size(2)},
          pieces.compute_options());
    }
    const KeyValueGrads<T> key_value(pieces);
    run_pieces(
        kernels, pieces.batch(), num_places, pieces.heads(),
        [&](int64_t b, int64_t i, int64_t head) {
          auto piece = pieces.piece(b, head, places[i]);
          piece.output = pieces.template map<T>(ready_output, b, head, places[i]);
          piece.grad_output = pieces.template map<const T>(ready_grad, b, head, places[i]);
          piece.logsumexp = pieces.template grid<Compute<T>>(ready_logsumexp, b, head, places[i]);
          if (rounded) {
            piece.rounded_grad_query =
                pieces.template map<T>(grads.query, b, head, places[i], problem.scale);
          } else {
            piece.grad_query =
                pieces.template map<Compute<T>>(grads.query, b, head, places[i], problem.scale);
          }
          piece.grad_query.add = piece.rounded_grad_query.add = add;
          piece.grad_key_value = key_value.part(b, i, head);
          if (grad_bias.defined()) {
            piece.grad_bias =
                data_of<Compute<T>>(grad_bias) + ((b * num_places + i) * pieces.heads() + head) *
                                                     problem.bias.size(1) * problem.bias.size(2);
          }
          return piece;
        },
        [&](const Piece<T>& piece) {
          kernels.backward(piece, scratch<Compute<T>>(kernels.backward_scratch(piece)));
        });
    key_value.write(kernels, grads, add);
    if (grad_bias.defined()) grads.bias = grad_bias.sum(at::IntArrayRef{0, 1});
  });
  return grads;
}

namespace {

// Rotates `input` to `output`, both (B, H, W, num_heads, head_dim) with unit stride of channels.
template <typename In, typename Out>
void rotate_map(const at::Tensor& input, const at::Tensor& output, const Rotary& rotary,
                void (*kernel)(const RotaryRow<In, Out>&), bool transpose) {
  const auto sin = rotary.sin.to(at::toOpMathType(input.scalar_type())).contiguous(),
             cos = rotary.cos.to(sin.scalar_type()).contiguous();
  const std::vector<int64_t> table{input.size(1), input.size(2), input.size(4)};
  TORCH_CHECK(sin.sizes() == table && cos.sizes() == table && table[2] % 2 == 0,
              "rotary tables must have shape ", at::IntArrayRef(table), " with an even head_dim");
  const int64_t height = table[0], heads = input.size(3);
  at::parallel_for(0, input.size(0) * height * heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i % heads, y = i / heads % height, b = i / heads / height;
      const auto row = [&](auto* data, const at::Tensor& map) {
        return data + b * map.stride(0) + y * map.stride(1) + head * map.stride(3);
      };
      kernel({row(data_of<const In>(input), input), row(data_of<Out>(output), output),
              input.stride(2), output.stride(2),
              data_of<const Compute<In>>(sin) + y * sin.stride(0),
              data_of<const Compute<In>>(cos) + y * cos.stride(0), table[1], table[2], transpose});
    }
  });
}

}  // namespace

at::Tensor Rotary::rotate(const at::Tensor& map) const {
  if (!sin.defined()) return map;
  at::Tensor output;
  dispatch(map.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto input = ready(map);
    output = at::empty_like(input.permute({0, 3, 1, 2, 4}), at::MemoryFormat::Contiguous)
                 .permute({0, 2, 3, 1, 4});
    rotate_map<T, T>(input, output, *this, kernels<T>().rotate, /*transpose=*/false);
  });
  return output;
}

at::Tensor Rotary::rotate_back(const at::Tensor& grad, at::ScalarType dtype) const {
  if (!sin.defined()) return grad.to(dtype);
  at::Tensor output;
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    output = at::empty(grad.sizes(), grad.options().dtype(kernel_type(dtype)));
    rotate_map<Compute<T>, T>(grad, output, *this, kernels<T>().rotate_gradient,
                              /*transpose=*/true);
  });
  return output.to(dtype);
}

}  // namespace cpu
}  // namespace mmlocalattn
