// The kernels of query_and_attend. foreach_isa.h compiles the second part for every instruction
// set.
#ifndef MMLOCALATTN_OPERATOR
#define MMLOCALATTN_OPERATOR query_and_attend
#define MMLOCALATTN_KERNELS "cpu/query_and_attend/kernels.cpp"
#include "cpu/foreach_isa.h"
#else
#include "cpu/query_and_attend/backward.h"
#include "cpu/query_and_attend/delta.h"
#include "cpu/query_and_attend/forward.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

template <typename T>
query_and_attend::Kernels<T> make_kernels() {
  return {&forward<T>, &backward_windows<T>, &backward_positions<T>};
}

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA
#endif
