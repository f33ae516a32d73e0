// Derivatives of the operators on the CPU and on CUDA: what `_register_autograd` and
// `_forbid_double_backward` of ops/_library.py do for other devices, and for all where this
// extension is not built. A call from here costs a tenth of one through Python.
//
// No operator has code of its own: by their names, the two schemas say which outputs of NAME
// `_NAME_backward` takes, and which tensors have the gradients that it returns.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/stack.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "schemas.h"

namespace mmlocalattn {
namespace {

using c10::IValue;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using torch::jit::Stack;
using NodePointer = decltype(torch::autograd::Edge::function);

template <typename T, typename... Arguments>
NodePointer make_node(Arguments&&... arguments) {
  if constexpr (std::is_same_v<NodePointer, c10::intrusive_ptr<Node>>) {  // since torch 2.13
    return c10::make_intrusive<T>(std::forward<Arguments>(arguments)...);
  } else {
    // deleteNode walks long graphs without recursion.
    return NodePointer(new T(std::forward<Arguments>(arguments)...),
                       [](auto* node) { deleteNode(node); });
  }
}

// How the backward operator of an operator is called.
struct Plan {
  c10::OperatorHandle backward;
  size_t arguments, outputs;
  size_t tensors;              // the first arguments
  std::vector<size_t> saved;   // outputs that the backward operator takes
  std::vector<size_t> places;  // of the tensors with gradients, in the order of the gradients

  explicit Plan(const c10::FunctionSchema& schema)
      : backward(c10::Dispatcher::singleton().findSchemaOrThrow(
            ("mmlocalattn::_" + own_name(schema) + "_backward").c_str(), "")),
        arguments(schema.arguments().size()),
        outputs(schema.returns().size()),
        tensors(0) {
    const auto& names = schema.arguments();
    while (tensors < arguments &&
           names[tensors].type()->isSubtypeOf(*c10::OptionalType::ofTensor())) {
      ++tensors;
    }
    const auto& takes = backward.schema().arguments();
    for (size_t i = 1 + tensors; i + arguments < takes.size() + tensors; ++i) {
      saved.push_back(place_of(takes[i].name(), schema.returns()));
    }
    for (const auto& grad : backward.schema().returns()) {
      places.push_back(place_of(grad.name().substr(std::string("grad_").size()), names));
    }
  }

 private:
  static std::string own_name(const c10::FunctionSchema& schema) {
    return schema.name().substr(schema.name().find("::") + 2);
  }

  static size_t place_of(const std::string& name, const std::vector<c10::Argument>& arguments) {
    size_t place = 0;
    while (arguments.at(place).name() != name) ++place;
    return place;
  }
};

at::Tensor tensor_of(const IValue& value) {
  return value.isTensor() ? value.toTensor() : at::Tensor();
}

IValue value_of(const at::Tensor& tensor) { return tensor.defined() ? IValue(tensor) : IValue(); }

// Whether a call is to be differentiated. Raises for a tangent, which it would lose.
bool requires_grad(c10::ArrayRef<IValue> arguments, const c10::OperatorHandle& op) {
  bool any = false;
  for (const IValue& argument : arguments) {
    if (!argument.isTensor()) continue;
    const auto& tensor = argument.toTensor();
    TORCH_CHECK_NOT_IMPLEMENTED(!torch::autograd::isFwGradDefined(tensor), op.schema().name(),
                                " has no derivative in forward mode");
    any = any || tensor.requires_grad();
  }
  return any && at::GradMode::is_enabled();
}

void add_edges(Node& node, c10::ArrayRef<IValue> arguments) {
  for (const IValue& argument : arguments) {
    const auto tensor = tensor_of(argument);
    node.add_next_edge(tensor.defined() ? torch::autograd::impl::gradient_edge(tensor)
                                        : torch::autograd::Edge());
  }
}

void set_history(const IValue& output, const NodePointer& node) {
  at::Tensor tensor = output.toTensor();  // torch 2.1 takes a reference
  torch::autograd::set_history(tensor, node);
}

void call_below(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
}

class Backward : public Node {
 public:
  Backward(const Plan& plan, c10::ArrayRef<IValue> arguments)
      : plan_(plan), others_(arguments.slice(plan.tensors).vec()) {
    add_edges(*this, arguments.slice(0, plan.tensors));
    inputs_.reserve(plan.tensors);
    for (const IValue& argument : arguments.slice(0, plan.tensors)) {
      inputs_.emplace_back(tensor_of(argument), /*is_output=*/false);
    }
  }

