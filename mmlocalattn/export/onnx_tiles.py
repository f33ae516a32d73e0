"""Maps cut into tiles of queries with the keys that they share, in ONNX operators.

A runtime multiplies matrices well and gathers taps badly. So an axis of a map is cut into tiles of
neighboring queries, and a tile gets the union of their windows as keys; a penalty takes out the
keys that are not in the window of a query. With a dilation, tiles are cut from each dilation group.

A number is an int where it is known, and a 0-d tensor of the graph where it depends on the size of
the image.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from onnxscript import opset18

from mmlocalattn.export.onnx_loops import attend_by_rows, attend_to_tagged

op: Any = opset18
"""It also takes numbers and lists of them where its types name tensors."""

Value = Any
"""A tensor of the graph that is being written."""
Number = Any

TILE = 8
"""Queries of a tile along an axis, at most, unless one tile holds a whole group."""
PENALTY = -1e30
"""Added to the logit of a key outside the window. Finite, so that two of them are a number."""


class Axis(NamedTuple):
    """One axis of a map: n tiles of t queries and u keys."""

    length: Number
    number: Number
    """n"""
    tile: Number
    """t"""
    union: Number
    """u"""
    queries: Value
    """(n, t) positions. Some are in two tiles."""
    keys: Value
    """(n, u) positions, on the map also where no window is."""
    places: Value
    """(length,) where each position is among the n * t queries."""
    penalty: Value
    """(n, t, u), 0 for a key in the window of the query."""
    offsets: Value
    """(t, u) key minus query in taps. Where keys keep to the map it is not the same in all tiles,
    and None."""


class Tiles(NamedTuple):
    """A map of n x m tiles of q queries and u keys."""

    queries: Value
    """(n, m, q) positions in the flat map."""
    keys: Value
    """(n, m, u) positions in the flat map."""
    places: Value
    """(H, W) where each position is among the n * m * q queries."""
    row_penalty: Value
    """(n, 1, q, u)."""
    column_penalty: Value
    """(m, q, u)."""
    rows: Axis
    columns: Axis


def divide(a: Number, b: Number) -> Number:
    """``a // b`` of numbers that are not negative."""
    return a // b if isinstance(a, int) and isinstance(b, int) else op.Div(a, b)


def choose(condition: Any, a: Number, b: Number) -> Number:
    """``a if condition else b``."""
    return (a if condition else b) if isinstance(condition, bool) else op.Where(condition, a, b)


def product(*numbers: Number) -> Number:
    """Of all of them."""
    result, *others = numbers
    for number in others:
        result = result * number
    return result


def side(x: Value, axis: int) -> Number:
    """The length of an axis."""
    length = x.shape[axis]
    return length if isinstance(length, int) else op.Squeeze(op.Shape(x, start=axis, end=axis + 1))


def count(number: Number) -> Value:
    """``0, 1, ..., number - 1``."""
    return op.Range(0, number, 1)


def clamp(x: Value, most: Value) -> Value:
    """From 0 to ``most``, which may be negative: then 0."""
    return op.Max(op.Min(x, most), 0)


def last(x: Value, number: int = 1) -> Value:
    """With more dimensions at the end."""
    return op.Unsqueeze(x, list(range(-number, 0)))


def shifted_axis(length: Number, kernel: Number, dilation: Number, has_offsets: bool) -> Axis:
    """Windows that are shifted inward at the ends of a dilation group: neighborhood attention.

    Args:
        length: Of the axis, at least ``kernel * dilation``.
        kernel: Taps of a window.
        dilation: Between them.
        has_offsets: Whether :attr:`Axis.offsets` is needed. That takes larger tiles if the kernel
            is larger than a tile.
    """
    largest = divide(length - 1, dilation) + 1  # group
    tile = choose(kernel < TILE, TILE, kernel) if has_offsets else TILE
    single = largest < kernel + tile
    number = choose(single, 1, divide(largest - 1, tile) + 1)
    tile = divide(largest - 1, number) + 1
    union = choose(single, largest, tile + kernel - 1)
    reach = choose(single, 0, divide(kernel, 2))

    group = last(count(dilation))  # (dilation, 1), as are the others before there are tiles
    size = divide(length - 1 - group, dilation) + 1
    first = clamp(count(number) * tile, size - tile)  # (dilation, number): the last tile moves back
    base = first - reach if has_offsets else clamp(first - reach, size - union)
    query = op.Min(last(first) + count(tile), last(size - 1))  # (dilation, number, tile)
    key = last(base) + count(union)  # (dilation, number, union)
    start = clamp(query - divide(kernel, 2), last(size) - kernel)
    tap = op.Unsqueeze(key, [2]) - last(start)  # (dilation, number, tile, union)
    inside = op.And(op.GreaterOrEqual(tap, 0), op.Less(tap, kernel))

    position = count(length)
    cell = divide(position, dilation)
    residue = position - cell * dilation
    index = residue * number + op.Min(divide(cell, tile), number - 1)
    place = index * tile + cell - op.Gather(op.Reshape(first, [-1]), index)
    group = last(group)
    return Axis(
        length=length,
        number=dilation * number,
        tile=tile,
        union=union,
        queries=op.Reshape(query * dilation + group, [-1, tile]),
        keys=op.Reshape(clamp(key, last(size - 1)) * dilation + group, [-1, union]),
        places=place,
        penalty=op.Reshape(op.Where(inside, 0.0, PENALTY), [-1, tile, union]),
        offsets=count(union) - reach - last(count(tile)) if has_offsets else None,
    )


