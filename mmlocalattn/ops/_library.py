"""What the operators share: their registration, kernel look-up, and what asks for torch's state.

Where versions of torch differ, they differ in this file and in ``_torch21`` alone.
"""

import functools
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmlocalattn.ops._implementation import REFERENCES, chosen, is_compiled
from mmlocalattn.ops._schema import parse
from mmlocalattn.ops.flops import JIT_HANDLES, jit_formula, torch_formula

if TYPE_CHECKING or hasattr(torch.library, 'register_autograd'):  # torch 2.4, which has the types
    from torch import get_autocast_dtype, is_autocast_enabled
    from torch.compiler import is_compiling
    from torch.library import register_autograd, register_fake
    from torch.utils.flop_counter import register_flop_formula
else:
    from mmlocalattn.ops._torch21 import (
        get_autocast_dtype,
        is_autocast_enabled,
        is_compiling,
        register_autograd,
        register_fake,
        register_flop_formula,
    )

is_exporting = getattr(torch.compiler, 'is_exporting', is_compiling)  # torch 2.7 has it

LIB = torch.library.Library('mmlocalattn', 'DEF')

_BUILD_COMMAND = 'pip install --no-build-isolation -e .'


def load_ext(name: str, funcs: Sequence[str]) -> bool:
    """Load the compiled extension and check that it brings the expected CPU kernels.

    The twin of ``mmcv.utils.ext_loader.load_ext`` for a package that is not mmcv and for operators
    that live in PyTorch's dispatcher instead of in the module.

    Args:
        name: Module name inside the package, such as ``'_ext'``.
        funcs: Operators that the extension must serve on the CPU.

    Returns:
        False if the extension is not built; then the PyTorch reference serves every device.

    Raises:
        ImportError: If the extension is there but does not load, or lacks one of ``funcs``.
    """
    module = f'mmlocalattn.{name}'
    if importlib.util.find_spec(module) is None:
        return False
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'{module} is built but does not load ({error}). It was probably built for another '
            f'torch than the installed {torch.__version__}: rebuild it with `{_BUILD_COMMAND}`.'
        ) from error
    missing = [func for func in funcs if not has_kernel(func, 'cpu')]
    if missing:
        raise ImportError(
            f'{module} is older than the Python code, it lacks {missing=}: rebuild it with '
            f'`{_BUILD_COMMAND}`.'
        )
    return True


def has_kernel(name: str, device_type: str) -> bool:
    """Whether a compiled kernel, not the PyTorch reference, serves an operator on a device.

    Args:
        name: Operator name, such as ``'neighborhood_attention'``.
        device_type: ``'cpu'`` or ``'cuda'``.
    """
    return chosen(device_type) != 'reference' and is_compiled(name, device_type)


@functools.cache
def _warn_once(name: str, device: torch.device) -> None:
    if device.type in ('cpu', 'cuda') and not is_compiled(name, device.type):
        force_cuda = 'FORCE_CUDA=1 ' if device.type == 'cuda' else ''
        where = 'in WSL2, in' if sys.platform == 'win32' else 'in'
        warnings.warn(
            f'mmlocalattn::{name} has no compiled {device.type} kernel, the PyTorch reference is '
            f'used. Build the kernels with `{force_cuda}{_BUILD_COMMAND}` {where} a checkout of '
            'mmlocalattn.',
            stacklevel=2,
        )


def is_autocasting(tensor: Tensor) -> bool:
    """Whether autocast is on for the device, of those that have rules for the operators."""
    device_type = tensor.device.type
    return device_type in ('cpu', 'cuda') and is_autocast_enabled(device_type)


