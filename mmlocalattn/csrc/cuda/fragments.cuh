// Products of 16 own vectors of a warp with 16 partner vectors in shared memory, in the layout of
// the tensor core instruction mma.m16n8k16 for all types.
//
// A 16 x 16 matrix is float[2][4]. The lane has two rows, slots 0 and 1: own vectors lane / 4 and
// lane / 4 + 8. Entry [half][2 slot + i] is column partner_column(half, i). A 16 x kDim matrix is
// float[kDim / 8][4]: entry [part][2 slot + i] is channel Own::channel(part) + i.
#pragma once

#include "arithmetic.cuh"
#include "tensors.cuh"

namespace mmlocalattn::cuda {

constexpr int kTokens = 16;  // own vectors of a warp, and partners of one product

// Own vector of a slot of this lane.
__device__ __forceinline__ int own_row(int slot) { return lane() / 4 + 8 * slot; }

__device__ __forceinline__ int partner_column(int half, int i) {
  return 8 * half + lane() % 4 * 2 + i;
}

// Sum and maximum over the four lanes that share a row.
__device__ __forceinline__ float row_sum(float value) {
  value += shuffle_xor(value, 1);
  return value + shuffle_xor(value, 2);
}
__device__ __forceinline__ float row_max(float value) {
  value = fmaxf(value, shuffle_xor(value, 1));
  return fmaxf(value, shuffle_xor(value, 2));
}

struct alignas(kCopyBytes) Float4 {
  float at[4];
};

// In shared memory every partner has a vector of two tensors and a Float4 of statistics, whose 16
// bytes also spread partners over the banks. These are the vectors of one of the tensors, of up to
// 16 partners in a row; those past the last stand for the last.
template <typename T, int kDim>
struct Partners {
  static constexpr int kPitch = 2 * kDim + kCopyBytes / sizeof(T);

  const T* data;
  int last;

  __device__ const T* operator[](int i) const { return data + (i < last ? i : last) * kPitch; }
};

// The own vectors of a warp, times `sign`, which is -1, 0 or 1: 16 bit. If kIsShared they are in
// shared memory, which saves registers.
template <typename T, int kDim, bool kIsShared = false>
struct Own {
  static constexpr int kPitch = kDim + kCopyBytes / sizeof(T);
  static constexpr int kSharedBytes = kIsShared ? kTokens * kPitch * sizeof(T) : 0;  // per warp

  uint32_t fragments[kDim / 16][4];
  const T* matrix;  // the lane's row of the matrices that load_matrix_x4 loads at once

  __device__ static int channel(int part) { return 8 * part + lane() % 4 * 2; }

  // vector(i) is the address of own vector i.
  template <typename Vector>
  __device__ Own(const Vector& vector, float sign, T* shared)
      : matrix(shared + lane() % 16 * kPitch + lane() / 16 * 8) {
    const uint32_t keep = sign == 0 ? 0 : ~0u, flip = sign < 0 ? 0x80008000u : 0;
#pragma unroll
    for (int slot = 0; slot < 2; ++slot) {
      const T* channels = vector(own_row(slot));
#pragma unroll
      for (int part = 0; part < kDim / 8; ++part) {
        const auto loaded = *reinterpret_cast<const uint32_t*>(channels + channel(part));
        const uint32_t pair = (loaded & keep) ^ flip;
        if constexpr (kIsShared) {
          *reinterpret_cast<uint32_t*>(shared + own_row(slot) * kPitch + channel(part)) = pair;
        } else {
          fragments[part / 2][part % 2 * 2 + slot] = pair;
        }
      }
    }
    if constexpr (kIsShared) {
      sync_warp();
    }
  }

  // result[i][j] += <own i, partner j>
  __device__ void dot(float (&result)[2][4], const Partners<T, kDim>& partners) const {
    // Matrices: partners 0-7 and 8-15, of each eight channels and the next eight.
    const T* row = partners[lane() % 8 + lane() / 16 * 8] + lane() / 8 % 2 * 8;
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t matrices[4];
      load_matrix_x4(matrices, row + 16 * step);
      if constexpr (kIsShared) {
        uint32_t own[4];
        load_matrix_x4(own, matrix + 16 * step);
        multiply(result, own, matrices);
      } else {
        multiply(result, fragments[step], matrices);
      }
    }
  }

