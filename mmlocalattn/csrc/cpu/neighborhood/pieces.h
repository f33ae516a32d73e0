// The pieces of a problem: how its dilation groups are cut, and what the kernels get of each part.
#pragma once

#include <ATen/ops/constant_pad_nd.h>

#include <vector>

#include "cpu/neighborhood/operator.h"
#include "cpu/neighborhood/piece.h"

namespace mmlocalattn::cpu::neighborhood {

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
// The split depends on the shape alone, so that results do not depend on the number of threads.
struct Split {
  std::vector<ColumnSet> sets;
  std::vector<Place> places;

  Split(const WindowAxis& rows, const WindowAxis& cols);
};

// The axis of one dilation group.
inline WindowAxis group_axis(const WindowAxis& axis, int64_t group) {
  return {axis.group_length(group), axis.kernel, 1};
}

// The maps of a problem and their pieces.
template <typename T>
class Pieces {
 public:
  using C = Compute<T>;

  explicit Pieces(const Problem& problem)
      : problem_(problem),
        split_(problem.rows, problem.cols),
        dtype_(kernel_type(problem.query.scalar_type())),
        query_(ready(problem.query)),
        key_(ready(problem.key)),
        value_(ready(problem.value)) {
    if (problem.bias.defined()) {
      const auto compute = compute_options().dtype();
      // A vector of values past the end may be read.
      bias_ = at::constant_pad_nd(problem.bias.to(compute).flatten(),
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
    if (tensor.numel() == 0) return {};  // no data to point into
    auto grid = grid_of<U>(tensor, b, head, split_.sets[place.set].column);
    grid.data += place.gy * grid.row;
    grid.row *= problem_.rows.dilation;
    return grid;
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
    piece.query = map<const T>(query_, b, head, place, problem_.scale);
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

}  // namespace mmlocalattn::cpu::neighborhood
