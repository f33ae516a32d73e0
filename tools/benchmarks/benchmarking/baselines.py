"""Other ways to compute neighborhood attention, to measure the operator against.

A way takes a :class:`Problem`, prepares what does not depend on the tensors (index tables, masks,
compiled functions), and returns a function of query, key, value, each (B, H, W, heads, head_dim),
and bias or None.
"""

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil, prod
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlocalattn.ops._window import window_indices
from mmlocalattn.ops.flops import multiply_adds
from mmlocalattn.ops.neighborhood import neighborhood_attention, neighborhood_attention_reference

if TYPE_CHECKING:  # in torch since 2.5
    from torch.nn.attention.flex_attention import BlockMask

Attend = Callable[..., Tensor]
"""Of the tensors of a case; here query, key, value, and bias or None."""


class Unavailable(Exception):
    """A way that cannot go here; the message says why."""


@dataclass(frozen=True)
class Problem:
    """One neighborhood attention."""

    batch: int
    height: int
    width: int
    heads: int
    head_dim: int
    kernel: tuple[int, int]
    dilation: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    bias: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.batch, self.height, self.width, self.heads, self.head_dim

    @property
    def options(self) -> dict[str, Any]:
        """Of its tensors."""
        return dict(dtype=self.dtype, device=self.device)

    @property
    def positions(self) -> int:
        return self.height * self.width

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5

    @property
    def gflop(self) -> float:
        """Useful work of a forward pass."""
        return 2 * multiply_adds(self.shape, self.kernel) / 1e9

    def axis_windows(self) -> tuple[Tensor, Tensor]:
        """Rows (H, kh) and columns (W, kw) that each position sees."""
        rows, columns = (
            window_indices(length, kernel, dilation, self.device)
            for length, kernel, dilation in zip(self.shape[1:3], self.kernel, self.dilation)
        )
        return rows, columns

    def windows(self) -> Tensor:
        """(H * W, kh * kw) positions that each position sees."""
        rows, columns = self.axis_windows()
        index = rows[:, None, :, None] * self.width + columns[None, :, None, :]
        return index.reshape(self.positions, self.taps)

    def bias_entries(self) -> Tensor:
        """(H * W, kh * kw) entries of the flat bias table that belong to :meth:`windows`."""
        row, column = (
            (taps - torch.arange(len(taps), device=self.device)[:, None]) // dilation + kernel - 1
            for taps, dilation, kernel in zip(self.axis_windows(), self.dilation, self.kernel)
        )
        index = row[:, None, :, None] * (2 * self.kernel[1] - 1) + column[None, :, None, :]
        return index.reshape(self.positions, self.taps)


def window_bias(bias: Tensor, entries: Tensor) -> Tensor:
    """(heads, H * W, kh * kw) biases of the windows.

    Every entry of the table is used by all positions; its gradient is summed in float32 at least.
    """
    wide = bias.to(torch.promote_types(bias.dtype, torch.float32))
    return wide.flatten(1)[:, entries].to(bias.dtype)


def ours(problem: Problem) -> Attend:
    return lambda query, key, value, bias: neighborhood_attention(
        query, key, value, problem.kernel, problem.dilation, bias
    )


def reference(problem: Problem) -> Attend:
    """The PyTorch reference, with autograd's backward pass."""
    window = problem.kernel, problem.dilation, problem.scale
    return lambda query, key, value, bias: neighborhood_attention_reference(
        query, key, value, bias, *window
    )[0]


def unfold(problem: Problem) -> Attend:
    """Copies every window of keys and values, then multiplies matrices."""
    windows = problem.windows()
    entries = problem.bias_entries() if problem.bias else None

    def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        query, key, value = map(heads_first, (query, key, value))
        keys, values = (
            tensor.index_select(2, windows.flatten()).unflatten(2, windows.shape)
            for tensor in (key, value)
        )  # (B, heads, H * W, taps, head_dim)
        logits = (keys @ (query * problem.scale)[..., None]).squeeze(-1)
        if bias is not None:
            assert entries is not None
            logits = logits + window_bias(bias, entries)
        output = (logits.softmax(-1)[..., None, :] @ values).squeeze(-2)
        return heads_last(output, problem)

    return attend


