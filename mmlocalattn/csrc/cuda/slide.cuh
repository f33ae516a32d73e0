// Slide attention for the CUDA sources: the problem that kernels get, what forward and backward
// share of them, and of the operators.
//
// With copies i and taps j of a window of k * k, w = weight, b = bias, r = position bias, q scaled:
//
//   s_i = sum_cj q_c k_c(x + j) w_cij + sum_c q_c (b_ci + r_i)     p_i = exp(s_i - lse)
//   B_cj = sum_i p_i w_cij           o_c = sum_j v_c(x + j) B_cj + sum_i p_i b_ci
//
//   dp_i = sum_cj do_c v_c(x + j) w_cij + sum_c do_c b_ci
//   ds_i = p_i (dp_i - sum_l p_l dp_l)
//   A_cj = sum_i ds_i w_cij          dq_c = scale (sum_j k_c(x + j) A_cj + sum_i ds_i (b_ci + r_i))
//   dk_c(x + j) += q_c A_cj          dv_c(x + j) += do_c B_cj
//   dw_cij = sum_x ds_i q_c k_c(x + j) + p_i do_c v_c(x + j), db and dr alike
//
// so that no copy is ever formed.
//
// Memory:
//   query key value output, their gradients   (batch, height, width, heads, head_dim)
//   logsumexp                                 (batch, height, width, heads)
//   table                                     (head_dim, k * k + 1, k * k padded to fours): w with
//                                             copies last, and b as the last tap
// Channels of inputs are neighbors in memory, their other strides are free.
//
// Work split: a block takes a tile of positions of one head, a thread two of them, whose p (and ds)
// it holds in registers. Keys and values pass through shared memory, some channels of a tile and of
// what surrounds it at a time; all threads read the same w at once. Backward tiles overlap by the
// reach of a window, and a thread adds what its position gives to the taps, one tap after the other
// with a barrier between them: no atomics, every sum has a fixed order. A block of backward takes
// some tiles one after the other and leaves one part of dw.
#pragma once

#include <type_traits>

#include "neighborhood.cuh"

namespace mmlocalattn {

constexpr int kPositions = 2;  // of a thread

// A map of one (batch, head) of which (y, x) begins at data + y * row + x * col.
template <typename T>
struct SlideMap {
  T* data;
  int64_t batch, row, col, head;

  __device__ T* at(int64_t n, int64_t h, int64_t y, int64_t x) const {
    return data + n * batch + h * head + y * row + x * col;
  }
};

template <typename T>
struct Slide {
  using accum_t = at::opmath_type<T>;

  int height, width, heads, head_dim;
  int64_t batch;
  accum_t scale;
  SlideMap<const T> query, key, value;
  const accum_t* table;
  const accum_t* position_bias;  // (heads, k * k)
  SlideMap<accum_t> logsumexp;
  SlideMap<T> output;
  // Backward only.
  SlideMap<const T> grad_output;
  SlideMap<T> grad_query, grad_key, grad_value;
  accum_t* grad_table;          // (groups * splits, head_dim, k * k + 1, k * k)
  accum_t* grad_position_bias;  // (tiles, k * k)
};

template <typename T>
struct alignas(16) WeightQuad {
  T of[4];
};

// The positions of a block: kRows x kCols, a thread having kPositions of a column, and those that
// their windows see. Own positions are those that no window of the others reaches beyond: all of
// them in forward, where kMargin is 0.
template <typename T, int kKernel_, int kCols_, int kThreads_, int kMargin_>
struct SlideTile {
  using accum_t = at::opmath_type<T>;
  static constexpr int kKernel = kKernel_, kTaps = kKernel * kKernel, kRadius = kKernel / 2;
  static constexpr int kCols = kCols_, kThreads = kThreads_, kMargin = kMargin_;
  static constexpr int kRowStep = kThreads / kCols, kRows = kPositions * kRowStep;
  static constexpr int kSize = kRows * kCols;
  static constexpr int kOwnRows = kRows - 2 * kMargin, kOwnCols = kCols - 2 * kMargin;
  static constexpr int kPitch = kCols + 2 * kRadius;
  // Odd, so that neighboring channels are in different banks.
  static constexpr int kPlane = (kRows + 2 * kRadius) * kPitch | 1, kOwnPlane = kSize | 1;
  static constexpr int kPadded = (kTaps + 3) / 4 * 4;  // of the table
  static constexpr int kMostSums = 28;                 // copies that a pass over the channels takes

