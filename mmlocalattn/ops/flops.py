"""What the operators compute, for the counters of PyTorch and MMEngine.

Counted are the products of every query with its window, not the elementwise work around them: of
attention two products forward and five backward (the logits are computed again), of query and
attend, which gets its scores, one forward and two backward. As in its other formulas, PyTorch
counts a multiply-add as two FLOPs and MMEngine as one.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import register_flop_formula

from mmlocalattn.ops import neighborhood, query_and_attend, sparse_scan  # noqa: F401

Arguments = Mapping[str, Any]
"""Arguments of an operator, shapes in place of tensors."""


class Work(NamedTuple):
    """Products of an operator.

    Attributes:
        multiply_adds: Those of a forward pass, of the operator's arguments.
        backward: How many times as many a backward pass takes.
    """

    multiply_adds: Callable[[Arguments], int]
    backward: float


def multiply_adds(query: Sequence[int], *kernels: Sequence[int]) -> int:
    """Multiply-adds of a forward pass of attention.

    Args:
        query: (B, H, W, num_heads, head_dim).
        kernels: (kh, kw) of each step. A window of one position costs nothing: the value passes.
    """
    return 2 * prod(query) * sum(prod(kernel) for kernel in kernels if prod(kernel) > 1)


def _neighborhood_attention(arguments: Arguments) -> int:
    return multiply_adds(arguments['query'], arguments['kernel_size'])


def _sparse_scan_attention(arguments: Arguments) -> int:
    kernels = (arguments[name] for name in ('local_kernel', 'anchor_kernel'))
    return multiply_adds(arguments['query'], *kernels)


def _query_and_attend(arguments: Arguments) -> int:
    batch, height, width, *vector = arguments['values']
    stride = arguments['stride']
    windows = batch * -(-height // stride) * -(-width // stride)
    return windows * prod(vector) * prod(arguments['kernel_size'])


_WORK = {
    'neighborhood_attention': Work(_neighborhood_attention, backward=2.5),
    'sparse_scan_attention': Work(_sparse_scan_attention, backward=2.5),
    'query_and_attend': Work(_query_and_attend, backward=2),
}


def _torch_formula(
    names: Sequence[str], work: Work, factor: float, *args: Any, **kwargs: Any
) -> int:
    """FLOPs from the arguments of an operator, shapes in place of tensors."""
    return int(2 * factor * work.multiply_adds(dict(zip(names, args))))


def _jit_formula(
    names: Sequence[str], work: Work, inputs: Sequence[Any], outputs: Sequence[Any]
) -> int:
    """Multiply-adds from the values of a node of a traced graph."""
    return work.multiply_adds(dict(zip(names, map(_jit_argument, inputs))))


def _jit_argument(value: Any) -> Any:
    """The shape of a tensor, the items of a list, a number; None if it is neither."""
    if isinstance(value.type(), torch.TensorType):
        return value.type().sizes()
    if value.node().kind() == 'prim::ListConstruct':
        return [item.toIValue() for item in value.node().inputs()]
    return value.toIValue()


def _register_in_torch(name: str, work: Work, factor: float) -> None:
    packet = getattr(torch.ops.mmlocalattn, name)
    register_flop_formula(packet)(partial(_torch_formula, _argument_names(name), work, factor))


def _argument_names(name: str) -> list[str]:
    op = getattr(torch.ops.mmlocalattn, name).default
    return [argument.name for argument in op._schema.arguments]


for _name, _work in _WORK.items():
    _register_in_torch(_name, _work, 1)
    _register_in_torch(f'_{_name}_backward', _work, _work.backward)

JIT_HANDLES = {
    f'mmlocalattn::{name}': partial(_jit_formula, _argument_names(name), work)
    for name, work in _WORK.items()
}
"""Forward formulas by operator, in the form of MMEngine's (and fvcore's) handles."""
