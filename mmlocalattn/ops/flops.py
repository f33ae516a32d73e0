"""What the operators compute, for the counters of PyTorch and MMEngine.

Counted are products of maps, not the elementwise work around them nor the two short rows of
relative embeddings of stand-alone attention: of every query with its window two forward and five
backward (the logits are computed again); the same of slide attention, and the convolutions that
make its copies of keys and values, two forward and six backward; of query and attend, which gets
its scores, one forward and two backward. As in its other formulas, PyTorch counts a multiply-add as
two FLOPs and MMEngine as one.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from mmlocalattn.ops import (  # noqa: F401  (define the operators)
    neighborhood,
    query_and_attend,
    slide,
    sparse_scan,
    stand_alone,
)

Arguments = Mapping[str, Any]
"""Arguments of an operator, shapes in place of tensors."""


def multiply_adds(query: Sequence[int], *kernels: Sequence[int], products: int = 2) -> int:
    """Multiply-adds of products of every query with its window.

    Args:
        query: (B, H, W, num_heads, head_dim).
        kernels: (kh, kw) of each step. A window of one position costs nothing: the value passes.
        products: How many there are in each step.
    """
    return products * prod(query) * sum(prod(kernel) for kernel in kernels if prod(kernel) > 1)


def slide_multiply_adds(
    query: Sequence[int], weight: Sequence[int], products: int = 2, convolutions: int = 2
) -> int:
    """Multiply-adds of slide attention: products with all copies, and convolutions to them.

    Args:
        query: (B, H, W, num_heads, head_dim).
        weight: (head_dim, k * k, k, k).
        products: How often every query is multiplied with its copies.
        convolutions: How often a map is convolved to its copies, or back.
    """
    copies = weight[1]
    return prod(query) * copies * (products + convolutions * copies)


def value_multiply_adds(
    values: Sequence[int], kernel: Sequence[int], stride: int, products: int = 1
) -> int:
    """Multiply-adds of query and attend.

    Args:
        values: (B, H, W, num_heads, head_dim).
        kernel: (kh, kw).
        stride: Positions from one window to the next.
        products: How often a window of values is multiplied with its weights, or back.
    """
    batch, height, width, *vector = values
    windows = batch * -(-height // stride) * -(-width // stride)
    return products * windows * prod(vector) * prod(kernel)


def _windows(arguments: Arguments, kernels: Sequence[str], products: int) -> int:
    sizes = (arguments[kernel] for kernel in kernels)
    return multiply_adds(arguments['query'], *sizes, products=products)


def _slide(arguments: Arguments, **times: int) -> int:
    return slide_multiply_adds(arguments['query'], arguments['weight'], **times)


def _values(arguments: Arguments, products: int) -> int:
    kernel, stride = arguments['kernel_size'], arguments['stride']
    return value_multiply_adds(arguments['values'], kernel, stride, products)


_MULTIPLY_ADDS: dict[str, Callable[[Arguments], int]] = {
    'slide_attention': partial(_slide, products=2, convolutions=2),
    '_slide_attention_backward': partial(_slide, products=5, convolutions=6),
    'query_and_attend': partial(_values, products=1),
    '_query_and_attend_backward': partial(_values, products=2),
}
for _name, _kernels in {
    'neighborhood_attention': ('kernel_size',),
    'sparse_scan_attention': ('local_kernel', 'anchor_kernel'),
    'stand_alone_attention': ('kernel_size',),
}.items():
    for _operator, _products in ((_name, 2), (f'_{_name}_backward', 5)):
        _MULTIPLY_ADDS[_operator] = partial(_windows, kernels=_kernels, products=_products)


def _torch_formula(
    names: Sequence[str], multiply_adds: Callable[[Arguments], int], *args: Any, **kwargs: Any
) -> int:
    """FLOPs from the arguments of an operator, shapes in place of tensors."""
    return 2 * multiply_adds(dict(zip(names, args)))


def _jit_formula(
    names: Sequence[str],
    multiply_adds: Callable[[Arguments], int],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
) -> int:
    """Multiply-adds from the values of a node of a traced graph."""
    return multiply_adds(dict(zip(names, map(_jit_argument, inputs))))


def _sdpa_jit_formula(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Multiply-adds of PyTorch's scaled_dot_product_attention, which MMEngine does not know."""
    query, key, value = (tensor.type().sizes() for tensor in inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _jit_argument(value: Any) -> Any:
    """The shape of a tensor, the items of a list, a number; None if it is neither."""
    if isinstance(value.type(), torch.TensorType):
        return value.type().sizes()
    if value.node().kind() == 'prim::ListConstruct':
        return [item.toIValue() for item in value.node().inputs()]
    return value.toIValue()


def _argument_names(name: str) -> list[str]:
    op = getattr(torch.ops.mmlocalattn, name).default
    return [argument.name for argument in op._schema.arguments]


for _name, _count in _MULTIPLY_ADDS.items():
    register_flop_formula(getattr(torch.ops.mmlocalattn, _name))(
        partial(_torch_formula, _argument_names(_name), _count)
    )

JIT_HANDLES: dict[str, Callable[..., int]] = {
    f'mmlocalattn::{name}': partial(_jit_formula, _argument_names(name), count)
    for name, count in _MULTIPLY_ADDS.items()
    if not name.startswith('_')
} | {'aten::scaled_dot_product_attention': _sdpa_jit_formula}
"""Forward formulas by operator, in the form of MMEngine's (and fvcore's) handles."""
