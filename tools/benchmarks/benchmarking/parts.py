"""Which share of a pass each part of a model takes, from PyTorch's profiler."""

import contextlib
import functools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from benchmarking.timing import Run

_LABEL = 'part: '
_METHODS = {'predict_by_feat': 'boxes and NMS', 'loss_by_feat': 'targets and losses'}
_KINDS = {  # of the operators in a backbone, by what their names hold; the first that fits
    'our attention': ('mmlocalattn::',),
    'convolutions': ('conv',),
    'linear layers': ('linear', 'mm', 'matmul', 'bmm'),
}
_REST = 'rest'


def shares_of_parts(model: nn.Module, run: Run) -> dict[str, float]:
    """The share of each part in the time of one pass on the CPU, largest first.

    Args:
        model: Of mm packages; its backbone is told apart by the kind of operator.
        run: A pass through it.

    Returns:
        Sums to 1; ``'rest'`` is what happens outside all parts.
    """
    with (
        _labelled(model),
        torch.profiler.profile() as profiler,
        torch.profiler.record_function(_LABEL + _REST),
    ):
        run()
    times: Counter[str] = Counter()
    for event in profiler.events():
        part = _part_of(event)
        if part:
            times[part] += event.self_cpu_time_total
    total = sum(times.values())
    return {part: time / total for part, time in times.most_common()}


def _part_of(event: Any) -> str | None:
    """The innermost part that an event of the profiler lies in."""
    name, node = event.name, event
    while node is not None and not node.name.startswith(_LABEL):
        node = node.cpu_parent
    if node is None:
        return None
    part = node.name.removeprefix(_LABEL)
    if part != 'backbone':
        return part
    for kind, words in _KINDS.items():
        if any(word in name for word in words):
            return f'{part}: {kind}'
    return f'{part}: {_REST}'


@contextlib.contextmanager
def _labelled(model: nn.Module) -> Iterator[None]:
    """Within it, the methods of parts write their names into the profile."""
    changed = []
    for name, module in model.named_modules():
        label = _label(name)
        if not label:
            continue
        methods = {'forward': label}
        methods |= {method: f'{label}: {what}' for method, what in _METHODS.items()}
        for method, text in methods.items():
            if hasattr(module, method):
                changed.append((module, method, vars(module).get(method)))
                setattr(module, method, _recorded(getattr(module, method), text))
    try:
        yield
    finally:
        for module, method, before in changed:
            if before is None:
                delattr(module, method)
            else:
                setattr(module, method, before)


def _label(name: str) -> str:
    """Of a module by its name in the model; empty for what is no part."""
    pieces = [piece for piece in name.split('.') if not piece.isdigit()]
    last = pieces[-1] if pieces else ''
    if last.endswith('roi_extractor'):
        return f'RoIAlign for {last.removesuffix("_roi_extractor")}'
    is_head = last.endswith('head') and last != 'roi_head'
    return last.replace('_', ' ') if is_head or last in ('backbone', 'neck') else ''


def _recorded(method: Any, label: str) -> Any:
    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.profiler.record_function(_LABEL + label):
            return method(*args, **kwargs)

    return run