def centred_axis(length: Number, kernel: int, reaches_out: bool) -> Axis:
    """Windows that have their query in the middle: stand-alone attention.

    Args:
        length: Of the axis.
        kernel: Positions of a window.
        reaches_out: Whether the part of a window outside the map counts.

    Returns:
        The axis, whose keys are positions of the map with ``kernel // 2`` more on either side.
    """
    number = divide(length - 1, TILE) + 1
    tile = divide(length - 1, number) + 1
    union, reach = tile + kernel - 1, kernel // 2
    first = op.Min(count(number) * tile, length - tile)
    offsets = count(union) - reach - last(count(tile))  # (tile, union)
    inside = op.LessOrEqual(op.Abs(offsets), reach)
    key = last(first) + count(union)
    if not reaches_out:
        on_map = op.And(op.GreaterOrEqual(key, reach), op.Less(key, length + reach))
        inside = op.And(inside, op.Unsqueeze(on_map, [1]))
    position = count(length)
    index = op.Min(divide(position, tile), number - 1)
    penalty = op.Where(inside, 0.0, PENALTY)
    return Axis(
        length=length,
        number=number,
        tile=tile,
        union=union,
        queries=last(first) + count(tile),
        keys=key,
        places=index * tile + position - op.Gather(first, index),
        penalty=op.Expand(penalty, [number, 1, 1]) if reaches_out else penalty,
        offsets=offsets,
    )


def tiles_of(rows: Axis, columns: Axis, key_width: Number) -> Tiles:
    """The tiles of a map, of those of its axes; the map of keys may be wider."""
    tile = product(rows.tile, columns.tile)
    row_penalty = op.Expand(
        op.Unsqueeze(rows.penalty, [2, 4]), [columns.tile, 1, columns.union]
    )  # (n, rows, columns of queries, rows, columns of keys)
    column_penalty = op.Expand(op.Unsqueeze(columns.penalty, [1, 3]), [rows.tile, 1, rows.union, 1])
    return Tiles(
        queries=_flat(rows.queries, columns.queries, columns.length),
        keys=_flat(rows.keys, columns.keys, key_width),
        places=_places(rows, columns),
        row_penalty=op.Reshape(row_penalty, [0, 1, tile, -1]),
        column_penalty=op.Reshape(column_penalty, [0, tile, -1]),
        rows=rows,
        columns=columns,
    )


def attend(
    query: Value, key: Value, value: Value, tiles: Tiles, bias: Value | None = None
) -> Value:
    """Attention of every query to the keys of its window.

    Args:
        query: (B, num_heads, H * W, head_dim), with the scale.
        key: Likewise.
        value: Likewise.
        tiles: Of the map.
        bias: (num_heads, 1, q, u), added to the logits of every tile.

    Returns:
        (n, B, num_heads, m, q, head_dim).
    """
    added = tiles.column_penalty if bias is None else op.Add(bias, tiles.column_penalty)
    return attend_by_rows(query, key, value, tiles.queries, tiles.keys, tiles.row_penalty, added)


def attend_relatively(
    query: Value,
    key: Value,
    value: Value,
    tiles: Tiles,
    embeddings: tuple[Value, Value],
    kernel: Sequence[int],
    head_dim: int,
) -> Value:
    """Attention with an embedding of key minus query: half the channels by row, half by column.

    Args:
        query: (B, num_heads, H * W, head_dim), with the scale.
        key: Likewise, of the map of keys.
        value: Likewise.
        tiles: Whose axes have offsets.
        embeddings: (num_heads, kh, head_dim // 2) of rows and (num_heads, kw, the rest) of columns.
        kernel: (kh, kw).
        head_dim: Of all.

    Returns:
        As :func:`attend`.
    """
    rows, columns = tiles.rows, tiles.columns
    half = head_dim // 2
    parts = op.Slice(query, [0], [half], [3]), op.Slice(query, [half], [head_dim], [3])
    if not half:  # onnxruntime leaves a product over no channels as the memory was
        parts = op.Pad(parts[0], [0, 0, 0, 0, 0, 0, 0, 1]), parts[1]
        embeddings = op.Pad(embeddings[0], [0, 0, 0, 0, 0, 1]), embeddings[1]
    by_axis = [
        _by_offset(part, tiles, axis, embeddings[axis], kernel[axis])
        for axis, part in enumerate(parts)
    ]
    # They are channels of the queries beside those of the keys, which say where in a tile they are.
    number = count(product(rows.union, columns.union))
    row = last(divide(number, columns.union))
    is_at = op.Concat(
        op.Equal(count(rows.union), row),
        op.Equal(count(columns.union), last(number) - row * columns.union),
        axis=1,
    )
    more = rows.union + columns.union
    picked = op.Transpose(op.Gather(query, tiles.queries, axis=2), perm=[2, 0, 1, 3, 4, 5])
    return attend_to_tagged(
        op.Concat(picked, *by_axis, axis=-1),
        op.Pad(key, [0, 0, 0, 0, 0, 0, 0, more]),
        value,
        tiles.keys,
        op.Pad(op.Where(is_at, 1.0, 0.0), [0, head_dim, 0, 0]),
    )


