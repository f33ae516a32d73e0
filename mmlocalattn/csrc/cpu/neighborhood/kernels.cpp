// The kernels of neighborhood attention. foreach_isa.h compiles the second part for every
// instruction set.
#ifndef MMLOCALATTN_OPERATOR
#define MMLOCALATTN_OPERATOR neighborhood
#define MMLOCALATTN_KERNELS "cpu/neighborhood/kernels.cpp"
#define MMLOCALATTN_WITH_PAIRS
#include "cpu/foreach_isa.h"
#else
#include "cpu/neighborhood/backward.h"
#include "cpu/neighborhood/forward.h"
#include "cpu/neighborhood/rotary.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

template <typename T>
neighborhood::Kernels<T> make_kernels() {
  return {&forward<T>,       &backward<T>,  &prefetch_piece<T>,    &write_vectors<Compute<T> >,
          &write_vectors<T>, &rotate<T, T>, &rotate<Compute<T>, T>};
}

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA
#endif
