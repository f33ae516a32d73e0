// How the kernels of slide attention split their work, and what forward and backward share.
//
// A block takes a tile of positions of one head, a thread some of a column, whose p (and ds) it
// holds in registers. Keys and values pass through shared memory, some channels of a tile and of
// what surrounds it at a time, as vectors of kQuad channels; all threads read the same w at once,
// and each w serves all positions of a thread. Backward tiles overlap by the reach of a window, and
// a thread adds what its position gives to the taps, one tap after the other with a barrier between
// them: no atomics, every sum has a fixed order. A block of backward takes some tiles one after the
// other and leaves one part of dw.
#pragma once

#include <type_traits>

#include "cuda/arithmetic.cuh"
#include "problem.cuh"

namespace mmlocalattn::cuda::slide {

// Calls body(std::integral_constant<int, kernel_size>()).
template <typename Body>
auto with_kernel_size(int64_t kernel_size, const Body& body) {
  switch (kernel_size) {
    case 3:
      return body(std::integral_constant<int, 3>());
    case 5:
      return body(std::integral_constant<int, 5>());
    default:
      return body(std::integral_constant<int, 7>());
  }
}

template <typename T>
struct alignas(kCopyBytes) WeightQuad {
  T of[4];
};

// The positions of a block: kRows x kCols, a thread having kPositions of a column, and those that
// their windows see. Own positions are those that no window of the others reaches beyond: all of
// them in forward, where kMargin is 0.
template <typename T, int kKernel_, int kCols_, int kThreads_, int kPositions_, int kMargin_>
struct TileBase {
  using accum_t = at::opmath_type<T>;
  static constexpr int kQuad = kCopyBytes / sizeof(accum_t);  // channels of a load of shared memory
  using Quad = Channels<accum_t, kQuad>;
  static constexpr int kKernel = kKernel_, kTaps = kKernel * kKernel, kRadius = kKernel / 2;
  static constexpr int kCols = kCols_, kThreads = kThreads_, kMargin = kMargin_;
  static constexpr int kPositions = kPositions_;
  static constexpr int kRowStep = kThreads / kCols, kRows = kPositions * kRowStep;
  static constexpr int kSize = kRows * kCols;
  static constexpr int kOwnRows = kRows - 2 * kMargin, kOwnCols = kCols - 2 * kMargin;
  static constexpr int kPitch = kCols + 2 * kRadius;
  // Quads of a plane, so that those of neighboring planes are in different banks.
  static constexpr int kPlane = ((kRows + 2 * kRadius) * kPitch + 7) / 8 * 8 + 4;
  static constexpr int kOwnPlane = kSize + 4;
  static constexpr int kPadded = (kTaps + 3) / 4 * 4;     // of the table
  static constexpr int kUnrolled = kKernel == 3 ? 3 : 1;  // columns of a window

  const Problem<T>& problem;
  int64_t n;
  int head, y, x;  // y, x: of the first position, which can be outside the map

  __device__ TileBase(const Problem<T>& problem, int64_t tile) : problem(problem) {
    head = tile % problem.heads;
    tile /= problem.heads;
    const int across = tiles_x(problem), down = tiles_y(problem);
    x = static_cast<int>(tile % across) * kOwnCols - kMargin;
    tile /= across;
    y = static_cast<int>(tile % down) * kOwnRows - kMargin;
    n = tile / down;
  }

  MMLOCALATTN_HOST_DEVICE static int tiles_y(const Problem<T>& problem) {
    return ceil_div(problem.height, kOwnRows);
  }
  MMLOCALATTN_HOST_DEVICE static int tiles_x(const Problem<T>& problem) {
    return ceil_div(problem.width, kOwnCols);
  }
  static int64_t tiles(const Problem<T>& problem) {
    return problem.batch * problem.heads * tiles_y(problem) * tiles_x(problem);
  }