def _by_offset(query: Value, tiles: Tiles, axis: int, embedding: Value, kernel: int) -> Value:
    """Products of the queries with the embeddings of an axis, and its penalties.

    Args:
        query: (B, num_heads, H * W, channels).
        tiles: Of the map.
        axis: 0 or 1.
        embedding: (num_heads, kernel, channels).
        kernel: Positions of a window along the axis.

    Returns:
        (n, B, num_heads, m, q, u of the axis).
    """
    rows, columns = tiles.rows, tiles.columns
    grid = _grid(rows.queries, columns.queries, columns.length)  # (n, m, rows, columns)
    order = ([2, 0, 1, 3], [3, 0, 1, 2])[axis]  # what has one place along the axis is together
    queries = op.Gather(query, op.Reshape(op.Transpose(grid, perm=order), [0, -1]), axis=2)
    along, across = (rows, columns) if axis == 0 else (columns, rows)
    offsets = clamp(along.offsets + kernel // 2, kernel - 1)
    table = op.Transpose(op.Gather(embedding, offsets, axis=1), perm=[0, 1, 3, 2])
    products = op.Reshape(
        op.MatMul(queries, table), [0, 0, 0, rows.number, columns.number, across.tile, -1]
    )
    penalty = op.Transpose(along.penalty, perm=[1, 0, 2])
    products = products + op.Unsqueeze(penalty, ([2, 3], [1, 3])[axis])
    order = ([3, 0, 1, 4, 2, 5, 6], [3, 0, 1, 4, 5, 2, 6])[axis]
    return op.Reshape(op.Transpose(products, perm=order), [0, 0, 0, 0, -1, along.union])


def relative_bias(table: Value, tiles: Tiles, kernel: Sequence[Number]) -> Value:
    """A bias by key minus query, for :func:`attend`.

    Args:
        table: (num_heads, 2 * kh - 1, 2 * kw - 1).
        tiles: Whose axes have offsets.
        kernel: (kh, kw).
    """
    rows, columns = (
        clamp(axis.offsets + (taps - 1), 2 * taps - 2)
        for axis, taps in zip((tiles.rows, tiles.columns), kernel)
    )
    bias = op.Gather(op.Gather(table, rows, axis=1), columns, axis=3)
    queries = product(tiles.rows.tile, tiles.columns.tile)
    return op.Reshape(op.Transpose(bias, perm=[0, 1, 3, 2, 4]), [0, 1, queries, -1])


def from_tiles(output: Value, tiles: Tiles, query: Value) -> Value:
    """(n, B, num_heads, m, q, head_dim) to (B, H, W, num_heads, head_dim), the shape of a query."""
    heads, head_dim = query.shape[3:]
    output = op.Transpose(output, perm=[1, 0, 3, 4, 2, 5])
    return op.Gather(op.Reshape(output, [0, -1, heads, head_dim]), tiles.places, axis=1)


def flat_heads(x: Value, head_dim: int) -> Value:
    """(B, H, W, num_heads, head_dim) to (B, num_heads, H * W, head_dim)."""
    return op.Reshape(op.Transpose(x, perm=[0, 3, 1, 2, 4]), [0, 0, -1, head_dim])


def _flat(rows: Value, columns: Value, width: Number) -> Value:
    """(n, a) and (m, b) to positions in the flat map, (n, m, a * b)."""
    return op.Reshape(_grid(rows, columns, width), [0, 0, -1])


def _grid(rows: Value, columns: Value, width: Number) -> Value:
    """(n, a) and (m, b) to positions in the flat map, (n, m, a, b)."""
    return op.Unsqueeze(rows * width, [1, 3]) + op.Unsqueeze(columns, [0, 2])


def _places(rows: Axis, columns: Axis) -> Value:
    """(H, W) places among the queries of all tiles, which stand tile by tile."""
    tile_row, tile_column = divide(rows.places, rows.tile), divide(columns.places, columns.tile)
    row, column = rows.places - tile_row * rows.tile, columns.places - tile_column * columns.tile
    number = op.Squeeze(op.Shape(columns.queries, start=0, end=1))
    tile = last(tile_row) * number + tile_column
    return (tile * rows.tile + last(row)) * columns.tile + column