def autocasted(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of a device in the dtype of autocast, if that is enabled for it."""
    if not is_autocasting(tensors[0]):
        return tensors
    dtype = get_autocast_dtype(tensors[0].device.type)
    return tuple(tensor.to(_autocast_dtype(tensor, dtype)) for tensor in tensors)


def output_and_logsumexp(query: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    """The ``fake`` of attention: what is like ``query``, and `log_sum_exp` per query and head."""
    compute = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(query.shape), query.new_empty((*query.shape[:-1], 2), dtype=compute)


def register_operator(
    schema: str,
    *,
    reference: Callable,
    backward_reference: Callable,
    fake: Callable,
    multiply_adds: Callable[..., int],
    saved: Sequence[str] = (),
    parameters: Sequence[str] = (),
    constants: Sequence[str] = (),
) -> None:
    """Define an operator and its backward operator, and register all that surrounds the kernels.

    From ``NAME(tensors, other arguments) -> outputs`` follows ``_NAME_backward(gradient of the
    first output, tensors, saved outputs, other arguments) -> gradients of the tensors``; the other
    outputs have no gradient. The gradient of a tensor that is None is empty. A second derivative
    raises.

    Args:
        schema: Of the operator, as PyTorch writes it, tensors first.
        reference: The operator in PyTorch, for devices without a kernel.
        backward_reference: The backward operator in PyTorch.
        fake: Makes empty outputs, of the operator's arguments.
        multiply_adds: What FLOP counters count: of ``backward``, True for the backward operator,
            and by name of the operator's arguments, shapes in place of tensors.
        saved: Outputs that the backward operator needs.
        parameters: Tensors that stay in their own dtype under autocast.
        constants: Tensors that do, and get no gradient.

    Raises:
        ValueError: If the schema is not of that form, or lacks what another argument names.
    """
    parsed = parse(schema, saved, parameters, constants)
    name, backward = parsed.name, f'_{parsed.name}_backward'
    _define(name, parsed.forward)
    _define(backward, parsed.backward)
    LIB.impl(name, _announced(name, reference), 'CompositeExplicitAutograd')
    LIB.impl(backward, backward_reference, 'CompositeExplicitAutograd')
    REFERENCES.update({name: reference, backward: backward_reference})
    register_fake(f'mmlocalattn::{name}', fake, lib=LIB)
    _register_fake_backward(backward, parsed.places)
    saved_places = [parsed.outputs.index(output) for output in saved]
    _register_autograd(name, len(parsed.tensors), parsed.places, saved_places)
    _forbid_double_backward(backward)
    kept = {*parameters, *constants}
    _register_autocast(name, [tensor not in kept for tensor in parsed.tensors])
    _register_flops(name, functools.partial(multiply_adds, False))
    _register_flops(backward, functools.partial(multiply_adds, True))


def _announced(name: str, reference: Callable) -> Callable:
    """A reference that says once per device that it serves, and what builds kernels."""

    def serve(*args: Any) -> Any:
        _warn_once(name, args[0].device)
        return reference(*args)

    return serve


def _define(name: str, schema: str) -> None:
    """Define an operator, unless a program has loaded the extension alone, which then did so."""
    if not hasattr(torch.ops.mmlocalattn, name):
        LIB.define(schema)


def _register_fake_backward(name: str, places: Sequence[int]) -> None:
    def fake(grad_output: Tensor, *args: Any) -> Tensor | tuple[Tensor, ...]:
        inputs = [args[place] for place in places]
        grads = tuple(
            grad_output.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)
            for tensor in inputs
        )
        return grads if len(grads) > 1 else grads[0]

    register_fake(f'mmlocalattn::{name}', fake, lib=LIB)


def _register_autograd(name: str, count: int, places: Sequence[int], saved: Sequence[int]) -> None:
    """Differentiate an operator.

    Args:
        name: Its name.
        count: Of its tensors.
        places: Of the tensors that have a gradient, in the order of the gradients.
        saved: Places of the outputs that the backward operator takes.
    """
    backward_op = getattr(torch.ops.mmlocalattn, f'_{name}_backward').default

    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        outputs = _as_tuple(output)
        ctx.save_for_backward(*inputs[:count], *[outputs[place] for place in saved])
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.others = inputs[count:]

    def backward(ctx: Any, grad_output: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors  # read once: under checkpointing each reading unpacks anew
        grads: list[Tensor | None] = [None] * (count + len(ctx.others))
        results = _as_tuple(backward_op(grad_output, *tensors, *ctx.others))
        for place, grad in zip(places, results):
            if tensors[place] is not None:
                grads[place] = grad
        return tuple(grads)

    register_autograd(f'mmlocalattn::{name}', backward, setup_context=setup_context, lib=LIB)


def _as_tuple(result: Any) -> tuple:
    return result if isinstance(result, tuple) else (result,)


def _forbid_double_backward(name: str) -> None:
    """Make a second derivative through a backward operator raise instead of being silently zero."""

    def backward(ctx: object, *grads: Tensor) -> None:
        raise RuntimeError(f'mmlocalattn::{name} has no second derivative')

    register_autograd(f'mmlocalattn::{name}', backward, lib=LIB)


def _register_autocast(name: str, casts: Sequence[bool]) -> None:
    """Run an operator in the autocast dtype under autocast, as matmul and SDPA do.

    Args:
        name: Its name.
        casts: Whether to cast, for each of its tensors.
    """
    op = getattr(torch.ops.mmlocalattn, name).default

    def autocast_kernel(device_type: str, key: str) -> Callable:
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def kernel(*args: Any) -> Any:
            dtype = get_autocast_dtype(device_type)
            tensors = (
                arg.to(_autocast_dtype(arg, dtype)) if cast and arg is not None else arg
                for arg, cast in zip(args, casts)
            )
            # As torch.library does; a block of torch.autocast takes as long as an operator.
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return op(*tensors, *args[len(casts) :])

        return kernel

    for device_type, key in (('cpu', 'AutocastCPU'), ('cuda', 'AutocastCUDA')):
        LIB.impl(name, autocast_kernel(device_type, key), key)


def _autocast_dtype(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype to which autocast changes a tensor, or that which it has."""
    is_cast = tensor.is_floating_point() and tensor.dtype != torch.float64
    return dtype if is_cast else tensor.dtype


def _register_flops(name: str, multiply_adds: Callable[..., int]) -> None:
    op = getattr(torch.ops.mmlocalattn, name)
    names = [argument.name for argument in op.default._schema.arguments]
    register_flop_formula(op)(functools.partial(torch_formula, names, multiply_adds))
    JIT_HANDLES[f'mmlocalattn::{name}'] = functools.partial(jit_formula, names, multiply_adds)
