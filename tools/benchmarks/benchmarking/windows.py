"""What bench_windows.py times: ways to attend, the check of each, measuring, tables and a plot."""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarking.baselines import heads_first
from benchmarking.report import PASSES, digits
from benchmarking.timing import Run, free_memory, peak_memory, time_in_turns
from mmlocalattn.files import whole_file
from mmlocalattn.ops.neighborhood import neighborhood_attention, neighborhood_attention_reference
from mmlocalattn.ops.query_and_attend import query_and_attend, query_and_attend_reference
from mmlocalattn.tables import markdown_table

OURS = 'query_and_attend'
QUANTITIES = (('seconds', 1e3, 'ms'), ('peak_bytes', 1e-6, 'MB'))


@dataclass(frozen=True)
class Setting:
    """The map, and what attends to it."""

    height: int
    width: int
    heads: int
    head_dim: int
    queries: int
    window: int
    dtype: torch.dtype
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        return 1, self.height, self.width, self.heads, self.head_dim

    def tensors(self) -> list[Tensor]:
        """Query, key, value; scores, position bias and attention scale of query_and_attend."""
        tables = (self.queries, self.heads, self.window, self.window)
        shapes = (*[self.shape] * 3, (*self.shape[:3], self.queries, self.heads), tables, tables)
        return [torch.randn(shape, dtype=self.dtype, device=self.device) for shape in shapes]

    def window_bytes(self) -> int:
        """Of a copy of every window of a map."""
        return self.dtype.itemsize * torch.Size(self.shape).numel() * self.window**2


class Way(NamedTuple):
    """One way to attend: of a setting and the tensors that `uses` names by index.

    Attributes:
        uses: Indices of `Setting.tensors`.
        run: What is timed.
        definition: The same another way, for small maps.
        copies: Copies of every window that a forward pass holds at a time.
    """

    uses: tuple[int, ...]
    run: Callable[..., Tensor]
    definition: Callable[..., Tensor]
    copies: int = 0