  const Slide<T>& slide;
  int64_t n;
  int head, y, x;  // y, x: of the first position, which can be outside the map

  __device__ SlideTile(const Slide<T>& slide, int64_t tile) : slide(slide) {
    head = tile % slide.heads;
    tile /= slide.heads;
    const int across = tiles_x(slide), down = tiles_y(slide);
    x = static_cast<int>(tile % across) * kOwnCols - kMargin;
    tile /= across;
    y = static_cast<int>(tile % down) * kOwnRows - kMargin;
    n = tile / down;
  }

  MMLOCALATTN_HOST_DEVICE static int tiles_y(const Slide<T>& slide) {
    return (slide.height + kOwnRows - 1) / kOwnRows;
  }
  MMLOCALATTN_HOST_DEVICE static int tiles_x(const Slide<T>& slide) {
    return (slide.width + kOwnCols - 1) / kOwnCols;
  }
  static int64_t tiles(const Slide<T>& slide) {
    return slide.batch * slide.heads * tiles_y(slide) * tiles_x(slide);
  }

  __device__ bool inside(int row, int col) const {
    return static_cast<unsigned>(y + row) < static_cast<unsigned>(slide.height) &&
           static_cast<unsigned>(x + col) < static_cast<unsigned>(slide.width);
  }
  __device__ bool owns(int row, int col) const {
    return static_cast<unsigned>(row - kMargin) < static_cast<unsigned>(kOwnRows) &&
           static_cast<unsigned>(col - kMargin) < static_cast<unsigned>(kOwnCols) &&
           inside(row, col);
  }
  // Positions of this thread.
  __device__ static int row(int position) { return threadIdx.x / kCols + position * kRowStep; }
  __device__ static int col() { return threadIdx.x % kCols; }

  template <typename U>
  __device__ U* at(const SlideMap<U>& map, int row, int col) const {
    return map.at(n, head, y + row, x + col);
  }

  // Channels [channel, channel + kChannels) of a rectangle around the tile to shared memory, planes
  // of `plane` numbers; 0 outside the map and past the last channel.
  template <int kChannels, int kAround>
  __device__ void load(const SlideMap<const T>& map, int channel, accum_t* shared,
                       int plane) const {
    constexpr int kLoadCols = kCols + 2 * kAround, kLoadRows = kRows + 2 * kAround;
    for (int i = threadIdx.x; i < kLoadRows * kLoadCols * kChannels; i += kThreads) {
      const int c = i % kChannels, place = i / kChannels;
      const int row = place / kLoadCols - kAround, col = place % kLoadCols - kAround;
      const bool valid = inside(row, col) && channel + c < slide.head_dim;
      shared[c * plane + place] =
          valid ? static_cast<accum_t>(at(map, row, col)[channel + c]) : accum_t(0);
    }
  }

  // Channels of the own positions back from shared memory, planes of kOwnPlane numbers.
  template <int kChannels>
  __device__ void store(const accum_t* shared, accum_t factor, int channel,
                        const SlideMap<T>& map) const {
    for (int i = threadIdx.x; i < kOwnRows * kOwnCols * kChannels; i += kThreads) {
      const int c = i % kChannels, place = i / kChannels;
      const int row = place / kOwnCols + kMargin, col = place % kOwnCols + kMargin;
      if (inside(row, col) && channel + c < slide.head_dim) {
        at(map, row, col)[channel + c] =
            static_cast<T>(factor * shared[c * kOwnPlane + row * kCols + col]);
      }
    }
  }

