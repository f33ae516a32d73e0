// Vectors of a map to and from registers and planar tiles; scratch memory.
//
// In a planar tile the lanes of a SIMD vector are neighboring positions of one channel.
#if defined(MMLOCALATTN_SIMD_LAYOUT_H) == defined(MMLOCALATTN_TOGGLE)
#ifdef MMLOCALATTN_SIMD_LAYOUT_H
#undef MMLOCALATTN_SIMD_LAYOUT_H
#else
#define MMLOCALATTN_SIMD_LAYOUT_H
#endif

#include "cpu/simd/vector.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

MMLOCALATTN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
MMLOCALATTN_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
MMLOCALATTN_INLINE int64_t clamp(int64_t x, int64_t low, int64_t high) {
  return larger(low, smaller(x, high));
}
MMLOCALATTN_INLINE int64_t round_up(int64_t x, int64_t step) {
  return (x + step - 1) / step * step;
}

// Calls body with value as a constant, 1 <= value <= kMost.
template <int kMost, typename Body>
MMLOCALATTN_INLINE void with_constant(int64_t value, const Body& body) {
  if constexpr (kMost > 1) {
    if (value < kMost) return with_constant<kMost - 1>(value, body);
  }
  body(std::integral_constant<int, kMost>());
}

// Hands out parts of the scratch memory, zeros if `clear`; without memory it only counts.
template <typename T>
struct Arena {
  T* memory;
  bool clear = false;
  int64_t used = 0;

  T* take(int64_t size) {
    constexpr int64_t kLine = kVectorBytes / static_cast<int64_t>(sizeof(T));
    T* part = memory ? memory + used : nullptr;
    used += round_up(size, kLine);
#ifdef __SANITIZE_ADDRESS__  // no part may reach into the next
    used += kLine;
    if (part) {
      __asan_unpoison_memory_region(part, size * sizeof(T));  // a copy may have been here
      __asan_poison_memory_region(part + size, (memory + used - part - size) * sizeof(T));
    }
#endif
    if (part && clear) __builtin_memset(part, 0, size * sizeof(T));
    return part;
  }
};

template <int N>
struct Bits {
  typedef uint16_t narrow __attribute__((vector_size(N * sizeof(uint16_t))));
  typedef uint32_t wide __attribute__((vector_size(N * sizeof(uint32_t))));
};

// N values in the compute type.
template <int N>
MMLOCALATTN_INLINE Vec<float, N> load_values(const float* p) {
  return load<N>(p);
}
template <int N>
MMLOCALATTN_INLINE Vec<double, N> load_values(const double* p) {
  return load<N>(p);
}
template <int N>
MMLOCALATTN_INLINE Vec<float, N> load_values(const BFloat16* p) {
  typename Bits<N>::narrow bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return (Vec<float, N>)(__builtin_convertvector(bits, typename Bits<N>::wide) << 16);
}

template <int N>
MMLOCALATTN_INLINE void store_values(float* p, Vec<float, N> x) {
  store(p, x);
}
template <int N>
MMLOCALATTN_INLINE void store_values(double* p, Vec<double, N> x) {
  store(p, x);
}
// Rounds to nearest, ties to even.
template <int N>
MMLOCALATTN_INLINE void store_values(BFloat16* p, Vec<float, N> x) {
  using Wide = typename Bits<N>::wide;
  Wide wide = (Wide)x;
  wide = x == x ? (wide + 0x7fff + (wide >> 16 & 1)) >> 16 : Wide{} + 0x7fc0;
  const auto bits = __builtin_convertvector(wide, typename Bits<N>::narrow);
  __builtin_memcpy(p, &bits, sizeof(bits));
}

// Up to N values, the rest 0.
template <int N, typename In>
MMLOCALATTN_INLINE Vec<Compute<In>, N> load_some(const In* p, int64_t count) {
  if (__builtin_expect(count >= N, 1)) return load_values<N>(p);
  In values[N] = {};
  if (count == N / 2) {
    __builtin_memcpy(values, p, N / 2 * sizeof(In));
  } else {
    for (int64_t i = 0; i < count; ++i) values[i] = p[i];
  }
  return load_values<N>(values);
}

template <int N, typename In>
MMLOCALATTN_INLINE void store_some(In* p, Vec<Compute<In>, N> x, int64_t count) {
  if (__builtin_expect(count >= N, 1)) return store_values<N>(p, x);
  In values[N];
  store_values<N>(values, x);
  if (count == N / 2) {
    __builtin_memcpy(p, values, N / 2 * sizeof(In));
  } else {
    for (int64_t i = 0; i < count; ++i) p[i] = values[i];
  }
}

// A map to read that was meant to be written.
template <typename T>
MMLOCALATTN_INLINE Map<const T> as_input(const Map<T>& map) {
  return {{map.grid.data, map.grid.row, map.grid.column, map.grid.columns}, map.factor};
}

