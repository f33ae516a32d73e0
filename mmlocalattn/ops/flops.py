"""What the operators compute, for the counters of PyTorch and MMEngine.

Counted are the products of every query with its window, not the elementwise work around them nor
the two short rows of relative embeddings: two products forward, five backward (the logits are
computed again). As in its other formulas, PyTorch counts a multiply-add as two FLOPs and MMEngine
as one.
"""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from mmlocalattn.ops import (  # noqa: F401  (define the operators)
    neighborhood,
    sparse_scan,
    stand_alone,
)

_KERNELS = {
    'neighborhood_attention': ('kernel_size',),
    'sparse_scan_attention': ('local_kernel', 'anchor_kernel'),
    'stand_alone_attention': ('kernel_size',),
}
"""Arguments of each operator that hold a window."""


def multiply_adds(query: Sequence[int], *kernels: Sequence[int]) -> int:
    """Multiply-adds of a forward pass; a backward pass takes 2.5 times as many.

    Args:
        query: (B, H, W, num_heads, head_dim).
        kernels: (kh, kw) of each step. A window of one position costs nothing: the value passes.
    """
    return 2 * prod(query) * sum(prod(kernel) for kernel in kernels if prod(kernel) > 1)


def _torch_formula(
    names: Sequence[str], kernels: Sequence[str], factor: int, *args: Any, **kwargs: Any
) -> int:
    """FLOPs from the arguments of an operator, shapes in place of tensors."""
    arguments = dict(zip(names, args))
    return factor * multiply_adds(arguments['query'], *(arguments[name] for name in kernels))


def _jit_formula(
    names: Sequence[str], kernels: Sequence[str], inputs: Sequence[Any], outputs: Sequence[Any]
) -> int:
    """Multiply-adds from the values of a node of a traced graph."""
    values = dict(zip(names, inputs))
    sizes = ([item.toIValue() for item in values[name].node().inputs()] for name in kernels)
    return multiply_adds(values['query'].type().sizes(), *sizes)


def _register_in_torch(name: str, kernels: Sequence[str], factor: int) -> None:
    packet = getattr(torch.ops.mmlocalattn, name)
    register_flop_formula(packet)(partial(_torch_formula, _argument_names(name), kernels, factor))


def _argument_names(name: str) -> list[str]:
    op = getattr(torch.ops.mmlocalattn, name).default
    return [argument.name for argument in op._schema.arguments]


for _name, _kernels in _KERNELS.items():
    _register_in_torch(_name, _kernels, 2)
    _register_in_torch(f'_{_name}_backward', _kernels, 5)

JIT_HANDLES = {
    f'mmlocalattn::{name}': partial(_jit_formula, _argument_names(name), kernels)
    for name, kernels in _KERNELS.items()
}
"""Forward formulas by operator, in the form of MMEngine's (and fvcore's) handles."""