def sdpa(problem: Problem) -> Attend:
    """PyTorch's attention of all positions to all, under a dense mask."""
    windows = problem.windows()
    square = problem.positions, problem.positions
    mask = torch.zeros(square, dtype=torch.bool, device=problem.device).scatter_(1, windows, True)
    entries = problem.bias_entries() if problem.bias else None

    def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        query, key, value = map(heads_first, (query, key, value))
        addend = mask
        if bias is not None:
            assert entries is not None
            values = window_bias(bias, entries)
            addend = values.new_full((problem.heads, *square), -torch.inf)
            addend = addend.scatter(2, windows.expand_as(values), values)
        output = F.scaled_dot_product_attention(query, key, value, addend, scale=problem.scale)
        return heads_last(output, problem)

    return attend


def flex(problem: Problem, tile: tuple[int, int] | None = None) -> Attend:
    """Compiled FlexAttention.

    Args:
        problem: What to compute.
        tile: Order the tokens by tiles of this (height, width) instead of row by row; see
            :class:`TokenOrder`. Bringing them into order and back is part of what is timed.
    """
    if importlib.util.find_spec('torch.nn.attention') is None:
        raise Unavailable('needs torch 2.5')
    from torch.nn.attention.flex_attention import flex_attention

    if problem.bias:
        raise Unavailable('not written for a position bias')
    # Every problem is a compilation of its own; past the limit all of them would run uncompiled.
    torch._dynamo.config.recompile_limit = 10_000
    torch._dynamo.config.accumulated_recompile_limit = 10_000
    tokens = TokenOrder(problem, tile)
    block_mask = tokens.block_mask()
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False, fullgraph=True)

    def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        query, key, value = (tokens.sort(tensor).transpose(1, 2) for tensor in (query, key, value))
        output = compiled(query, key, value, block_mask=block_mask, scale=problem.scale)
        return tokens.unsort(output.transpose(1, 2))

    return attend


