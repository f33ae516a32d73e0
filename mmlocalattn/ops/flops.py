"""What the operators compute, for the counters of PyTorch and MMEngine.

Counted are products of maps, not the elementwise work around them nor the two short rows of
relative embeddings of stand-alone attention: of every query with its window two forward and five
backward (the logits are computed again); the same of slide attention, and the convolutions that
make its copies of keys and values, two forward and six backward; of query and attend, which gets
its scores, one forward and two backward. As in its other formulas, PyTorch counts a multiply-add as
two FLOPs and MMEngine as one.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch


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


def torch_formula(
    names: Sequence[str], multiply_adds: Callable[..., int], *args: Any, **kwargs: Any
) -> int:
    """FLOPs in the form of PyTorch's counter.

    Args:
        names: Of the operator's arguments.
        multiply_adds: Of these arguments, shapes in place of tensors.
        args: Their values in a call.
        kwargs: What the counter says besides.
    """
    return 2 * multiply_adds(**dict(zip(names, args)))


def jit_formula(
    names: Sequence[str],
    multiply_adds: Callable[..., int],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
) -> int:
    """Multiply-adds in the form of MMEngine's (and fvcore's) handles.

    Args:
        names: Of the operator's arguments.
        multiply_adds: Of these arguments, shapes in place of tensors.
        inputs: Their values, of a node of a traced graph.
        outputs: Those of its outputs.
    """
    return multiply_adds(**dict(zip(names, map(_jit_argument, inputs))))


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


JIT_HANDLES: dict[str, Callable[..., int]] = {
    'aten::scaled_dot_product_attention': _sdpa_jit_formula
}
"""MMEngine's handles by operator. ``register_operator`` adds ours."""