  __device__ bool inside(int row, int col) const {
    return static_cast<unsigned>(y + row) < static_cast<unsigned>(problem.height) &&
           static_cast<unsigned>(x + col) < static_cast<unsigned>(problem.width);
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
  __device__ U* at(const Map<U>& map, int row, int col) const {
    return map.at(n, y + row, x + col, head);
  }

  // Channels [channel, channel + kChannels) of a rectangle around the tile, times `factor`, to
  // shared memory, planes of kQuad channels of `plane` positions; 0 outside the map and past the
  // last channel.
  template <int kChannels, int kAround>
  __device__ void load(const Map<const T>& map, int channel, accum_t factor, Quad* shared,
                       int plane) const {
    constexpr int kMost = kCopyBytes / sizeof(T), kCount = kChannels < kMost ? kChannels : kMost;
    constexpr int kLoadCols = kCols + 2 * kAround, kLoadRows = kRows + 2 * kAround;
    constexpr int kChunks = kChannels / kCount;
    const T* const origin = map.origin(n, head);
    for (int i = threadIdx.x; i < kLoadRows * kLoadCols * kChunks; i += kThreads) {
      const int chunk = i % kChunks, place = i / kChunks;
      const int row = place / kLoadCols - kAround, col = place % kLoadCols - kAround;
      accum_t channels[kCount] = {};
      if (inside(row, col)) {
        read_channels(origin + map.offset(y + row, x + col), map.has_chunks,
                      channel + chunk * kCount, problem.head_dim, channels);
      }
#pragma unroll
      for (int first = 0; first < kCount; first += kQuad) {
        Quad quad;
#pragma unroll
        for (int c = 0; c < kQuad; ++c) quad.of[c] = factor * channels[first + c];
        shared[(chunk * kCount + first) / kQuad * plane + place] = quad;
      }
    }
  }

  // Number of the numbers w of channel c and tap j.
  __device__ const accum_t* table(int c, int j) const {
    return problem.table + (c * (kTaps + 1) + j) * kPadded;
  }

  // sum[.][i] = factor * (sum_cj own_c partner_c(x + j) w_cij + sum_c own_c b_ci) for the positions
  // of this thread, and the sum of own_c. All threads of the block must call it.
  template <int kChannels>
  __device__ void multiply_copies(const Map<const T>& own, accum_t factor,
                                  const Map<const T>& partner, Quad* shared,
                                  accum_t (&sum)[kPositions][kTaps],
                                  accum_t (&channels)[kPositions]) const {
    constexpr int kMost = kCopyBytes / sizeof(T), kCount = kChannels < kMost ? kChannels : kMost;
#pragma unroll
    for (int p = 0; p < kPositions; ++p) {
      channels[p] = 0;
#pragma unroll
      for (int i = 0; i < kTaps; ++i) sum[p][i] = 0;
    }
    for (int channel = 0; channel < problem.head_dim; channel += kChannels) {
      sync_block();
      load<kChannels, kRadius>(partner, channel, 1, shared, kPlane);
      sync_block();
#pragma unroll 1
      for (int first = 0; first < kChannels && channel + first < problem.head_dim;
           first += kCount) {
        accum_t mine[kPositions][kCount] = {};
#pragma unroll
        for (int p = 0; p < kPositions; ++p) {
          if (inside(row(p), col())) {
            read_channels(at(own, row(p), col()), own.has_chunks, channel + first, problem.head_dim,
                          mine[p]);
          }
#pragma unroll
          for (int c = 0; c < kCount; ++c) {
            mine[p][c] *= factor;
            channels[p] += mine[p][c];
          }
        }
#pragma unroll
        for (int c = 0; c < kCount; c += kQuad) {
          multiply_quad(mine, c, table(channel + first + c, 0),
                        shared + (first + c) / kQuad * kPlane, sum);
        }
      }
    }
  }

  // The same for kQuad channels from own channel c on, whose numbers begin at `weights`.
  template <int kCount>
  __device__ static void multiply_quad(const accum_t (&mine)[kPositions][kCount], int first,
                                       const accum_t* weights, const Quad* plane,
                                       accum_t (&sum)[kPositions][kTaps]) {
    constexpr int kRowOfTable = (kTaps + 1) * kPadded;
    const Quad* const tap = plane + row(0) * kPitch + col();
#pragma unroll 1
    for (int a = 0; a < kKernel; ++a) {
#pragma unroll(kUnrolled)
      for (int b = 0; b < kKernel; ++b) {
        Quad partner[kPositions];
#pragma unroll
        for (int p = 0; p < kPositions; ++p) {
          partner[p] = tap[(p * kRowStep + a) * kPitch + b];
        }
#pragma unroll
        for (int c = 0; c < kQuad; ++c) {
          accum_t product[kPositions];
#pragma unroll
          for (int p = 0; p < kPositions; ++p) product[p] = mine[p][first + c] * partner[p].of[c];
          add_products(product, weights + c * kRowOfTable + (a * kKernel + b) * kPadded, sum);
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kQuad; ++c) {
      accum_t product[kPositions];
#pragma unroll
      for (int p = 0; p < kPositions; ++p) product[p] = mine[p][first + c];
      add_products(product, weights + c * kRowOfTable + kTaps * kPadded, sum);
    }
  }

  // sum[.][i] += product[.] * w_i
  __device__ static void add_products(const accum_t (&product)[kPositions], const accum_t* weights,
                                      accum_t (&sum)[kPositions][kTaps]) {
#pragma unroll
    for (int first = 0; first < kTaps; first += 4) {
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

}  // namespace mmlocalattn::cuda::slide
