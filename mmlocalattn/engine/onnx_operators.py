"""What the operators become in an ONNX file: plain ONNX operators.

Each operator is decomposed into its PyTorch reference. Only a window that grows with the map (the
adaptive scan of SSViT) cannot be: the reference writes out one product per row of taps, and their
number is not known. Its rows are visited by a loop of the file, an ONNX function.
"""

from collections.abc import Callable

import onnxscript
import torch
from onnxscript import FLOAT, INT64
from onnxscript import opset18 as op
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from mmlocalattn.ops._library import LIB
from mmlocalattn.ops.neighborhood import neighborhood_attention_reference, neighborhood_taps
from mmlocalattn.ops.sparse_scan import rotate_pairs

OPSET = 18

LIB.define(
    '_attend_taps(Tensor query, Tensor key, Tensor value, Tensor rows, Tensor columns) -> Tensor'
)


@torch.library.impl(LIB, '_attend_taps', 'CompositeExplicitAutograd')
def attend_taps(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Attention of every query to the grid of its taps, one row of them at a time.

    Args:
        query: (B, H, W, num_heads, head_dim), scaled.
        key: Same shape.
        value: Same shape.
        rows: (kh, H) int64, the rows that the queries of each row see.
        columns: (W, kw) int64, the columns that those of each column see.

    Returns:
        Like ``query``.
    """
    top = torch.full_like(query[..., 0], -torch.inf)  # (B, H, W, n), largest logit so far
    total = torch.zeros_like(top)
    output = torch.zeros_like(query)
    for row in rows:
        keys, values = (tensor[:, row][:, :, columns] for tensor in (key, value))
        logits = (query[:, :, :, None] * keys).sum(-1)  # (B, H, W, kw, n)
        new_top = torch.maximum(top, logits.amax(3))
        weights = (logits - new_top[:, :, :, None]).exp()
        decay = (top - new_top).exp()
        total = total * decay + weights.sum(3)
        output = output * decay[..., None] + (weights[..., None] * values).sum(3)
        top = new_top
    return output / total[..., None]


@torch.library.register_fake('mmlocalattn::_attend_taps', lib=LIB)
def _(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return torch.empty_like(query)


@onnxscript.script(onnxscript.values.Opset('mmlocalattn', 1), default_opset=op)
def onnx_attend_taps(
    query: FLOAT[...], key: FLOAT[...], value: FLOAT[...], rows: INT64[...], columns: INT64[...]
) -> FLOAT[...]:
    """:func:`attend_taps` in ONNX."""
    last, taps = op.Constant(value_ints=[-1]), op.Constant(value_ints=[3])
    total = op.ReduceSum(query, last, keepdims=0) * 0.0
    top = total - 1e38
    output = query * 0.0
    queries = op.Unsqueeze(query, taps)
    for i in range(op.Squeeze(op.Shape(rows, start=0, end=1))):
        row = op.Gather(rows, i, axis=0)
        keys = op.Gather(op.Gather(key, row, axis=1), columns, axis=2)
        values = op.Gather(op.Gather(value, row, axis=1), columns, axis=2)
        logits = op.ReduceSum(queries * keys, last, keepdims=0)
        new_top = op.Max(top, op.ReduceMax(logits, taps, keepdims=0))
        weights = op.Exp(logits - op.Unsqueeze(new_top, taps))
        decay = op.Exp(top - new_top)
        total = total * decay + op.ReduceSum(weights, taps, keepdims=0)
        gathered = op.ReduceSum(op.Unsqueeze(weights, last) * values, taps, keepdims=0)
        output = output * op.Unsqueeze(decay, last) + gathered
        top = new_top
    return output / op.Unsqueeze(total, last)


def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    kernel_size: tuple[int, int],
    dilation: tuple[int, int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The reference, or the loop where the number of taps depends on the map."""
    kernel = tuple(map(_known, kernel_size))
    if all(isinstance(taps, int) for taps in kernel):
        return neighborhood_attention_reference(
            query, key, value, bias, kernel, dilation, scale
        )
    if bias is not None:
        raise ValueError(
            'a window with position biases shrinks on small maps, which ONNX cannot express for '
            'all sizes at once: export for larger images only, or for one size'
        )
    rows, columns = neighborhood_taps(query, kernel_size, dilation)
    output = torch.ops.mmlocalattn._attend_taps(query * scale, key, value, rows.T, columns)
    return output, query.new_empty(0)


def sparse_scan_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sin: Tensor | None,
    cos: Tensor | None,
    local_kernel: tuple[int, int],
    anchor_kernel: tuple[int, int],
    anchor_dilation: tuple[int, int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both steps, whether or not their windows hold more than the query's own position."""
    if sin is not None and cos is not None:
        query, key = rotate_pairs(query, sin, cos), rotate_pairs(key, sin, cos)
    inner, _ = neighborhood_attention(query, key, value, None, local_kernel, (1, 1), scale)
    output, _ = neighborhood_attention(
        query, key, inner, None, anchor_kernel, anchor_dilation, scale
    )
    return output, *(query.new_empty(0) for _ in range(3))  # the rest serves the backward pass


def _known(size: int | torch.SymInt) -> int | torch.SymInt:
    """The number that a symbol always is, or the symbol."""
    if isinstance(size, int) or not statically_known_true(size == size.node.hint):
        return size
    return int(size.node.hint)