  // sum[i] += sum over j of weight[i][j] partner j
  __device__ static void add(float (&sum)[kDim / 8][4], const float (&weight)[2][4],
                             const Partners<T, kDim>& partners) {
    // Matrices: eight channels and the next eight, of each partners 0-7 and 8-15.
    const T* row = partners[lane() % 16] + lane() / 16 * 8;
    const uint32_t weights[4] = {
        pack_pair<T>(weight[0][0], weight[0][1]), pack_pair<T>(weight[0][2], weight[0][3]),
        pack_pair<T>(weight[1][0], weight[1][1]), pack_pair<T>(weight[1][2], weight[1][3])};
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t matrices[4];
      load_matrix_x4_transposed(matrices, row + 16 * step);
      mma_16x8x16<T>(sum[2 * step], weights, {matrices[0], matrices[1]});
      mma_16x8x16<T>(sum[2 * step + 1], weights, {matrices[2], matrices[3]});
    }
  }

 private:
  __device__ static void multiply(float (&result)[2][4], const uint32_t (&own)[4],
                                  const uint32_t (&matrices)[4]) {
    mma_16x8x16<T>(result[0], own, {matrices[0], matrices[1]});
    mma_16x8x16<T>(result[1], own, {matrices[2], matrices[3]});
  }
};

// fp32: exact products, the own vectors in shared memory.
template <int kDim, bool kIsShared>
struct Own<float, kDim, kIsShared> {
  static constexpr int kPitch = kDim + kCopyBytes / sizeof(float);
  static constexpr int kSharedBytes = kTokens * kPitch * sizeof(float);

  const float* vectors;

  // A lane has four channels in a row, so that it can load them at once.
  __device__ static int channel(int part) { return part / 2 * 16 + lane() % 4 * 4 + part % 2 * 2; }

  template <typename Vector>
  __device__ Own(const Vector& vector, float sign, float* shared) : vectors(shared) {
    constexpr int kLoads = kDim / 4;
    for (int i = lane(); i < kTokens * kLoads; i += kWarpSize) {
      const int row = i / kLoads, first = i % kLoads * 4;
      Float4 channels = load(vector(row) + first);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        channels.at[c] *= sign;
      }
      *reinterpret_cast<Float4*>(shared + row * kPitch + first) = channels;
    }
    sync_warp();
  }

  __device__ void dot(float (&result)[2][4], const Partners<float, kDim>& partners) const {
    const float* row[2] = {vectors + own_row(0) * kPitch, vectors + own_row(1) * kPitch};
    const float* column[2][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        column[half][i] = partners[partner_column(half, i)];
      }
    }
#pragma unroll 4
    for (int first = 0; first < kDim; first += 4) {
      const Float4 own[2] = {load(row[0] + first), load(row[1] + first)};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const Float4 partner = load(column[half][i] + first);
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            result[half][i] += own[0].at[c] * partner.at[c];
            result[half][2 + i] += own[1].at[c] * partner.at[c];
          }
        }
      }
    }
  }

  __device__ static void add(float (&sum)[kDim / 8][4], const float (&weight)[2][4],
                             const Partners<float, kDim>& partners) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // A pair of partners, whose weights one of the four lanes of a row has. Not unrolled: that
      // would cost registers.
#pragma unroll 1
      for (int pair = 0; pair < 4; ++pair) {
        const int holder = lane() / 4 * 4 + pair;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float weights[2] = {shuffle(weight[half][i], holder),
                                    shuffle(weight[half][2 + i], holder)};
          add_one(sum, weights, partners[8 * half + 2 * pair + i]);
        }
      }
    }
  }

 private:
  __device__ static void add_one(float (&sum)[kDim / 8][4], const float (&weights)[2],
                                 const float* partner) {
#pragma unroll
    for (int part = 0; part < kDim / 8; part += 2) {
      const Float4 channels = load(partner + channel(part));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum[part + i / 2][i % 2] += weights[0] * channels.at[i];
        sum[part + i / 2][2 + i % 2] += weights[1] * channels.at[i];
      }
    }
  }

  __device__ static Float4 load(const float* address) {
    return *reinterpret_cast<const Float4*>(address);
  }
};

}  // namespace mmlocalattn::cuda
