"""What the operators become in an ONNX file: plain ONNX operators.

An operator is decomposed into its PyTorch reference. Only a window that grows with the map (the
adaptive scan of SSViT) cannot be: the reference writes out a product per row of taps, and their
number is not known. Then the rows are visited by a loop in an ONNX function.
"""

# mypy: ignore-errors
# (What onnxscript compiles is ONNX in the syntax of Python, and not Python by its types.)

from collections.abc import Callable, Mapping, Sequence

import onnxscript
import torch
from onnxscript import FLOAT, INT64
from onnxscript import opset18 as op
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from mmlocalattn.ops.neighborhood import neighborhood_attention_reference
from mmlocalattn.ops.query_and_attend import query_and_attend_reference
from mmlocalattn.ops.slide import slide_attention_reference
from mmlocalattn.ops.sparse_scan import rotate_pairs
from mmlocalattn.ops.stand_alone import stand_alone_attention_reference

OPSET = 18


@onnxscript.script(onnxscript.values.Opset('mmlocalattn', 1), default_opset=op)
def onnx_neighborhood_attention(
    query: FLOAT[...],
    key: FLOAT[...],
    value: FLOAT[...],
    bias: FLOAT[...],  # there is none
    kernel_size: INT64[2],
    dilation: INT64[2],
    scale: float,
) -> tuple[FLOAT[...], FLOAT[...]]:
    """Neighborhood attention without a bias, one row of taps at a time with a running softmax."""
    # Where the windows lie, as in `window_indices`. Functions of a file cannot share a helper.
    kernel_h, dilation_h = op.Gather(kernel_size, 0), op.Gather(dilation, 0)
    index_h = op.Range(0, op.Squeeze(op.Shape(query, start=1, end=2)), 1)
    cell_h = index_h / dilation_h
    group_h = index_h - cell_h * dilation_h
    last_h = (op.Size(index_h) - group_h + dilation_h - 1) / dilation_h - kernel_h
    start_h = op.Min(op.Max(cell_h - kernel_h / 2, 0), last_h)
    kernel_w, dilation_w = op.Gather(kernel_size, 1), op.Gather(dilation, 1)
    index_w = op.Range(0, op.Squeeze(op.Shape(query, start=2, end=3)), 1)
    cell_w = index_w / dilation_w
    group_w = index_w - cell_w * dilation_w
    last_w = (op.Size(index_w) - group_w + dilation_w - 1) / dilation_w - kernel_w
    start_w = op.Min(op.Max(cell_w - kernel_w / 2, 0), last_w)
    taps_w = op.Unsqueeze(start_w, [1]) + op.Range(0, kernel_w, 1)
    columns = taps_w * dilation_w + op.Unsqueeze(group_w, [1])  # (W, kw)

    queries = op.Unsqueeze(query, [3]) * scale
    total = op.ReduceSum(query, [-1], keepdims=0) * 0.0
    top = total - 1e38
    output = query * 0.0
    for i in range(kernel_h):
        row = (start_h + i) * dilation_h + group_h  # (H,)
        keys = op.Gather(op.Gather(key, row, axis=1), columns, axis=2)  # (B, H, W, kw, n, d)
        values = op.Gather(op.Gather(value, row, axis=1), columns, axis=2)
        logits = op.ReduceSum(queries * keys, [-1], keepdims=0)  # (B, H, W, kw, n)
        new_top = op.Max(top, op.ReduceMax(logits, [3], keepdims=0))
        weights = op.Exp(logits - op.Unsqueeze(new_top, [3]))
        decay = op.Exp(top - new_top)
        total = total * decay + op.ReduceSum(weights, [3], keepdims=0)
        gathered = op.ReduceSum(op.Unsqueeze(weights, [-1]) * values, [3], keepdims=0)
        output = output * op.Unsqueeze(decay, [-1]) + gathered
        top = new_top
    return output / op.Unsqueeze(total, [-1]), top + op.Log(total)