class TokenOrder:
    """Positions of a map as a sequence: row by row, or tile by tile.

    By tiles means that each dilation group, whose positions see nothing of the others, is a map of
    its own, padded to whole tiles.
    """

    BLOCK = 128  # of FlexAttention's masks

    def __init__(self, problem: Problem, tile: tuple[int, int] | None) -> None:
        self.problem = problem
        self.tile = tile
        if tile is None:
            self.length = problem.positions
            return
        axes = zip(problem.shape[1:3], problem.dilation, tile)
        self.tiles = [ceil(ceil(length / dilation) / side) for length, dilation, side in axes]
        self.length = prod(problem.dilation) * prod(self.tiles) * prod(tile)
        row, column = self.place(torch.arange(self.length, device=problem.device))
        inside = (row < problem.height) & (column < problem.width)
        position = row * problem.width + column
        self.order = torch.where(inside, position, 0)
        self.inverse = inside.nonzero().squeeze(1)[position[inside].argsort()]

    def place(self, token: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column of a token; outside the map for padding."""
        if self.tile is None:
            return token // self.problem.width, token % self.problem.width
        inner, token = token % prod(self.tile), token // prod(self.tile)
        block, group = token % prod(self.tiles), token // prod(self.tiles)
        row = block // self.tiles[1] * self.tile[0] + inner // self.tile[1]
        column = block % self.tiles[1] * self.tile[1] + inner % self.tile[1]
        dilation = self.problem.dilation
        return row * dilation[0] + group // dilation[1], column * dilation[1] + group % dilation[1]

    def sort(self, tensor: Tensor) -> Tensor:
        """(B, H, W, heads, head_dim) to (B, tokens, heads, head_dim)."""
        tensor = tensor.flatten(1, 2)
        return tensor if self.tile is None else tensor.index_select(1, self.order)

    def unsort(self, tensor: Tensor) -> Tensor:
        tensor = tensor if self.tile is None else tensor.index_select(1, self.inverse)
        return tensor.unflatten(1, self.problem.shape[1:3])

    def mask_mod(self, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        rows, columns = zip(self.place(query), self.place(key))
        return self.sees(rows, 0) & self.sees(columns, 1)

    def sees(self, pair: tuple[Tensor, Tensor], axis: int) -> Tensor:
        """Whether the first position along an axis sees the second."""
        query, key = pair
        length = self.problem.shape[1 + axis]
        kernel, dilation = self.problem.kernel[axis], self.problem.dilation[axis]
        group = query % dilation
        last_start = (length - group + dilation - 1) // dilation - kernel
        start = torch.minimum((query // dilation - kernel // 2).clamp(min=0), last_start)
        tap = key // dilation - start
        return (key % dilation == group) & (tap >= 0) & (tap < kernel)

    def block_mask(self) -> 'BlockMask':
        """The blocks that are seen in part and in whole, without the dense mask."""
        from torch.nn.attention.flex_attention import BlockMask

        places = self.place(torch.arange(self.length, device=self.problem.device))
        tables = []
        for axis, place in enumerate(places):
            line = torch.arange(int(place.max()) + 1, device=place.device)
            tables.append(self.sees((line[:, None], line), axis))
        pad = -self.length % self.BLOCK
        counts = []
        for block in torch.arange(self.length, device=self.problem.device).split(self.BLOCK):
            row, column = (table[place[block]][:, place] for table, place in zip(tables, places))
            seen = F.pad((row & column).sum(0), (0, pad))
            counts.append(seen.view(-1, self.BLOCK).sum(1))
        count = torch.stack(counts)[None, None]
        in_part, whole = (
            (kind.sum(-1).int(), kind.int().argsort(dim=-1, descending=True, stable=True).int())
            for kind in ((count > 0) & (count < self.BLOCK**2), count == self.BLOCK**2)
        )
        lengths = self.length, self.length
        return BlockMask.from_kv_blocks(
            *in_part, *whole, BLOCK_SIZE=self.BLOCK, mask_mod=self.mask_mod, seq_lengths=lengths
        )


def natten(problem: Problem) -> Attend:
    """NATTEN, whichever it is: the unfused operators up to 0.17.4, na2d from 0.17 on."""
    try:
        import natten as package
        from natten import functional
    except ImportError as error:
        raise Unavailable(f'natten does not import: {error}') from None
    window = dict(kernel_size=problem.kernel, dilation=problem.dilation)
    fused = getattr(functional, 'na2d', None)
    if hasattr(functional, 'natten2dqkrpb') and (fused is None or problem.device.type == 'cpu'):
        if len(set(problem.kernel)) > 1 or len(set(problem.dilation)) > 1:
            raise Unavailable(f'natten {package.__version__} has square windows only')
        return partial(_natten_unfused, functional, problem)
    if fused is None:
        raise Unavailable(f'natten {package.__version__} has no known two-dimensional operator')
    takes_bias = 'rpb' in inspect.signature(fused).parameters
    if problem.bias and not takes_bias:
        raise Unavailable(f'natten {package.__version__} has no position bias')

    def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        extra = {} if bias is None else dict(rpb=bias)
        return fused(query, key, value, scale=problem.scale, **window, **extra)

    return attend


def _natten_unfused(
    functional: ModuleType,
    problem: Problem,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
) -> Tensor:
    window = problem.kernel[0], problem.dilation[0]
    query, key, value = (t.permute(0, 3, 1, 2, 4).contiguous() for t in (query, key, value))
    logits = functional.natten2dqkrpb(query * problem.scale, key, bias, *window)
    return functional.natten2dav(logits.softmax(-1), value, *window).permute(0, 2, 3, 1, 4)


def heads_first(tensor: Tensor) -> Tensor:
    """(B, H, W, heads, head_dim) to (B, heads, H * W, head_dim)."""
    return tensor.permute(0, 3, 1, 2, 4).flatten(2, 3)


def heads_last(tensor: Tensor, problem: Problem) -> Tensor:
    """(B, heads, H * W, head_dim) to (B, H, W, heads, head_dim)."""
    return tensor.unflatten(2, problem.shape[1:3]).permute(0, 2, 3, 1, 4)


WAYS: dict[str, Callable[[Problem], Attend]] = {
    'ours': ours,
    'reference': reference,
    'unfold': unfold,
    'sdpa': sdpa,
    'flex': flex,
    'flex-tiled': partial(flex, tile=(8, 16)),
    'natten': natten,
}


def scratch_bytes(name: str, problem: Problem, backward: bool) -> int:
    """A low estimate of the memory that a way needs beside its inputs and outputs."""
    scores = problem.batch * problem.heads * problem.positions * problem.taps
    copies = scores * problem.head_dim  # every window of one tensor
    size = problem.dtype.itemsize
    squares = problem.positions**2 * (problem.heads if problem.bias else 1)
    return {
        'reference': 8 * scores + 2 * 4 * copies * backward,
        'unfold': 2 * size * copies * (1 + backward),
        'sdpa': squares * (1 + size),
        'natten': 2 * size * scores,
    }.get(name, 0)


def has_backward(name: str, problem: Problem) -> bool:
    """FlexAttention, which NATTEN calls there too, is for inference only on the CPU."""
    return not (name.startswith(('flex', 'natten')) and problem.device.type == 'cpu')