  // Number of the numbers w of channel c and tap j.
  __device__ const accum_t* table(int c, int j) const {
    return slide.table + (static_cast<int64_t>(c) * (kTaps + 1) + j) * kPadded;
  }

  // sum[.][i] = factor * (sum_cj own_c partner_c(x + j) w_cij + sum_c own_c b_ci) for the positions
  // of this thread, and the sum of own_c. All threads of the block must call it.
  template <int kChannels>
  __device__ void multiply_copies(const SlideMap<const T>& own, accum_t factor,
                                  const SlideMap<const T>& partner, accum_t* shared,
                                  accum_t (&sum)[kPositions][kTaps],
                                  accum_t (&channels)[kPositions]) const {
#pragma unroll
    for (int begin = 0; begin < kTaps; begin += kMostSums) {
#pragma unroll
      for (int p = 0; p < kPositions; ++p) {
        channels[p] = 0;
#pragma unroll
        for (int i = begin; i < kTaps && i < begin + kMostSums; ++i) sum[p][i] = 0;
      }
      for (int channel = 0; channel < slide.head_dim; channel += kChannels) {
        sync_block();
        load<kChannels, kRadius>(partner, channel, shared, kPlane);
        sync_block();
        for (int c = 0; c < kChannels && channel + c < slide.head_dim; ++c) {
          accum_t mine[kPositions];
#pragma unroll
          for (int p = 0; p < kPositions; ++p) {
            mine[p] = inside(row(p), col())
                          ? factor * static_cast<accum_t>(at(own, row(p), col())[channel + c])
                          : accum_t(0);
            channels[p] += mine[p];
          }
#pragma unroll 1
          for (int j = 0; j <= kTaps; ++j) {
            accum_t product[kPositions];
            const accum_t* tap = shared + c * kPlane + (j / kKernel) * kPitch + j % kKernel + col();
#pragma unroll
            for (int p = 0; p < kPositions; ++p) {
              product[p] = j < kTaps ? mine[p] * tap[row(p) * kPitch] : mine[p];
            }
            add_products(product, table(channel + c, j), begin, sum);
          }
        }
      }
    }
  }

  // sum[.][i] += product[.] * w_i for a block of copies.
  __device__ static void add_products(const accum_t (&product)[kPositions], const accum_t* weights,
                                      int begin, accum_t (&sum)[kPositions][kTaps]) {
#pragma unroll
    for (int first = begin; first < kTaps && first < begin + kMostSums; first += 4) {
      const auto four = *reinterpret_cast<const WeightQuad<accum_t>*>(weights + first);
#pragma unroll
      for (int i = 0; i < 4 && first + i < kTaps; ++i) {
#pragma unroll
        for (int p = 0; p < kPositions; ++p) sum[p][first + i] += product[p] * four.of[i];
      }
    }
  }

  // sum[.] = sum_i factor[.][i] * w_i
  __device__ static void mix_copies(const accum_t (&factor)[kPositions][kTaps],
                                    const accum_t* weights, accum_t (&sum)[kPositions]) {
#pragma unroll
    for (int p = 0; p < kPositions; ++p) sum[p] = 0;
#pragma unroll
    for (int first = 0; first < kTaps; first += 4) {
      const auto four = *reinterpret_cast<const WeightQuad<accum_t>*>(weights + first);
#pragma unroll
      for (int i = 0; i < 4 && first + i < kTaps; ++i) {
#pragma unroll
        for (int p = 0; p < kPositions; ++p) sum[p] += factor[p][first + i] * four.of[i];
      }
    }
  }
};

// One call of the operator, its tensors as the caller has them. Undefined biases are none.
struct SlideCall {
  at::Tensor query, key, value, weight, bias, position_bias;
  double scale;

