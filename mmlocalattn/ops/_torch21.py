"""What ``torch.library`` and its neighbors lack before torch 2.4, for torch 2.1 to 2.3.

Each function is that of the same name in torch 2.4, as far as :mod:`mmlocalattn.ops._library` uses
it. There is no tracing: a graph of torch.compile breaks at the operators, and torch.export does not
take them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import flop_mapping  # type: ignore[attr-defined]  # gone in 2.4


def register_fake(name: str, fake: Callable, *, lib: torch.library.Library) -> None:
    """Register what makes empty outputs."""
    lib.impl(name.partition('::')[2], fake, 'Meta')


def register_autograd(
    name: str,
    backward: Callable,
    *,
    setup_context: Callable | None = None,
    lib: torch.library.Library,
) -> None:
    """Register the gradient of an operator."""
    namespace, _, own_name = name.partition('::')
    op = getattr(getattr(torch.ops, namespace), own_name).default

    def forward(ctx: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = op(*args)
        if setup_context is not None:
            setup_context(ctx, args, output)
        return output

    methods = {'forward': staticmethod(forward), 'backward': staticmethod(backward)}
    function: Any = type(own_name, (torch.autograd.Function,), methods)
    lib.impl(own_name, function.apply, 'Autograd')


def register_flop_formula(op: Any) -> Callable[[Callable], None]:
    """Register what FLOP counters count of an operator."""

    def register(formula: Callable) -> None:
        flop_mapping[op] = formula

    return register


def is_autocast_enabled(device_type: str) -> bool:
    """Whether autocast is on for the CPU or CUDA."""
    cpu = device_type == 'cpu'
    return torch.is_autocast_cpu_enabled() if cpu else torch.is_autocast_enabled()


def get_autocast_dtype(device_type: str) -> torch.dtype:
    """The dtype of autocast for the CPU or CUDA."""
    cpu = device_type == 'cpu'
    return torch.get_autocast_cpu_dtype() if cpu else torch.get_autocast_gpu_dtype()


def is_compiling() -> bool:
    """False: see above."""
    return False
