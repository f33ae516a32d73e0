"""What the operators become in an ONNX file: plain ONNX operators.

Each is written for the runtime, not traced from its PyTorch reference: attention in tiles, whose
products are few and large (:mod:`~mmlocalattn.export.onnx_tiles`), and small windows tap by tap.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer

from mmlocalattn.export.onnx_tiles import (
    PENALTY,
    Number,
    Tiles,
    Value,
    attend,
    attend_relatively,
    centred_axis,
    count,
    divide,
    flat_heads,
    from_tiles,
    last,
    op,
    relative_bias,
    shifted_axis,
    side,
    tiles_of,
)

OPSET = 18
END = 2**62
"""Of a slice: the end of the axis."""

FOLDED = 1 << 20
"""Constants of up to so many bytes are computed for the file, larger ones when it is loaded."""


class Graph:
    """Writes the operators into the graph of one file.

    What depends on the size of the map alone is written once and used by all operators on it.
    """

    def __init__(self) -> None:
        self._shared: dict[tuple, Any] = {}

    def neighborhood_attention(
        self,
        query: Value,
        key: Value,
        value: Value,
        bias: Value | None,
        kernel_size: Sequence[Number],
        dilation: Sequence[Number],
        scale: float,
    ) -> tuple[Value, Value]:
        """Attention in tiles; there is no log-sum-exp."""
        tiles = self._shifted(query, kernel_size, dilation, bias is not None)
        added = None if bias is None else relative_bias(bias, tiles, kernel_size)
        queries, keys, values = (flat_heads(x, query.shape[4]) for x in (query, key, value))
        output = attend(queries * scale, keys, values, tiles, added)
        return from_tiles(output, tiles, query), _nothing()

    def sparse_scan_attention(
        self,
        query: Value,
        key: Value,
        value: Value,
        sin: Value | None,
        cos: Value | None,
        local_kernel: Sequence[Number],
        anchor_kernel: Sequence[Number],
        anchor_dilation: Sequence[Number],
        scale: float,
    ) -> tuple[Value, ...]:
        """Both steps in tiles; there is nothing that serves the backward pass."""
        head_dim = query.shape[4]
        queries, keys = flat_heads(query, head_dim) * scale, flat_heads(key, head_dim)
        output = value
        if sin is not None:
            queries, keys = (_rotated(x, sin, cos, head_dim) for x in (queries, keys))
        for kernel, dilation in ((local_kernel, (1, 1)), (anchor_kernel, anchor_dilation)):
            if tuple(kernel) == (1, 1):
                continue
            tiles = self._shifted(query, kernel, dilation, has_offsets=False)
            output = attend(queries, keys, flat_heads(output, head_dim), tiles)
            output = from_tiles(output, tiles, query)
        return output, _nothing(), _nothing(), _nothing()

    def stand_alone_attention(
        self,
        query: Value,
        key: Value,
        value: Value,
        row_embedding: Value,
        column_embedding: Value,
        kernel_size: Sequence[int],
        zero_padding: bool,
        scale: float,
    ) -> tuple[Value, Value]:
        """Attention in tiles, with the embeddings as channels of their own."""
        tiles = self._centred(query, kernel_size, zero_padding)
        head_dim = query.shape[4]
        queries = flat_heads(query, head_dim) * scale
        keys, values = (flat_heads(padded(x, kernel_size), head_dim) for x in (key, value))
        embeddings = row_embedding, column_embedding
        output = attend_relatively(queries, keys, values, tiles, embeddings, kernel_size, head_dim)
        return from_tiles(output, tiles, query), _nothing()

    def _shifted(
        self,
        query: Value,
        kernel: Sequence[Number],
        dilation: Sequence[Number],
        has_offsets: bool,
    ) -> Tiles:
        """Tiles of neighborhood attention on the map of (B, H, W, num_heads, head_dim)."""

        def write() -> Tiles:
            rows, columns = (
                shifted_axis(side(query, axis), kernel[axis - 1], dilation[axis - 1], has_offsets)
                for axis in (1, 2)
            )
            return tiles_of(rows, columns, columns.length)

        return self._once(write, 'shifted', has_offsets, *query.shape[1:3], *kernel, *dilation)

    def _centred(self, query: Value, kernel: Sequence[int], reaches_out: bool) -> Tiles:
        """Tiles of stand-alone attention on the map of (B, H, W, num_heads, head_dim)."""

        def write() -> Tiles:
            rows, columns = (
                centred_axis(side(query, axis), kernel[axis - 1], reaches_out) for axis in (1, 2)
            )
            return tiles_of(rows, columns, columns.length + kernel[1] // 2 * 2)

        return self._once(write, 'centred', reaches_out, *query.shape[1:3], *kernel)

    def _once(self, write: Callable[[], Any], *key: object) -> Any:
        """What ``write`` returned when it was called first with this key."""
        # Sides that are symbols are equal if their formulas are.
        names = tuple(x if isinstance(x, (int, str)) else str(x) for x in key)
        if names not in self._shared:
            self._shared[names] = write()
        return self._shared[names]


def slide_attention(
    query: Value,
    key: Value,
    value: Value,
    weight: Value,
    bias: Value | None,
    position_bias: Value | None,
    scale: float,
) -> tuple[Value, Value]:
    """Tap by tap, as the reference."""
    head_dim, copies, *kernel = weight.shape
    query = query * scale
    mixes = op.Transpose(op.Reshape(weight, [head_dim, copies, -1]), perm=[2, 0, 1])
    mix = [op.Gather(mixes, tap, axis=0) for tap in range(copies)]  # each (head_dim, k * k)
    terms = [op.MatMul(query * keys, part) for keys, part in zip(taps(key, kernel), mix)]
    if bias is not None:
        terms.append(op.MatMul(query, bias))
    if position_bias is not None:
        table = op.Reshape(position_bias, [0, -1])
        terms.append(op.ReduceSum(query, [-1], keepdims=1) * table)
    weights = op.Softmax(_sum(terms), axis=-1)  # (B, H, W, num_heads, k * k)
    outputs = [
        op.MatMul(weights, op.Transpose(part)) * values
        for values, part in zip(taps(value, kernel), mix)
    ]
    if bias is not None:
        outputs.append(op.MatMul(weights, op.Transpose(bias)))
    return _sum(outputs), _nothing()


def query_and_attend(
    scores: Value,
    values: Value,
    position_bias: Value | None,
    attention_scale: Value | None,
    kernel_size: Sequence[int],
    stride: int,
) -> tuple[Value, Value]:
    """Tap by tap; the weights of all taps and queries at once."""
    every = [op.Unsqueeze(tap, [0]) for tap in taps(scores, kernel_size, stride, outside=PENALTY)]
    logits = op.Concat(*every, axis=0)  # (taps, B, H', W', num_queries, num_heads)
    if position_bias is not None:
        logits = logits + _by_tap(position_bias)
    weights = op.Softmax(logits, axis=0)
    if attention_scale is not None:
        weights = weights * _by_tap(attention_scale)
    weights = op.ReduceSum(weights, [4], keepdims=0)  # (taps, B, H', W', num_heads)
    outputs = [
        op.Unsqueeze(op.Gather(weights, index, axis=0), [-1]) * tap
        for index, tap in enumerate(taps(values, kernel_size, stride))
    ]
    return _sum(outputs), _nothing()


def taps(x: Value, kernel: Sequence[int], stride: int = 1, outside: float = 0.0) -> Iterator[Value]:
    """What each tap of a window sees of a map (B, H, W, ...), row by row: (B, H', W', ...)."""
    x = padded(x, kernel, outside)
    for tap in itertools.product(*map(range, kernel)):
        ends = [start - taps + 1 or END for start, taps in zip(tap, kernel)]
        yield op.Slice(x, list(tap), ends, [1, 2], [stride, stride])


def padded(x: Value, kernel: Sequence[int], outside: float = 0.0) -> Value:
    """A map (B, H, W, num_heads, head_dim) with what windows see around it."""
    pads = [0, kernel[0] // 2, kernel[1] // 2, 0, 0]
    return op.Pad(x, pads * 2, outside)


def _by_tap(table: Value) -> Value:
    """(num_queries, num_heads, kh, kw) to (kh * kw, 1, 1, 1, num_queries, num_heads)."""
    taps_first = op.Transpose(op.Reshape(table, [0, 0, -1]), perm=[2, 0, 1])
    return op.Unsqueeze(taps_first, [1, 2, 3])


def _sum(terms: Sequence[Value]) -> Value:
    result, *others = terms
    for term in others:
        result = op.Add(result, term)
    return result


def _nothing() -> Value:
    """For an output of which nothing is used."""
    return op.Constant(value_float=0.0)


def _rotated(x: Value, sin: Value, cos: Value, head_dim: int) -> Value:
    """As :func:`~mmlocalattn.ops.sparse_scan.rotate_pairs`, of (B, num_heads, H * W, head_dim)."""
    swap = torch.zeros(head_dim, head_dim)
    even = torch.arange(0, head_dim, 2)
    swap[even + 1, even], swap[even, even + 1] = -1.0, 1.0
    sin, cos = (op.Reshape(table, [-1, head_dim]) for table in (sin, cos))
    return x * cos + op.MatMul(x, op.Constant(value=onnx_ir.tensor(swap.numpy()))) * sin


def adaptive_average(x: Value, output_size: Sequence[int]) -> Value:
    """``aten._adaptive_avg_pool2d`` as two products, for maps of any size.

    Args:
        x: (B, C, H, W).
        output_size: (h, w).

    Returns:
        (B, C, h, w).
    """
    rows, columns = (_cells(side(x, axis), output_size[axis - 2]) for axis in (2, 3))
    return op.MatMul(op.MatMul(rows, x), op.Transpose(columns))


def _cells(length: Number, cells: int) -> Value:
    """(cells, length): the weight of each position in the average of each cell."""
    position, cell = count(length), last(count(cells))
    begin, end = divide(cell * length, cells), divide((cell + 1) * length - 1, cells)
    is_inside = op.And(op.GreaterOrEqual(position, begin), op.LessOrEqual(position, end))
    weights = op.Where(is_inside, 1.0, 0.0)
    return op.Div(weights, op.ReduceSum(weights, [1], keepdims=1))


def detection_translations(program: torch.export.ExportedProgram) -> Mapping:
    """Those of the operators of whole detectors, which need torchvision, where there are any."""
    namespaces = {getattr(node.target, 'namespace', None) for node in program.graph.nodes}
    if 'mmlocalattn_export' not in namespaces:
        return {}
    from mmlocalattn.export.detectors.onnx_functions import TRANSLATIONS

    return TRANSLATIONS


def _alone(write: Callable) -> Callable:
    """The form of an operator that shares nothing."""
    return lambda graph, *arguments: write(*arguments)


OPERATORS: Mapping[str, Callable] = {
    'neighborhood_attention': Graph.neighborhood_attention,
    'sparse_scan_attention': Graph.sparse_scan_attention,
    'slide_attention': _alone(slide_attention),
    'query_and_attend': _alone(query_and_attend),
    'stand_alone_attention': Graph.stand_alone_attention,
}
"""How a graph gets each operator."""


def convert(
    program: torch.export.ExportedProgram, output_names: Sequence[str] | None = None
) -> torch.onnx.ONNXProgram:
    """An exported program in plain ONNX operators; the input is named ``image``.

    Args:
        program: Of a model.
        output_names: Of its outputs, if they have names.

    Raises:
        ValueError: If it has an operator of this package without an ONNX form.
    """
    for node in program.graph.nodes:
        is_ours = getattr(node.target, 'namespace', None) == 'mmlocalattn'
        if is_ours and node.target._opname not in OPERATORS:
            raise ValueError(f'{node.target} has no ONNX form: OPERATORS has no entry for it')
    graph = Graph()
    aten = torch.ops.aten
    ours = {
        getattr(torch.ops.mmlocalattn, name).default: _unannotated(write, graph)
        for name, write in OPERATORS.items()
    }
    onnx_program = torch.onnx.export(
        program,
        input_names=['image'],
        output_names=output_names,
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
        optimize=False,
        custom_translation_table={
            **ours,
            **detection_translations(program),
            aten.adaptive_avg_pool2d.default: _unannotated(adaptive_average),
            aten._adaptive_avg_pool2d.default: _unannotated(adaptive_average),
        },
    )
    assert onnx_program is not None
    _fold(onnx_program.model)
    return onnx_program


def _fold(model: onnx_ir.Model) -> None:
    """Compute what does not depend on the image, keep one of what is there twice.

    The exporter's own optimizer also looks for 200 patterns, which takes most of its time and finds
    what runtimes find themselves.
    """
    passes.InlinePass()(model)
    optimizer.fold_constants(model, output_size_limit=FOLDED)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.LiftSubgraphInitializersToMainGraphPass()(model)
    passes.DeduplicateInitializersPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.NameFixPass()(model)


def _unannotated(write: Callable, *first: object) -> Callable:
    """Without annotations, which the exporter would take for those of onnxscript."""
    return lambda *arguments: write(*first, *arguments)
