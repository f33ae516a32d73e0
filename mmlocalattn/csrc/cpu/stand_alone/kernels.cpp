// The kernels of stand-alone self-attention. foreach_isa.h compiles the second part for every
// instruction set.
#ifndef MMLOCALATTN_OPERATOR
#define MMLOCALATTN_OPERATOR stand_alone
#define MMLOCALATTN_KERNELS "cpu/stand_alone/kernels.cpp"
#include "cpu/foreach_isa.h"
#else
#include "cpu/stand_alone/backward.h"
#include "cpu/stand_alone/forward.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

template <typename T>
stand_alone::Kernels<T> make_kernels() {
  return {&forward<T>, &backward<T>};
}

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA
#endif