  int64_t taps() const { return weight.size(1); }
  at::TensorOptions accumulate() const {
    return query.options().dtype(at::toOpMathType(query.scalar_type()));
  }
};

// The public function checks its arguments; this only keeps direct calls from corrupting memory.
inline void check(const SlideCall& call) {
  const at::Tensor& query = call.query;
  TORCH_CHECK(query.dim() == 5, "expected (B, H, W, num_heads, head_dim), got ", query.sizes());
  for (const at::Tensor& other : {call.key, call.value}) {
    check_like(other, query.sizes(), query);
    TORCH_CHECK(other.scalar_type() == query.scalar_type(),
                "query, key and value must have one dtype");
  }
  const int64_t dim = query.size(4), k = call.weight.size(-1);
  TORCH_CHECK(k == 3 || k == 5 || k == 7, "the kernel size must be 3, 5 or 7, got ", k);
  check_like(call.weight, {dim, k * k, k, k}, query);
  if (call.bias.defined()) {
    check_like(call.bias, {dim, k * k}, query);
  }
  if (call.position_bias.defined()) {
    check_like(call.position_bias, {query.size(3), k, k}, query);
  }
}

inline at::Tensor unit_channels(const at::Tensor& tensor) {
  return tensor.stride(4) == 1 ? tensor : tensor.contiguous();
}

template <typename T>
SlideMap<const T> slide_input(const at::Tensor& tensor) {
  return {tensor.const_data_ptr<T>(), tensor.stride(0), tensor.stride(1), tensor.stride(2),
          tensor.stride(3)};
}

template <typename T>
SlideMap<T> slide_result(const at::Tensor& tensor) {
  return {tensor.mutable_data_ptr<T>(), tensor.stride(0), tensor.stride(1), tensor.stride(2),
          tensor.stride(3)};
}

// The inputs as the kernels read them.
struct SlideInputs {
  at::Tensor query, key, value, table, position_bias;

  explicit SlideInputs(const SlideCall& call)
      : query(unit_channels(call.query)),
        key(unit_channels(call.key)),
        value(unit_channels(call.value)) {
    const auto options = call.accumulate();
    const int64_t dim = query.size(4), taps = call.taps();
    const at::Tensor weight = call.weight.to(options.dtype()).reshape({dim, taps, taps});
    const at::Tensor bias = call.bias.defined() ? call.bias.to(options.dtype()).unsqueeze(1)
                                                : at::zeros({dim, 1, taps}, options);
    const at::Tensor rows = at::cat({weight.transpose(1, 2), bias}, 1);
    table = at::constant_pad_nd(rows, {0, (taps + 3) / 4 * 4 - taps}).contiguous();
    position_bias = call.position_bias.defined()
                        ? call.position_bias.to(options.dtype()).contiguous()
                        : at::zeros({query.size(3), taps}, options);
  }

  template <typename T>
  Slide<T> describe(const SlideCall& call, const at::Tensor& logsumexp) const {
    using accum_t = at::opmath_type<T>;
    Slide<T> slide{};
    slide.height = query.size(1);
    slide.width = query.size(2);
    slide.heads = query.size(3);
    slide.head_dim = query.size(4);
    slide.batch = query.size(0);
    slide.scale = static_cast<accum_t>(call.scale);
    slide.query = slide_input<T>(query);
    slide.key = slide_input<T>(key);
    slide.value = slide_input<T>(value);
    slide.table = table.const_data_ptr<accum_t>();
    slide.position_bias = position_bias.const_data_ptr<accum_t>();
    slide.logsumexp = slide_result<accum_t>(logsumexp);
    return slide;
  }
};

// Calls body(T(), kernel) with the dtype and the kernel size as constants.
template <typename Body>
void dispatch_slide(const SlideCall& call, const Body& body) {
  const at::ScalarType type = call.query.scalar_type();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "slide_attention", [&] {
    switch (call.weight.size(3)) {
      case 3:
        return body(scalar_t(), std::integral_constant<int, 3>());
      case 5:
        return body(scalar_t(), std::integral_constant<int, 5>());
      default:
        return body(scalar_t(), std::integral_constant<int, 7>());
    }
  });
}

}  // namespace mmlocalattn