// Channels d, d + 1, ... of a vector of a map.
template <int N, typename In>
MMLOCALATTN_INLINE Vec<Compute<In>, N> read(const Map<const In>& map, int64_t y, int64_t x,
                                            int64_t d, int64_t dim) {
  return load_some<N>(map.grid.at(y, x) + d, dim - d) * map.factor;
}

template <int N, typename Out>
MMLOCALATTN_INLINE void write(const Map<Out>& map, int64_t y, int64_t x, int64_t d, int64_t dim,
                              Vec<Compute<Out>, N> values) {
  Out* to = map.grid.at(y, x) + d;
  values *= map.factor;
  if (map.add) values += load_some<N>(to, dim - d);
  store_some<N>(to, values, dim - d);
}

// Brings a row of vectors of a map, used some hundred cycles later, to L2. Positions are far apart
// where there are many heads or a dilation, which the hardware does not foresee.
template <bool kWrite = false, typename In>
MMLOCALATTN_INLINE void prefetch(const Map<In>& map, int64_t y, int64_t x, int64_t count,
                                 int64_t dim) {
  constexpr int64_t kLine = kVectorBytes / static_cast<int64_t>(sizeof(In));
  for (int64_t i = 0; i < count; ++i) {
    const In* vector = map.grid.at(y, x + i);
    for (int64_t d = 0; d < dim; d += kLine) __builtin_prefetch(vector + d, kWrite, /*locality=*/2);
  }
}

// Channels d, d + 1, ... of N columns, one a vector; those past `last` repeat it.
template <int N, bool kWhole, typename In>
MMLOCALATTN_INLINE void read_tile(const Map<const In>& map, int64_t y, int64_t x, int64_t last,
                                  int64_t d, int64_t dim, Vec<Compute<In>, N> (&tile)[N]) {
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
    const In* p = map.grid.at(y, smaller(x + i, last)) + d;
    tile[i] = (kWhole ? load_values<N>(p) : load_some<N>(p, dim - d)) * map.factor;
  }
}

// N columns from x on, of which those up to `last` are needed, to planes of `step` values:
// `planes` of them, 0 beyond `dim`. `d` is the first.
template <int N, typename In>
void pack(const Map<const In>& map, int64_t y, int64_t x, int64_t last, int64_t dim, int64_t planes,
          Compute<In>* out, int64_t step, int64_t d = 0) {
  for (; d < planes; d += N) {
    if constexpr (N > 4) {
      if (planes - d <= N / 2) {
        pack<N / 2>(map, y, x, last, dim, planes, out, step, d);
        pack<N / 2>(map, y, x + N / 2, last, dim, planes, out + N / 2, step, d);
        return;
      }
    }
    Vec<Compute<In>, N> tile[N];
    if (d + N > dim) {
      read_tile<N, false>(map, y, x, last, d, dim, tile);
      transpose<Compute<In>, N>(tile);
      for (int i = 0; i < N && d + i < planes; ++i) store(out + (d + i) * step, tile[i]);
      continue;
    }
    read_tile<N, true>(map, y, x, last, d, dim, tile);
    transpose<Compute<In>, N>(tile);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) store(out + (d + i) * step, tile[i]);
  }
}

// The way back: planes of `step` values, times `factor`, to the columns from x to `last` of a map.
template <int N, typename Out>
void unpack(const Map<Out>& map, int64_t y, int64_t x, int64_t last, int64_t dim, int64_t planes,
            const Compute<Out>* in, int64_t step, const Compute<Out>* factor, int64_t d = 0) {
  using T = Compute<Out>;
  for (; d < dim; d += N) {
    if constexpr (N > 4) {
      if (dim - d <= N / 2) {
        unpack<N / 2>(map, y, x, last, dim, planes, in, step, factor, d);
        unpack<N / 2>(map, y, x + N / 2, last, dim, planes, in + N / 2, step, factor + N / 2, d);
        return;
      }
    }
    Vec<T, N> tile[N];
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      tile[i] = Vec<T, N>{};
      if (d + i < planes) tile[i] = load<N>(in + (d + i) * step) * load<N>(factor);
    }
    transpose<T, N>(tile);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      if (x + i <= last) write<N>(map, y, x + i, d, dim, tile[i]);
    }
  }
}

// Part of a row of a map as it is: vectors (count, step) with 0 behind the channels.
template <typename In>
void copy_vectors(const Map<const In>& map, int64_t y, int64_t x, int64_t count, int64_t dim,
                  int64_t step, Compute<In>* out) {
  constexpr int N = kLanes<Compute<In>>;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t d = 0; d < step; d += N) store(out + i * step + d, read<N>(map, y, x + i, d, dim));
  }
}

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA

#endif
