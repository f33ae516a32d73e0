"""Loops over rows of tiles, as ONNX functions: what a row needs stays in the cache.

Logits are kept above the largest of their query less 64. Below that a weight is 1e-28 of the
largest, and soon a denormal number, with which sums take ten times as long.
"""

# mypy: ignore-errors
# (What onnxscript compiles is ONNX in the syntax of Python, and not Python by its types.)

import onnxscript
from onnxscript import BOOL, FLOAT, INT64
from onnxscript import opset18 as op

DOMAIN = onnxscript.values.Opset('mmlocalattn', 1)


@onnxscript.script(DOMAIN, default_opset=op)
def attend_by_rows(
    query: FLOAT[...],
    key: FLOAT[...],
    value: FLOAT[...],
    queries: INT64[...],
    keys: INT64[...],
    row_penalty: FLOAT[...],
    added: FLOAT[...],
) -> FLOAT[...]:
    """Attention in tiles, given as positions in flat maps.

    Args:
        query: (B, num_heads, H * W, head_dim), with the scale.
        key: Likewise.
        value: Likewise.
        queries: (n, m, q) positions.
        keys: (n, m, u) positions.
        row_penalty: (n, 1, q, u), added to the logits of a row of tiles.
        added: (num_heads or 1, m, q, u), added to the logits of all.

    Returns:
        (n, B, num_heads, m, q, head_dim).
    """

    @onnxscript.graph()
    def row(i: INT64, goes_on: BOOL):  # noqa: ANN202 (onnxscript takes it for the outer one)
        query_index, key_index = op.Gather(queries, i), op.Gather(keys, i)
        penalty = op.Gather(row_penalty, i)
        tile_queries = op.Gather(query, query_index, axis=2)  # (B, heads, m, q, head_dim)
        tile_keys = op.Gather(key, key_index, axis=2)  # (B, heads, m, u, head_dim)
        tile_values = op.Gather(value, key_index, axis=2)
        logits = op.MatMul(tile_queries, op.Transpose(tile_keys, perm=[0, 1, 2, 4, 3]))
        logits = op.Add(op.Add(logits, added), penalty)
        least = op.Sub(op.ReduceMax(logits, [-1], keepdims=1), 64.0)
        output = op.MatMul(op.Softmax(op.Max(logits, least), axis=-1), tile_values)
        return op.Identity(goes_on), output

    number = op.Squeeze(op.Shape(keys, start=0, end=1))
    return op.Loop(number, True, body=row)


@onnxscript.script(DOMAIN, default_opset=op)
def attend_to_tagged(
    queries: FLOAT[...],
    key: FLOAT[...],
    value: FLOAT[...],
    keys: INT64[...],
    is_at: FLOAT[...],
) -> FLOAT[...]:
    """The same with channels that tell where in its tile a key is.

    Args:
        queries: (n, B, num_heads, m, q, head_dim and the rest) in tiles.
        key: (B, num_heads, H * W, head_dim and the rest), which is 0.
        value: (B, num_heads, H * W, head_dim).
        keys: (n, m, u) positions.
        is_at: (u, head_dim and the rest), added to the keys of every tile.

    Returns:
        (n, B, num_heads, m, q, head_dim).
    """

    @onnxscript.graph()
    def row(i: INT64, goes_on: BOOL):  # noqa: ANN202 (onnxscript takes it for the outer one)
        tile_queries, key_index = op.Gather(queries, i), op.Gather(keys, i)
        tile_keys = op.Add(op.Gather(key, key_index, axis=2), is_at)
        tile_values = op.Gather(value, key_index, axis=2)
        logits = op.MatMul(tile_queries, op.Transpose(tile_keys, perm=[0, 1, 2, 4, 3]))
        least = op.Sub(op.ReduceMax(logits, [-1], keepdims=1), 64.0)
        output = op.MatMul(op.Softmax(op.Max(logits, least), axis=-1), tile_values)
        return op.Identity(goes_on), output

    number = op.Squeeze(op.Shape(keys, start=0, end=1))
    return op.Loop(number, True, body=row)
