// Kernels that test the emulator: tensor core fragments, and mistakes that it must report.
#include <map>
#include <stdexcept>
#include <string>

#include "cuda/intrinsics.cuh"

namespace mmlocalattn {
namespace {

__device__ int lane() { return threadIdx.x % kWarpSize; }

// d (16, 8) = a (16, 16) b (16, 8), the fragments in the words of the PTX manual.
template <typename half_t>
__global__ void mma_kernel(const float* a, const float* b, float* d) {
  const int group = lane() / 4, thread_in_group = lane() % 4;
  const auto a_at = [&](int i) {
    const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
    return a[row * 16 + thread_in_group * 2 + (i & 1) + (i < 4 ? 0 : 8)];
  };
  const auto b_at = [&](int i) {
    return b[(thread_in_group * 2 + (i & 1) + (i < 2 ? 0 : 8)) * 8 + group];
  };
  float c[4] = {};
  mma_16x8x16<half_t>(c,
                      {pack_pair<half_t>(a_at(0), a_at(1)), pack_pair<half_t>(a_at(2), a_at(3)),
                       pack_pair<half_t>(a_at(4), a_at(5)), pack_pair<half_t>(a_at(6), a_at(7))},
                      {pack_pair<half_t>(b_at(0), b_at(1)), pack_pair<half_t>(b_at(2), b_at(3))});
  for (int i = 0; i < 4; ++i) {
    d[(i < 2 ? group : group + 8) * 8 + thread_in_group * 2 + (i & 1)] = c[i];
  }
}

// The same with what load_matrix_x4 loads: on a GPU it loads what the product takes.
template <typename half_t>
__global__ void load_matrix_kernel(const float* a, const float* b, float* d) {
  __shared__ __align__(16) half_t shared_a[16 * 16];
  __shared__ __align__(16) half_t shared_b[16 * 16];
  for (int i = lane(); i < 256; i += kWarpSize) {
    shared_a[i] = a[i];
    shared_b[i] = i % 16 < 8 ? b[i / 16 * 8 + i % 16] : 0;
  }
  sync_warp();
  const int row = lane() % 16, col = lane() / 16 * 8;
  uint32_t a_fragment[4], b_fragments[4];
  load_matrix_x4(a_fragment, shared_a + row * 16 + col);
  load_matrix_x4_transposed(b_fragments, shared_b + row * 16 + col);
  float c[4] = {};
  mma_16x8x16<half_t>(c, a_fragment, {b_fragments[0], b_fragments[1]});
  for (int i = 0; i < 4; ++i) {
    d[(lane() / 4 + i / 2 * 8) * 8 + lane() % 4 * 2 + i % 2] = c[i];
  }
}

// The sum over the block by shuffles, votes and shared memory.
__global__ void sum_kernel(const float* in, const float*, float* out) {
  __shared__ float partial[2];
  float sum = in[threadIdx.x];
  for (int mask = 1; mask < kWarpSize; mask *= 2) {
    sum += shuffle_xor(sum, mask);
  }
  if (lane() == 0) {
    partial[threadIdx.x / kWarpSize] = sum;
  }
  sync_block();
  const float last = shuffle(in[threadIdx.x], kWarpSize - 1);
  if (threadIdx.x == 0 || threadIdx.x == kWarpSize) {
    out[threadIdx.x / kWarpSize] = partial[0] + partial[1] + last;
  }
  const bool is_first = any(threadIdx.x == 0);
  if (lane() == 0) {
    out[2 + threadIdx.x / kWarpSize] = is_first;
  }
}

// Copies in two stages, the second of them half valid.
__global__ void copy_kernel(const float* in, const float*, float* out) {
  float* shared = dynamic_shared<float>();
  copy_async_16(shared + 4 * lane(), in + 4 * lane(), true);
  copy_async_commit();
  copy_async_16(shared + 128 + 4 * lane(), in + 128 + 4 * lane(), lane() < 16);
  copy_async_commit();
  copy_async_wait<1>();
  for (int i = 0; i < 4; ++i) {
    out[4 * lane() + i] = shared[4 * lane() + i];
  }
  copy_async_wait<0>();
  for (int i = 0; i < 4; ++i) {
    out[128 + 4 * lane() + i] = shared[128 + 4 * lane() + i];
  }
}

__global__ void no_wait_kernel(const float* in, const float*, float* out) {
  float* shared = dynamic_shared<float>();
  copy_async_16(shared + 4 * lane(), in + 4 * lane(), true);
  copy_async_commit();
  copy_async_wait<1>();
  out[lane()] = shared[4 * lane()];
}

// The lanes wait for their own copies and read those of others.
__global__ void no_barrier_after_wait_kernel(const float* in, const float*, float* out) {
  float* shared = dynamic_shared<float>();
  copy_async_16(shared + 4 * lane(), in + 4 * lane(), true);
  copy_async_commit();
  copy_async_wait<0>();
  out[lane()] = shared[4 * (lane() ^ 1)];
}

__global__ void no_block_barrier_kernel(const float* in, const float*, float* out) {
  __shared__ float shared[64];
  shared[threadIdx.x] = in[threadIdx.x];
  sync_warp();
  out[threadIdx.x] = shared[63 - threadIdx.x];
}

__global__ void no_warp_barrier_kernel(const float* in, const float*, float* out) {
  __shared__ float shared[64];
  shared[threadIdx.x] = in[threadIdx.x];
  const float own = shuffle(in[threadIdx.x], lane());  // no barrier for memory
  out[threadIdx.x] = own + shared[threadIdx.x ^ 1];
}

// The next round overwrites what others still read.
__global__ void no_barrier_between_rounds_kernel(const float* in, const float*, float* out) {
  __shared__ float shared[64];
  for (int round = 0; round < 2; ++round) {
    shared[threadIdx.x] = in[threadIdx.x];
    sync_block();
    out[threadIdx.x] = shared[63 - threadIdx.x];
  }
}

__global__ void barriers_kernel(const float* in, const float*, float* out) {
  __shared__ float shared[64];
  for (int round = 0; round < 2; ++round) {
    shared[threadIdx.x] = in[threadIdx.x];
    sync_warp();
    out[threadIdx.x] = shared[threadIdx.x ^ 1];
    sync_block();
    out[threadIdx.x] += shared[63 - threadIdx.x];
    sync_block();
  }
}

__global__ void blocks_write_one_address_kernel(const float* in, const float*, float* out) {
  if (threadIdx.x == 0) {
    out[0] = in[0];
  }
}

__global__ void diverging_shuffle_kernel(const float* in, const float*, float* out) {
  if (lane() < 16) {
    out[lane()] = shuffle_xor(in[lane()], 1);
  } else {
    sync_block();
  }
}

// Lanes take two branches; both shuffle, but not together.
__global__ void shuffles_of_two_branches_kernel(const float* in, const float*, float* out) {
  if (lane() < 16) {
    out[lane()] = shuffle_xor(in[lane()], 1);
  } else {
    out[lane()] = 2 * shuffle_xor(in[lane()], 1);
  }
}

// The same through functions that are not inlined.
__attribute__((noinline)) float neighbor(float value) { return shuffle_xor(value, 1); }
__global__ void calls_of_two_branches_kernel(const float* in, const float*, float* out) {
  if (lane() < 16) {
    out[lane()] = neighbor(in[lane()]);
  } else {
    out[lane()] = 2 * neighbor(in[lane()]);
  }
}

__global__ void barriers_of_two_branches_kernel(const float* in, const float*, float* out) {
  if (lane() < 16) {
    sync_block();
    out[lane()] = in[lane()];
  } else {
    sync_block();
    out[lane()] = 2 * in[lane()];
  }
}

__global__ void early_exit_kernel(const float* in, const float*, float* out) {
  if (lane() != 3) {
    out[lane()] = any(in[lane()] > 0);
  }
}

__global__ void misaligned_copy_kernel(const float* in, const float*, float*) {
  copy_async_16(dynamic_shared<float>() + 1, in, true);
}

__global__ void copy_to_global_kernel(const float* in, const float*, float* out) {
  copy_async_16(out + 4 * lane(), in + 4 * lane(), true);
}

__global__ void past_the_end_kernel(const float* in, const float*, float*) {
  dynamic_shared<float>()[256 + lane()] = in[lane()];
}

using Kernel = void (*)(const float*, const float*, float*);

const std::map<std::string, Kernel> kKernels = {
    {"mma half", mma_kernel<c10::Half>},
    {"mma bfloat16", mma_kernel<c10::BFloat16>},
    {"load_matrix half", load_matrix_kernel<c10::Half>},
    {"load_matrix bfloat16", load_matrix_kernel<c10::BFloat16>},
    {"sum", sum_kernel},
    {"copy", copy_kernel},
    {"no_wait", no_wait_kernel},
    {"no_barrier_after_wait", no_barrier_after_wait_kernel},
    {"no_block_barrier", no_block_barrier_kernel},
    {"no_warp_barrier", no_warp_barrier_kernel},
    {"no_barrier_between_rounds", no_barrier_between_rounds_kernel},
    {"barriers", barriers_kernel},
    {"blocks_write_one_address", blocks_write_one_address_kernel},
    {"diverging_shuffle", diverging_shuffle_kernel},
    {"shuffles_of_two_branches", shuffles_of_two_branches_kernel},
    {"calls_of_two_branches", calls_of_two_branches_kernel},
    {"barriers_of_two_branches", barriers_of_two_branches_kernel},
    {"early_exit", early_exit_kernel},
    {"misaligned_copy", misaligned_copy_kernel},
    {"copy_to_global", copy_to_global_kernel},
    {"past_the_end", past_the_end_kernel},
};

}  // namespace
}  // namespace mmlocalattn

// Runs a kernel with 1 KiB of dynamic shared memory; returns the error, empty if there was none.
extern "C" const char* emulation_probe(const char* name, int64_t blocks, int threads,
                                       const float* a, const float* b, float* out) {
  static std::string error;
  error.clear();
  try {
    mmlocalattn::launch(mmlocalattn::kKernels.at(name), blocks, threads, 1024, a, b, out);
  } catch (const std::exception& exception) {
    error = exception.what();
  }
  return error.c_str();
}
