"""What the operators share: the library, kernel look-up, the autocast rule, a guard."""

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

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
    return torch._C._dispatch_has_kernel_for_dispatch_key(
        f'mmlocalattn::{name}', device_type.upper()
    )


@functools.cache
def warn_if_reference(name: str, device_type: str) -> None:
    """Say once per operator and device that the reference serves, and what builds kernels."""
    if device_type in ('cpu', 'cuda') and not has_kernel(name, device_type):
        force_cuda = 'FORCE_CUDA=1 ' if device_type == 'cuda' else ''
        warnings.warn(
            f'mmlocalattn::{name} has no compiled {device_type} kernel, the PyTorch reference is '
            f'used. '
            f'Build the kernels with `{force_cuda}{_BUILD_COMMAND}` in a checkout of mmlocalattn.',
            stacklevel=3,
        )


def register_autocast(name: str, keep: Sequence[str] = ()) -> None:
    """Run an operator in the autocast dtype under autocast, as matmul and SDPA do.

    Args:
        name: Operator name.
        keep: Arguments that stay in their own dtype.
    """
    op = getattr(torch.ops.mmlocalattn, name).default
    names = [argument.name for argument in op._schema.arguments]

    def autocast_kernel(device_type: str) -> Callable:
        def kernel(*args: object) -> object:
            dtype = torch.get_autocast_dtype(device_type)
            cast = (arg if key in keep else _cast(arg, dtype) for key, arg in zip(names, args))
            with torch.autocast(device_type, enabled=False):
                return op(*cast)

        return kernel

    LIB.impl(name, autocast_kernel('cpu'), 'AutocastCPU')
    LIB.impl(name, autocast_kernel('cuda'), 'AutocastCUDA')


def forbid_double_backward(name: str) -> None:
    """Make a second derivative through a backward operator raise instead of being silently zero."""

    def backward(ctx: object, *grads: Tensor) -> None:
        raise RuntimeError(f'mmlocalattn::{name} has no second derivative')

    torch.library.register_autograd(f'mmlocalattn::{name}', backward, lib=LIB)


def _cast(arg: Any, dtype: torch.dtype) -> Any:
    is_castable = isinstance(arg, Tensor) and arg.is_floating_point() and arg.dtype != torch.float64
    return arg.to(dtype) if is_castable else arg
