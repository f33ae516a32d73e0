// The optional tensor that the dispatcher of the installed torch hands to an operator:
// std::optional, but in torch 2.1 a class of PyTorch's own.
#pragma once

#include <ATen/core/ivalue.h>

#include <utility>

namespace mmlocalattn {

using OptionalTensor =
    decltype(std::declval<const c10::IValue&>().toOptionalTensorVector())::value_type;

}  // namespace mmlocalattn