  // After the history of the outputs is set.
  void save(c10::ArrayRef<IValue> outputs) {
    outputs_.reserve(plan_.saved.size());
    for (const size_t place : plan_.saved) {
      outputs_.emplace_back(outputs[place].toTensor(), /*is_output=*/true);
    }
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    TORCH_CHECK(!is_released_, torch::autograd::ERR_BACKWARD_TWICE);
    variable_list results(plan_.tensors);
    if (!grads[0].defined()) return results;
    // Each is read once: under checkpointing every reading unpacks anew.
    Stack stack{grads[0]};
    std::vector<bool> is_defined;
    for (const SavedVariable& input : inputs_) {
      stack.push_back(value_of(input.unpack()));
      is_defined.push_back(stack.back().isTensor());
    }
    for (const SavedVariable& output : outputs_) {
      stack.emplace_back(output.unpack(getptr()));
    }
    stack.insert(stack.end(), others_.begin(), others_.end());
    plan_.backward.callBoxed(&stack);
    for (size_t i = 0; i < plan_.places.size(); ++i) {
      const size_t place = plan_.places[i];
      if (is_defined[place]) results[place] = std::move(stack[i]).toTensor();
    }
    return results;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    inputs_.clear();
    outputs_.clear();
    is_released_ = true;
  }

  std::string name() const override { return plan_.backward.schema().name(); }

 private:
  const Plan& plan_;
  std::vector<IValue> others_;
  std::vector<SavedVariable> inputs_, outputs_;
  bool is_released_ = false;
};

// An operator, differentiable once.
class Differentiable : public c10::OperatorKernel {
 public:
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
    std::call_once(is_planned_, [&] { plan_ = std::make_unique<Plan>(op.schema()); });
    const auto arguments = torch::jit::last(*stack, plan_->arguments);
    if (!requires_grad(arguments.slice(0, plan_->tensors), op)) {
      call_below(op, keys, stack);
      return;
    }
    const NodePointer node = make_node<Backward>(*plan_, arguments);
    call_below(op, keys, stack);
    const auto outputs = torch::jit::last(*stack, plan_->outputs);
    set_history(outputs[0], node);
    static_cast<Backward&>(*node).save(outputs);
  }

 private:
  std::once_flag is_planned_;
  std::unique_ptr<Plan> plan_;
};

// A backward operator: a second derivative raises instead of being silently zero.
class OnceOnly : public c10::OperatorKernel {
 public:
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
    const auto& schema = op.schema();
    const auto arguments = torch::jit::last(*stack, schema.arguments().size());
    NodePointer node;
    if (requires_grad(arguments, op)) {
      node = make_node<torch::autograd::Error>(schema.name() + " has no second derivative");
      add_edges(*node, arguments);
    }
    call_below(op, keys, stack);
    if (!node) return;
    for (const IValue& output : torch::jit::last(*stack, schema.returns().size())) {
      set_history(output, node);
    }
  }
};

void differentiate(torch::Library& library) {
  for (size_t i = 0; i < number_of_schemas; ++i) {
    const std::string name = schemas[i].name;
    library.impl(name.c_str(),
                 torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Differentiable>()));
    library.impl(("_" + name + "_backward").c_str(),
                 torch::CppFunction::makeFromBoxedFunctor(std::make_unique<OnceOnly>()));
  }
}

}  // namespace
}  // namespace mmlocalattn

TORCH_LIBRARY_IMPL(mmlocalattn, AutogradCPU, m) { mmlocalattn::differentiate(m); }
TORCH_LIBRARY_IMPL(mmlocalattn, AutogradCUDA, m) { mmlocalattn::differentiate(m); }