def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The reference, unless the number of taps depends on the map.

    Raises:
        ValueError: If it does and there is a bias.
    """
    kernel = tuple(map(_known, kernel_size))
    if all(isinstance(taps, int) for taps in kernel):
        return neighborhood_attention_reference(query, key, value, bias, kernel, dilation, scale)
    if bias is not None:
        raise ValueError(
            'a window with position biases shrinks on the smaller images, which the file cannot '
            'express: export larger sizes only, or one size alone'
        )
    return NotImplemented


def sparse_scan_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sin: Tensor | None,
    cos: Tensor | None,
    local_kernel: Sequence[int],
    anchor_kernel: Sequence[int],
    anchor_dilation: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both steps, whether or not their windows hold more than the query's own position."""
    if sin is not None and cos is not None:
        query, key = rotate_pairs(query, sin, cos), rotate_pairs(key, sin, cos)
    attend = torch.ops.mmlocalattn.neighborhood_attention
    inner, _ = attend(query, key, value, None, local_kernel, (1, 1), scale)
    output, _ = attend(query, key, inner, None, anchor_kernel, anchor_dilation, scale)
    return output, *(query.new_empty(0) for _ in range(3))  # the rest serves the backward pass


def _known(size: int | torch.SymInt) -> int | torch.SymInt:
    """The number that a symbol always is, or the symbol."""
    if isinstance(size, int) or not statically_known_true(size == size.node.hint):
        return size
    return int(size.node.hint)


def adaptive_average(x: Tensor, output_size: Sequence[int]) -> Tensor:
    """``aten._adaptive_avg_pool2d`` as two products, for maps of any size.

    Args:
        x: (B, C, H, W).
        output_size: (h, w).

    Returns:
        (B, C, h, w).
    """
    rows, columns = (_cells(side, cells, x) for side, cells in zip(x.shape[2:], output_size))
    return rows @ x @ columns.T


def _cells(side: int, cells: int, x: Tensor) -> Tensor:
    """(cells, side): the weight of each position in the average of each cell."""
    position = torch.arange(side, device=x.device)
    cell = torch.arange(cells, device=x.device)[:, None]
    is_inside = (position >= cell * side // cells) & (
        position < ((cell + 1) * side - 1) // cells + 1
    )
    weights = is_inside.to(x.dtype)
    return weights / weights.sum(1, keepdim=True)


def detection_translations(program: torch.export.ExportedProgram) -> Mapping:
    """Those of the operators of whole detectors, which need torchvision, where there are any."""
    namespaces = {getattr(node.target, 'namespace', None) for node in program.graph.nodes}
    if 'mmlocalattn_export' not in namespaces:
        return {}
    from mmlocalattn.export.detectors.onnx_functions import TRANSLATIONS

    return TRANSLATIONS


DECOMPOSITIONS: Mapping[str, Callable] = {
    'neighborhood_attention': neighborhood_attention,
    'sparse_scan_attention': sparse_scan_attention,
    'slide_attention': slide_attention_reference,
    'query_and_attend': query_and_attend_reference,
    'stand_alone_attention': stand_alone_attention_reference,
}
"""What computes the same as an operator."""


def convert(
    program: torch.export.ExportedProgram, output_names: Sequence[str] | None = None
) -> torch.onnx.ONNXProgram:
    """An exported program in plain ONNX operators; the input is named ``image``.

    Args:
        program: Of a model.
        output_names: Of its outputs, if they have names.

    Raises:
        ValueError: If it has an operator of this package without a decomposition.
    """
    ops, aten = torch.ops.mmlocalattn, torch.ops.aten
    decompositions = {getattr(ops, name).default: form for name, form in DECOMPOSITIONS.items()}
    for node in program.graph.nodes:
        is_ours = getattr(node.target, 'namespace', None) == 'mmlocalattn'
        if is_ours and node.target not in decompositions:
            raise ValueError(f'{node.target} has no ONNX form: DECOMPOSITIONS has no entry for it')
    decomposed = program.run_decompositions(
        {
            **decompositions,
            aten.adaptive_avg_pool2d.default: adaptive_average,
            aten._adaptive_avg_pool2d.default: adaptive_average,
        }
    )
    return torch.onnx.export(
        decomposed,
        input_names=['image'],
        output_names=output_names,
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
        custom_translation_table={
            ops.neighborhood_attention.default: onnx_neighborhood_attention,
            **detection_translations(program),
        },
    )
