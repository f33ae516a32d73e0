// The kernels of slide attention. foreach_isa.h compiles the second part for every instruction set.
#ifndef MMLOCALATTN_OPERATOR
#define MMLOCALATTN_OPERATOR slide
#define MMLOCALATTN_KERNELS "cpu/slide/kernels.cpp"
#include "cpu/foreach_isa.h"
#else
#include "cpu/slide/backward.h"
#include "cpu/slide/forward.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

template <typename T>
slide::Kernels<T> make_kernels() {
  return {&forward<T>, &backward<T>};
}

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA
#endif