def ours(setting: Setting, scores: Tensor, values: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    return query_and_attend(scores, values, bias, scale, setting.window)


def depthwise(
    setting: Setting, scores: Tensor, values: Tensor, bias: Tensor, scale: Tensor
) -> Tensor:
    """Query and attend as its authors compute it: a quotient of two depthwise convolutions of
    exponentials, which overflow where scores are large."""
    queries, heads, dim = setting.queries, setting.heads, setting.head_dim
    exponentials = scores.permute(0, 3, 4, 1, 2).exp()  # (B, num_queries, num_heads, H, W)
    weighted = exponentials[:, :, :, None] * values.permute(0, 3, 4, 1, 2)[:, None]
    factors = bias.exp()
    kernels = (factors * scale).flatten(0, 1)[:, None, None].expand(-1, dim, -1, -1, -1)
    padding, groups = setting.window // 2, queries * heads
    numerators = F.conv2d(
        weighted.flatten(1, 3), kernels.flatten(0, 1), padding=padding, groups=groups * dim
    )
    denominators = F.conv2d(
        exponentials.flatten(1, 2), factors.flatten(0, 1)[:, None], padding=padding, groups=groups
    )
    shape = (1, queries, heads, dim, setting.height, setting.width)
    quotients = numerators.view(shape) / denominators.view(1, queries, heads, 1, *shape[-2:])
    return quotients.sum(1).permute(0, 3, 4, 1, 2)


def query_and_attend_definition(
    setting: Setting, scores: Tensor, values: Tensor, bias: Tensor, scale: Tensor
) -> Tensor:
    window = (setting.window, setting.window)
    return query_and_attend_reference(scores, values, bias, scale, window, 1)[0]


def unfold(setting: Setting, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Stand-alone attention: copies every window of keys and values, then multiplies."""
    window = setting.window

    def windows(map_: Tensor) -> Tensor:  # (B, H, W, n, d) -> (B, n, d, k * k, H * W)
        channels_first = map_.flatten(3).permute(0, 3, 1, 2)
        copies = F.unfold(channels_first, window, padding=window // 2)
        return copies.view(1, setting.heads, setting.head_dim, window**2, -1)

    inside = query.new_ones(1, 1, setting.height, setting.width)
    outside = F.unfold(inside, window, padding=window // 2) == 0  # (1, k * k, H * W)
    query = query.permute(0, 3, 4, 1, 2).flatten(3) * setting.head_dim**-0.5
    logits = (query[:, :, :, None] * windows(key)).sum(2)
    weights = logits.masked_fill(outside[:, None], float('-inf')).softmax(2)
    output = (weights[:, :, None] * windows(value)).sum(3)  # (B, n, d, H * W)
    return output.permute(0, 3, 1, 2).view(setting.shape)


def dense(sees: Callable[[Setting, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Attention of all positions to all, under a mask."""

    def attend(setting: Setting, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        index = torch.arange(setting.height * setting.width, device=query.device)
        row, col = index // setting.width, index % setting.width
        mask = sees(setting, row[:, None], row) & sees(setting, col[:, None], col)
        output = F.scaled_dot_product_attention(
            heads_first(query), heads_first(key), heads_first(value), mask
        )
        return output.transpose(1, 2).reshape(setting.shape)

    return attend


def sees_window_around(setting: Setting, query: Tensor, key: Tensor) -> Tensor:
    return (query - key).abs() <= setting.window // 2


def sees_own_window(setting: Setting, query: Tensor, key: Tensor) -> Tensor:
    return query // setting.window == key // setting.window


def neighborhood(setting: Setting, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return neighborhood_attention(query, key, value, setting.window)


def neighborhood_definition(setting: Setting, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    window = (setting.window, setting.window)
    scale = setting.head_dim**-0.5
    return neighborhood_attention_reference(query, key, value, None, window, (1, 1), scale)[0]


def swin(setting: Setting, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Window attention of Swin without a shift; windows that reach over the end are padded."""
    window = setting.window
    bottom, right = -setting.height % window, -setting.width % window

    def partition(map_: Tensor) -> Tensor:  # (windows, num_heads, window * window, head_dim)
        map_ = F.pad(map_, (0, 0, 0, 0, 0, right, 0, bottom))
        parts = map_.unflatten(2, (-1, window)).unflatten(1, (-1, window)).transpose(2, 3)
        return parts.flatten(0, 2).flatten(1, 2).transpose(1, 2)

    mask = None
    if bottom or right:
        is_inside = partition(query.new_ones(1, *setting.shape[1:3], 1, 1)).transpose(2, 3) > 0
        mask = is_inside | ~is_inside.any(-1, keepdim=True)
    output = F.scaled_dot_product_attention(
        partition(query), partition(key), partition(value), mask
    )
    output = output.transpose(1, 2).unflatten(1, (window, window))
    output = output.unflatten(0, (1, -1, (setting.width + right) // window))
    output = output.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return output[:, : setting.height, : setting.width]


QUERY_KEY_VALUE, QNA = (0, 1, 2), (3, 2, 4, 5)
WAYS = {
    OURS: Way(QNA, ours, query_and_attend_definition),
    'depthwise convolutions': Way(QNA, depthwise, query_and_attend_definition),
    'unfold': Way(QUERY_KEY_VALUE, unfold, dense(sees_window_around), copies=2),
    'neighborhood_attention': Way(QUERY_KEY_VALUE, neighborhood, neighborhood_definition),
    'Swin windows': Way(QUERY_KEY_VALUE, swin, dense(sees_own_window)),
}


def make_setting(args: argparse.Namespace, window: int) -> Setting:
    return Setting(
        args.height,
        args.width,
        args.heads,
        args.head_dim,
        args.queries,
        window,
        getattr(torch, args.dtype),
        args.device,
    )


def check_all(args: argparse.Namespace) -> None:
    """Compare every way with its definition.

    Raises:
        SystemExit: If it gives another result.
    """
    setting = Setting(17, 13, 2, 8, args.queries, 5, torch.float32, args.device)
    tensors = setting.tensors()
    for name in args.ways:
        way = WAYS[name]
        chosen = [tensors[index] for index in way.uses]
        output, truth = (attend(setting, *chosen) for attend in (way.run, way.definition))
        error = ((output - truth).abs().max() / truth.abs().max()).item()
        if not error < 1e-4:  # NaN is an error too
            raise SystemExit(f'error: {name} is off by {error:.1e} of its largest value')


def make_run(setting: Setting, way: Way, tensors: Sequence[Tensor], backward: bool) -> Run:
    chosen = [tensors[index] for index in way.uses]
    if not backward:
        return lambda: way.run(setting, *chosen)
    leaves = [tensor.detach().requires_grad_() for tensor in chosen]
    grad = torch.randn_like(tensors[2])
    return lambda: torch.autograd.grad(way.run(setting, *leaves), leaves, grad)


def measure(setting: Setting, args: argparse.Namespace) -> list[dict]:
    """Time all ways of one window in turns; one record per way and pass."""
    tensors, records, runs = setting.tensors(), [], []
    for name in args.ways:
        way = WAYS[name]
        for backward, title in PASSES.items():
            if backward and args.forward_only:
                continue
            record = {'window': setting.window, 'way': name, 'pass': title}
            records.append(record)
            need = way.copies * (2 if backward else 1) * setting.window_bytes()
            free = free_memory(args.device)
            if free is not None and need > 0.8 * free:
                record['skipped'] = f'needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free'
            else:
                runs.append(make_run(setting, way, tensors, backward))
    timed = [record for record in records if 'skipped' not in record]
    samples = time_in_turns(runs, args.device, args.rounds)
    for record, run, seconds in zip(timed, runs, samples):
        record |= {
            'seconds': statistics.median(seconds),
            'samples': seconds,
            'peak_bytes': peak_memory(run, args.device),
        }
    return records


def table(records: list[dict], title: str) -> None:
    """Milliseconds and peak memory of a pass: a row per window, a column per way."""
    chosen = {(r['window'], r['way']): r for r in records if r['pass'] == title}
    ways = list(dict.fromkeys(way for _, way in chosen))
    rows = []
    for window in dict.fromkeys(window for window, _ in chosen):
        ours = chosen[window, OURS]
        rows.append([str(window), *(cell(chosen[window, way], ours) for way in ways)])
    print(f'\n{title}: milliseconds, extra memory (how many times those of {OURS})')
    print(markdown_table(('window', *ways), rows))


def cell(record: dict, ours: dict) -> str:
    if 'skipped' in record:
        return record['skipped']
    texts = []
    for number, factor, unit in QUANTITIES:
        if record[number] is not None:
            ratio = record[number] / ours[number] if ours[number] else float('nan')
            text = f'{digits(record[number] * factor)} {unit}'
            texts.append(text if record is ours else f'{text} ({digits(ratio)}x)')
    return ', '.join(texts)


def draw(records: list[dict], path: Path) -> None:
    """Lines over the window size: time and memory in rows, a column per pass."""
    from matplotlib.figure import Figure

    passes = list(dict.fromkeys(record['pass'] for record in records))
    figure = Figure((7 * len(passes), 8), layout='constrained')
    grid = figure.subplots(2, len(passes), squeeze=False)
    for line, (number, factor, unit) in zip(grid, QUANTITIES):
        for axes, title in zip(line, passes):
            for way in WAYS:
                points = [
                    (record['window'], record[number] * factor)
                    for record in records
                    if (record['pass'], record['way']) == (title, way) and record.get(number)
                ]
                if points:
                    axes.plot(*zip(*points), marker='o', label=way)
            axes.set(title=title, xlabel='window', ylabel=unit, yscale='log')
            axes.set_xticks(sorted({record['window'] for record in records}))
            axes.legend(fontsize='small')
    with whole_file(path) as partial:
        figure.savefig(partial, format='png', dpi=120)
    print(path)
