"""What the operators compute, for the counters of PyTorch and MMEngine.

Counted are the products of every query with its window, not the elementwise work around them nor
the two short products with the embeddings of stand-alone attention: two products forward, five
backward (the logits are computed again). The copies of keys and values that slide attention attends
to are convolutions: two forward, six backward. As in its other formulas, PyTorch counts a
multiply-add as two FLOPs and MMEngine as one.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from mmlocalattn.ops import (  # noqa: F401  (define the operators)
    neighborhood,
    slide,
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


def slide_multiply_adds(
    query: Sequence[int], weight: Sequence[int], products: int = 2, convolutions: int = 2
) -> int:
    """Multiply-adds of slide attention, forward: products with all copies, convolutions to them.

    Args:
        query: (B, H, W, num_heads, head_dim).
        weight: (head_dim, k * k, k, k).
        products: How often every query is multiplied with its copies.
        convolutions: How often a map is convolved to its copies, or back.
    """
    copies = weight[1]
    return prod(query) * copies * (products + convolutions * copies)


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


def _sdpa_jit_formula(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Multiply-adds of PyTorch's scaled_dot_product_attention, which MMEngine does not know."""
    query, key, value = (tensor.type().sizes() for tensor in inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _slide_torch_formula(
    names: Sequence[str], products: int, convolutions: int, *args: Any, **kwargs: Any
) -> int:
    shapes = dict(zip(names, args))
    return 2 * slide_multiply_adds(shapes['query'], shapes['weight'], products, convolutions)


def _slide_jit_formula(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    query, _, _, weight, *_ = inputs
    return slide_multiply_adds(query.type().sizes(), weight.type().sizes())


def _register_in_torch(name: str, kernels: Sequence[str], factor: int) -> None:
    packet = getattr(torch.ops.mmlocalattn, name)
    register_flop_formula(packet)(partial(_torch_formula, _argument_names(name), kernels, factor))


def _argument_names(name: str) -> list[str]:
    op = getattr(torch.ops.mmlocalattn, name).default
    return [argument.name for argument in op._schema.arguments]


for _name, _kernels in _KERNELS.items():
    _register_in_torch(_name, _kernels, 2)
    _register_in_torch(f'_{_name}_backward', _kernels, 5)

for _name, _counts in {'slide_attention': (2, 2), '_slide_attention_backward': (5, 6)}.items():
    register_flop_formula(getattr(torch.ops.mmlocalattn, _name))(
        partial(_slide_torch_formula, _argument_names(_name), *_counts)
    )

JIT_HANDLES: dict[str, Callable[..., int]] = {
    f'mmlocalattn::{name}': partial(_jit_formula, _argument_names(name), kernels)
    for name, kernels in _KERNELS.items()
}
JIT_HANDLES['mmlocalattn::slide_attention'] = _slide_jit_formula
JIT_HANDLES['aten::scaled_dot_product_attention'] = _sdpa_jit_formula
"""Forward formulas by operator, in the form of MMEngine's (and fvcore's) handles."""
