// Compiles the kernels of an operator once for each instruction set of isa.h:
//
//   #define MMLOCALATTN_OPERATOR slide
//   #define MMLOCALATTN_KERNELS "cpu/slide/kernels.cpp"
//   #include "cpu/foreach_isa.h"
//
// includes that file again and again, with the compiler's target set and with these defined:
//
//   MMLOCALATTN_ISA            name of the instruction set: the namespace that kernels stand in
//   MMLOCALATTN_VECTOR_BYTES   16, 32 or 64
//   MMLOCALATTN_PAIRS          1 if it multiplies pairs of bfloat16
//   MMLOCALATTN_INLINE         for functions that must not cost a call
//   MMLOCALATTN_NOINLINE       for functions whose inner loops need all registers
//   MMLOCALATTN_LAMBDA         for lambdas, all of them: they inherit no target
//   MMLOCALATTN_TOGGLE         defined every other time, for include guards
//
// and then defines kernels<T>() of the operator's namespace: what make_kernels<T>() returned for
// the instruction set in use. Operators that use pairs define MMLOCALATTN_WITH_PAIRS first.
//
// A header of kernels that is parsed alone, by an editor or a linter, includes this file too: it is
// then a portable one. The first entry of the list has no target, so that headers from elsewhere,
// which are parsed once only, are never compiled for more than every machine has.

#ifndef MMLOCALATTN_FOREACH_ISA_H
#define MMLOCALATTN_FOREACH_ISA_H

#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/isa.h"
#include "cpu/maps.h"
#ifdef MMLOCALATTN_X86
#include <immintrin.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#define MMLOCALATTN_PRAGMA(tokens) _Pragma(#tokens)
#define MMLOCALATTN_PUSH_TARGET(name) MMLOCALATTN_PUSH_TARGET_(name)
#ifdef __clang__
#define MMLOCALATTN_PUSH_TARGET_(name) \
  MMLOCALATTN_PRAGMA(clang attribute push(__attribute__((target(name))), apply_to = function))
#define MMLOCALATTN_POP_TARGET MMLOCALATTN_PRAGMA(clang attribute pop)
#else
#define MMLOCALATTN_PUSH_TARGET_(name) \
  MMLOCALATTN_PRAGMA(GCC push_options) MMLOCALATTN_PRAGMA(GCC target(name))
#define MMLOCALATTN_POP_TARGET MMLOCALATTN_PRAGMA(GCC pop_options)
#endif

#define MMLOCALATTN_INLINE inline __attribute__((always_inline))
#define MMLOCALATTN_NOINLINE __attribute__((noinline))

#define MMLOCALATTN_ENTRY MMLOCALATTN_ISA_ENTRY(MMLOCALATTN_INDEX)
#define MMLOCALATTN_ISA MMLOCALATTN_NAME_OF(MMLOCALATTN_ENTRY)
#define MMLOCALATTN_VECTOR_BYTES MMLOCALATTN_BYTES_OF(MMLOCALATTN_ENTRY)
#define MMLOCALATTN_TARGET MMLOCALATTN_TARGET_OF(MMLOCALATTN_ENTRY)
#define MMLOCALATTN_PAIRS MMLOCALATTN_PAIRS_OF(MMLOCALATTN_ENTRY)

#endif

#ifdef MMLOCALATTN_PASS  // for one instruction set, from below
#undef MMLOCALATTN_PASS

#ifdef MMLOCALATTN_WITH_PAIRS
#define MMLOCALATTN_IS_WANTED (MMLOCALATTN_VECTOR_BYTES > 0)
#else
#define MMLOCALATTN_IS_WANTED (MMLOCALATTN_VECTOR_BYTES > 0 && !MMLOCALATTN_PAIRS)
#endif

#if MMLOCALATTN_IS_WANTED
#if MMLOCALATTN_INDEX == 0
#define MMLOCALATTN_LAMBDA __attribute__((always_inline))
#include MMLOCALATTN_KERNELS
#else
#define MMLOCALATTN_LAMBDA __attribute__((always_inline, target(MMLOCALATTN_TARGET)))
MMLOCALATTN_PUSH_TARGET(MMLOCALATTN_TARGET)
#include MMLOCALATTN_KERNELS
MMLOCALATTN_POP_TARGET
#endif

namespace mmlocalattn::cpu {
namespace {

template <typename T, std::enable_if_t<!MMLOCALATTN_PAIRS || std::is_same_v<T, BFloat16>, int> = 0>
auto kernels_of(IsaTag<MMLOCALATTN_INDEX>) {
  return MMLOCALATTN_ISA::make_kernels<T>();
}

}  // namespace
}  // namespace mmlocalattn::cpu

#undef MMLOCALATTN_LAMBDA
#ifdef MMLOCALATTN_TOGGLE
#undef MMLOCALATTN_TOGGLE
#else
#define MMLOCALATTN_TOGGLE
#endif
#endif
#undef MMLOCALATTN_IS_WANTED

#elif !defined(MMLOCALATTN_KERNELS)  // a header that is parsed alone
#ifndef MMLOCALATTN_INDEX
#define MMLOCALATTN_INDEX 0
#define MMLOCALATTN_LAMBDA __attribute__((always_inline))
#endif

#elif !defined(MMLOCALATTN_INDEX)
#define MMLOCALATTN_INDEX 0
#define MMLOCALATTN_PASS
#include "cpu/foreach_isa.h"
#undef MMLOCALATTN_INDEX
#define MMLOCALATTN_INDEX 1
#define MMLOCALATTN_PASS
#include "cpu/foreach_isa.h"
#undef MMLOCALATTN_INDEX
#define MMLOCALATTN_INDEX 2
#define MMLOCALATTN_PASS
#include "cpu/foreach_isa.h"
#undef MMLOCALATTN_INDEX
#define MMLOCALATTN_INDEX 3
#define MMLOCALATTN_PASS
#include "cpu/foreach_isa.h"
#undef MMLOCALATTN_INDEX
#define MMLOCALATTN_INDEX 4
#define MMLOCALATTN_PASS
#include "cpu/foreach_isa.h"
#undef MMLOCALATTN_INDEX
#define MMLOCALATTN_INDEX 5
#define MMLOCALATTN_PASS
#include "cpu/foreach_isa.h"
#undef MMLOCALATTN_INDEX

namespace mmlocalattn::cpu {
namespace {

template <typename T, int... kIndex>
auto per_isa(std::integer_sequence<int, kIndex...>) {
  return PerIsa<MMLOCALATTN_OPERATOR::Kernels<T> >{{kernels_of<T>(IsaTag<kIndex>())...}};
}

}  // namespace

namespace MMLOCALATTN_OPERATOR {

template <typename T>
const Kernels<T>& kernels() {
  static const auto all = per_isa<T>(std::make_integer_sequence<int, kIsaSlots>());
  return all.in_use();
}

template const Kernels<float>& kernels();
template const Kernels<double>& kernels();
template const Kernels<BFloat16>& kernels();

}  // namespace MMLOCALATTN_OPERATOR
}  // namespace mmlocalattn::cpu
#endif
