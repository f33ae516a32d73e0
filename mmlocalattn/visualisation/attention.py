"""Where local attention looks: the weights of the operators in a backbone, for chosen queries.

The operators never hold their weights. Here the arguments of every call are recorded while an image
passes, so that the weights are those of the layer's own queries and keys; one function per operator
computes them for single queries, by the formula of the operator's docstring.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from mmlocalattn.ops._window import window_indices
from mmlocalattn.ops.sparse_scan import rotate_pairs

CHUNK = 512  # queries whose windows of keys are held at once


class Step(NamedTuple):
    """One softmax: what the queries take from which positions.

    A query in row y and column x sees the positions ``rows[y]`` x ``columns[x]``.

    Attributes:
        rows: (H', kh), -1 outside the map.
        columns: (W', kw), -1 outside the map.
        weigh: Weights (Q, num_heads, kh, kw) of the queries in given rows (Q,) and columns (Q,).
            See :meth:`weights`.
    """

    rows: Tensor
    columns: Tensor
    weigh: Callable[[Tensor, Tensor], Tensor]

    @torch.no_grad()
    def weights(self, queries: Tensor) -> Tensor:
        """Weights (Q, num_heads, kh, kw) of the queries at (row, column), (Q, 2) int64."""
        return torch.cat([self.weigh(*chunk.T) for chunk in queries.split(CHUNK)])


@dataclass(frozen=True)
class Attention:
    """The attention of one layer on one image.

    Attributes:
        stage: Number of the stage.
        block: Number of the block, or ``'down'`` for the step down to the stage.
        operator: Name of the operator, such as ``'slide_attention'``.
        caption: What a query sees, in words.
        arguments: Of the operator, by name; the batch is one image.
        output: Of the operator, (1, H', W', num_heads, head_dim).
        steps: One; or two, when queries read positions (anchors) that have read windows before.
        size: (height, width) of the map of keys and values.
    """

    stage: int
    block: str
    operator: str
    caption: str
    arguments: Mapping[str, Any]
    output: Tensor
    steps: tuple[Step, ...]
    size: tuple[int, int]

    @property
    def num_heads(self) -> int:
        """Attention heads."""
        return self.output.shape[3]

    @property
    def query_size(self) -> tuple[int, int]:
        """(height, width) of the map of queries: less than ``size`` if the layer has a stride."""
        return self.steps[0].rows.shape[0], self.steps[0].columns.shape[0]

    @property
    def is_signed(self) -> bool:
        """Whether weights can be negative: query and attend scales them after the softmax."""
        return self.arguments.get('attention_scale') is not None

    def map(self, row: int, column: int) -> Tensor:
        """How much each position counts for one query, all steps multiplied out.

        Returns:
            (num_heads, height, width). It sums to 1 less the weight of what lies outside the map,
            unless :attr:`is_signed`.
        """
        height, width = self.size
        positions = self.output.new_tensor([[row, column]], dtype=torch.int64)
        factors = self.output.new_ones(1, self.num_heads)
        for step in self.steps:
            weights = step.weights(positions) * factors[..., None, None]
            rows, columns = step.rows[positions[:, 0]], step.columns[positions[:, 1]]
            rows = torch.where(rows < 0, height, rows)  # a last row and column for the outside
            columns = torch.where(columns < 0, width, columns)
            index = rows[:, :, None] * (width + 1) + columns[:, None]
            grid = weights.new_zeros(self.num_heads, (height + 1) * (width + 1))
            grid.index_add_(1, index.flatten(), weights.transpose(0, 1).flatten(1))
            grid = grid.view(-1, height + 1, width + 1)[:, :height, :width]
            positions = grid.any(0).nonzero()
            factors = grid[:, positions[:, 0], positions[:, 1]].T
        return grid


@torch.no_grad()
def record_attention(backbone: nn.Module, image: Tensor) -> list[Attention]:
    """Pass an image through a backbone and record what its local attention looks at.

    Args:
        backbone: With ``stages`` as in :class:`~mmlocalattn.backbones.pyramid.PyramidBackbone`.
            Its mode is left as it is.
        image: (1, 3, H, W), normalised.

    Returns:
        One entry per layer with an operator of this package, in order. Attention over the windows
        of a grid, which some backbones have in other blocks, is none.
    """
    recorder = _Recorder()
    handles = recorder.watch(backbone)
    try:
        with recorder:
            backbone(image)
    finally:
        for handle in handles:
            handle.remove()
    return recorder.records


class _Recorder(TorchDispatchMode):
    """Records the calls of the operators, and in which block of the backbone they are."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Attention] = []
        self._place = (0, '', (0, 0))  # stage, block and size of the map of the running block

    def watch(self, backbone: nn.Module) -> list[RemovableHandle]:
        return [
            module.register_forward_pre_hook(partial(self._enter, number, name))
            for number, stage in enumerate(getattr(backbone, 'stages', ()))
            for name, module in [
                ('down', stage.downsample),
                *((str(i), block) for i, block in enumerate(stage.blocks)),
            ]
        ]

    def _enter(self, stage: int, block: str, module: nn.Module, args: tuple) -> None:
        self._place = (stage, block, tuple(args[0].shape[1:3]))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        namespace, _, name = func._schema.name.partition('::')
        if namespace == 'mmlocalattn':
            if name not in FAMILIES:
                raise ValueError(f'{name} cannot be drawn: FAMILIES has no entry for it')
            arguments = dict(zip((item.name for item in func._schema.arguments), args))
            steps, caption = FAMILIES[name](arguments)
            stage, block, size = self._place
            cut = tuple(_cut(step, size) for step in steps)
            kept = output[0].clone()  # a layer behind may change it in place
            self.records.append(Attention(stage, block, name, caption, arguments, kept, cut, size))
        return output


def _cut(step: Step, size: tuple[int, int]) -> Step:
    """Treat positions that a layer appended to its map of ``size`` as outside."""
    rows, columns = (
        torch.where(index < length, index, -1)
        for index, length in zip((step.rows, step.columns), size)
    )
    return Step(rows[: size[0]], columns[: size[1]], step.weigh)


def _neighborhood(arguments: Mapping[str, Any]) -> tuple[list[Step], str]:
    query, key, bias, kernel, dilation, scale = (
        arguments[name] for name in ('query', 'key', 'bias', 'kernel_size', 'dilation', 'scale')
    )
    step = _window(query, key, bias, kernel, dilation, scale)
    return [step], f'Neighborhood attention: {_times(kernel)} positions{_apart(dilation)}'


def _sparse_scan(arguments: Mapping[str, Any]) -> tuple[list[Step], str]:
    query, key, scale = (arguments[name] for name in ('query', 'key', 'scale'))
    if arguments['sin'] is not None:
        query, key = (rotate_pairs(x, arguments['sin'], arguments['cos']) for x in (query, key))
    local, anchor, gap = (
        arguments[name] for name in ('local_kernel', 'anchor_kernel', 'anchor_dilation')
    )
    windows = _window(query, key, None, local, (1, 1), scale)
    anchors = _window(query, key, None, anchor, gap, scale)
    if max(anchor) == 1:
        return [windows], f'Sparse scan attention: the {_times(local)} window alone'
    text = f'Sparse scan attention: {_times(anchor)} anchors{_apart(gap)}'
    if max(local) == 1:
        return [anchors], f'{text}, without windows'
    return [anchors, windows], f'{text}, each with its {_times(local)} window'


def _window(
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    kernel_size: tuple[int, int],
    dilation: tuple[int, int],
    scale: float,
) -> Step:
    """One neighborhood attention, see :mod:`mmlocalattn.ops.neighborhood`."""
    rows, columns = (
        window_indices(length, kernel, step, query.device)
        for length, kernel, step in zip(query.shape[1:3], kernel_size, dilation)
    )

    def weigh(y: Tensor, x: Tensor) -> Tensor:
        taps = _gather(key, rows[y], columns[x])
        logits = scale * torch.einsum('qnd,qabnd->qnab', query[0, y, x], taps)
        if bias is not None:
            row = (rows[y] - y[:, None]) // dilation[0] + kernel_size[0] - 1
            column = (columns[x] - x[:, None]) // dilation[1] + kernel_size[1] - 1
            logits += bias[:, row[:, :, None], column[:, None]].transpose(0, 1)
        return _softmax(logits)

    return Step(rows, columns, weigh)


def _slide(arguments: Mapping[str, Any]) -> tuple[list[Step], str]:
    """Drawn at the place that a copy is shifted from; its learned kernel also sees the others."""
    query, key, weight, scale = (arguments[name] for name in ('query', 'key', 'weight', 'scale'))
    side = weight.shape[-1]
    rows, columns = (_centred(length, side, query.device) for length in query.shape[1:3])
    copies_bias: Tensor | float = 0.0  # to (copies, num_heads, head_dim)
    if arguments['bias'] is not None:
        copies_bias = copies_bias + arguments['bias'].T[:, None]
    if arguments['position_bias'] is not None:
        copies_bias = copies_bias + arguments['position_bias'].flatten(1).T[..., None]

    def weigh(y: Tensor, x: Tensor) -> Tensor:
        taps = _gather(key, rows[y], columns[x]).flatten(1, 2)
        copies = torch.einsum('qjnd,dij->qind', taps, weight.flatten(2)) + copies_bias
        logits = scale * torch.einsum('qnd,qind->qni', query[0, y, x], copies)
        return _softmax(logits.unflatten(-1, (side, side)))

    return [Step(rows, columns, weigh)], f'Slide attention: {side} x {side} shifted copies'


def _query_and_attend(arguments: Mapping[str, Any]) -> tuple[list[Step], str]:
    scores, bias, factor, kernel, stride = (
        arguments[name]
        for name in ('scores', 'position_bias', 'attention_scale', 'kernel_size', 'stride')
    )
    rows, columns = (
        _centred(length, side, scores.device, stride)
        for length, side in zip(scores.shape[1:3], kernel)
    )

    def weigh(y: Tensor, x: Tensor) -> Tensor:
        logits = _gather(scores, rows[y], columns[x]).permute(0, 3, 4, 1, 2)
        logits = logits if bias is None else logits + bias  # (Q, num_queries, num_heads, kh, kw)
        weights = _softmax(logits.masked_fill(~_inside(rows[y], columns[x])[:, None], -torch.inf))
        return (weights if factor is None else weights * factor).sum(1)

    queries = f'{scores.shape[3]} learned queries' if scores.shape[3] > 1 else '1 learned query'
    down = ', stride 2' if stride == 2 else ''
    return [Step(rows, columns, weigh)], f'Query and attend: {queries}, {_times(kernel)}{down}'


def _stand_alone(arguments: Mapping[str, Any]) -> tuple[list[Step], str]:
    query, key, row_embedding, column_embedding, kernel, zero_padding, scale = (
        arguments[name]
        for name in (
            'query',
            'key',
            'row_embedding',
            'column_embedding',
            'kernel_size',
            'zero_padding',
            'scale',
        )
    )
    rows, columns = (
        _centred(length, side, query.device) for length, side in zip(query.shape[1:3], kernel)
    )
    embedding = torch.cat(  # (num_heads, kh, kw, head_dim)
        [
            row_embedding[:, :, None].expand(-1, -1, kernel[1], -1),
            column_embedding[:, None].expand(-1, kernel[0], -1, -1),
        ],
        dim=-1,
    )

    def weigh(y: Tensor, x: Tensor) -> Tensor:
        taps = _gather(key, rows[y], columns[x]).permute(0, 3, 1, 2, 4) + embedding
        logits = scale * torch.einsum('qnd,qnabd->qnab', query[0, y, x], taps)
        if not zero_padding:
            logits = logits.masked_fill(~_inside(rows[y], columns[x]), -torch.inf)
        return _softmax(logits)

    return [Step(rows, columns, weigh)], f'Stand-alone attention: {_times(kernel)} positions'


FAMILIES: Mapping[str, Callable[[Mapping[str, Any]], tuple[list[Step], str]]] = {
    'neighborhood_attention': _neighborhood,
    'sparse_scan_attention': _sparse_scan,
    'slide_attention': _slide,
    'query_and_attend': _query_and_attend,
    'stand_alone_attention': _stand_alone,
}
"""From the arguments of an operator to its steps and what a query sees, in words."""


def _centred(length: int, kernel: int, device: torch.device, stride: int = 1) -> Tensor:
    """Positions around every ``stride``-th one of an axis, (queries, kernel), -1 outside."""
    index = torch.arange(0, length, stride, device=device)[:, None]
    index = index + torch.arange(kernel, device=device) - kernel // 2
    return torch.where((index >= 0) & (index < length), index, -1)


def _inside(rows: Tensor, columns: Tensor) -> Tensor:
    """Whether the taps of rows (Q, kh) and columns (Q, kw) are on the map, (Q, 1, kh, kw)."""
    return (rows >= 0)[:, None, :, None] & (columns >= 0)[:, None, None]


def _gather(tensor: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(1, H, W, m, n) at rows (Q, kh) and columns (Q, kw), 0 outside: (Q, kh, kw, m, n)."""
    taps = tensor[0, rows[:, :, None], columns[:, None]]  # -1 reads the last one
    return taps * _inside(rows, columns)[:, 0, ..., None, None]


def _softmax(logits: Tensor) -> Tensor:
    """Over the last two dimensions, at least in fp32."""
    compute = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(compute).flatten(-2).softmax(-1).view(logits.shape)


def _times(pair: tuple[int, int]) -> str:
    return f'{pair[0]} x {pair[1]}'


def _apart(gap: tuple[int, int]) -> str:
    if max(gap) == 1:
        return ''
    return f', {gap[0] if gap[0] == gap[1] else _times(gap)} apart'
