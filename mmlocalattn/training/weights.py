"""Loading weights into models: all of them, or those that fit with a table of the others."""

import logging
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import BaseOptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn

from mmlocalattn.converters.marks import families_of
from mmlocalattn.registry import HOOKS
from mmlocalattn.tables import markdown_table
from mmlocalattn.training.checkpoint import not_finite, read_checkpoint
from mmlocalattn.training.data_sets import check_class_order
from mmlocalattn.training.errors import RunError
from mmlocalattn.training.unreadable import use_converter, weight_names
from mmlocalattn.training.weight_files import is_local, pretrained_parts
from mmlocalattn.untrusted import check_weights

ROWS = 12  # of each kind in a table; more weights are put together by the beginnings of their names


@dataclass(frozen=True)
class Misfit:
    """What of a checkpoint and a model does not fit each other.

    Attributes:
        missing: Shapes by the names of weights that are in the model alone.
        unexpected: Shapes by the names of weights that are in the checkpoint alone.
        reshaped: Shapes in the checkpoint and in the model, by name.
    """

    missing: dict[str, str] = field(default_factory=dict)
    unexpected: dict[str, str] = field(default_factory=dict)
    reshaped: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)

    def line(self) -> str:
        """The first weight of another shape with both of them, and how many of which kind."""
        parts = []
        if self.reshaped:
            name, (there, here) = next(iter(self.reshaped.items()))
            more = len(self.reshaped) - 1
            parts.append(
                f'{name} has shape {there} in the checkpoint and {here} in the model'
                + (f', and {more} more are of another shape' if more else '')
            )
        for kind, names in (('missing', self.missing), ('unexpected', self.unexpected)):
            if names:
                parts.append(f'{len(names)} {kind}, {_first(sorted(names))}')
        return '; '.join(parts)

    def without(self, prefixes: Sequence[str]) -> 'Misfit':
        """What remains if names that begin so may be missing or left over."""
        missing, unexpected = (
            {name: shape for name, shape in weights.items() if not name.startswith(tuple(prefixes))}
            for weights in (self.missing, self.unexpected)
        )
        return Misfit(missing, unexpected, self.reshaped)

    def table(self) -> str:
        """A row for each weight that does not fit, or for several whose names begin alike."""
        rows = [
            *([name, *shapes] for name, shapes in self.reshaped.items()),
            *([name, 'missing', shape] for name, shape in _grouped(self.missing)),
            *([name, shape, 'not there'] for name, shape in _grouped(self.unexpected)),
        ]
        return markdown_table(('weights', 'checkpoint', 'model'), rows, left=3)


def _first(names: Sequence[str]) -> str:
    return 'that is ' + names[0] if len(names) == 1 else 'the first ' + ', '.join(names[:3])


def _grouped(shapes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names and shapes, or beginnings of names and numbers of weights if there are many."""
    depth = max((name.count('.') for name in shapes), default=0) + 1
    groups = set(shapes)
    while len(groups) > ROWS and depth > 1:
        depth -= 1
        groups = {'.'.join(name.split('.')[:depth]) for name in shapes}
    for group in sorted(groups):
        members = [name for name in shapes if f'{name}.'.startswith(f'{group}.')]
        yield (group, shapes[group]) if members == [group] else (group, f'{len(members)} weights')


def load_weights(
    module: nn.Module,
    path: str | Path,
    prefix: str = '',
    optional: Sequence[str] = (),
    allow_partial: bool = False,
) -> Mapping:
    """Load all weights of a module from a checkpoint, and leave none of the checkpoint's over.

    Args:
        module: Gets the weights. If this raises, it may have got some of them.
        path: Of a checkpoint of MMEngine, or of bare weights.
        prefix: Of the module's names in the file, as ``'backbone.'``; others are left alone.
        optional: Beginnings of names, without the prefix, that may be missing or left over.
        allow_partial: Load what fits, and print a table of what does not.

    Returns:
        What the file holds, ``meta`` for example.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint, has NaN among its weights, or is one of another model:
            names the first layer of another shape with both shapes, counts what is missing or left
            over, and names the first.
    """
    content = read_checkpoint(path)
    load_content(module, content, path, prefix, optional, allow_partial)
    return content


def load_content(
    module: nn.Module,
    content: Mapping,
    path: str | Path,
    prefix: str = '',
    optional: Sequence[str] = (),
    allow_partial: bool = False,
) -> None:
    """Load the content of a checkpoint, or bare weights, as :func:`load_weights` does.

    ``path`` is what errors name it by.
    """
    for part in reversed(prefix.split('.')[:-1]):  # so that names are those of the file
        module = nn.ModuleDict({part: module})
    state = weights_of(content, path)
    if prefix:
        state = {name: value for name, value in state.items() if name.startswith(prefix)}
    misfit = load_what_fits(module, state).without([prefix + name for name in optional])
    part = f'the {prefix[:-1]} of this model' if prefix else 'this model'
    check_fit(misfit, module, content, path, allow_partial, part)


def weights_of(content: Mapping, path: str | Path) -> dict[str, Tensor]:
    """The weights in the content of a checkpoint, under ``state_dict`` or bare.

    Raises:
        ValueError: If there are none, or NaN or infinities are among them.
    """
    state = content.get('state_dict', content)
    if not isinstance(state, Mapping):
        raise ValueError(f'checkpoint {str(path)!r} has a {type(state).__name__} as state_dict')
    check_weights(state, path)
    if not any(isinstance(value, Tensor) for value in state.values()):
        families = families_of(weight_names(content))
        raise ValueError(
            f"checkpoint {str(path)!r} has its weights neither bare nor under 'state_dict', but "
            + (', '.join(repr(key) for key in content) or 'nothing')
            + (f': {use_converter(path, families)}' if families else '')
        )
    if any(name.startswith('module.') for name in state):  # of DistributedDataParallel
        state = {re.sub(r'^module\.', '', name): value for name, value in state.items()}
    if bad := not_finite(state):
        raise ValueError(
            f'checkpoint {str(path)!r} has NaN or infinities in {len(bad)} of {len(state)} '
            f'weights, {_first(bad)}: its training had failed before; take an '
            'earlier one'
        )
    return state


def load_what_fits(module: nn.Module, state: Mapping[str, Tensor]) -> Misfit:
    """Load the weights that fit a module, by the module's own rules for old names.

    Returns:
        What does not fit. Buffers of batch norms that old versions of PyTorch did not have may be
        missing.
    """
    reshaped: dict[str, tuple[str, str]] = {}
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # has a line for each weight of another shape
        for line in str(error).splitlines()[1:]:
            name, *shapes = _shapes(line)
            reshaped[name] = (shapes[0], shapes[1])
        rest = OrderedDict((name, value) for name, value in state.items() if name not in reshaped)
        try:
            missing, unexpected = module.load_state_dict(rest, strict=False)
        except RuntimeError:  # of weights that the module has renamed
            missing, unexpected = [], []
    own = module.state_dict()
    return Misfit(
        {
            name: _shape(own.get(name))
            for name in missing
            if name not in reshaped and not name.endswith('.num_batches_tracked')
        },
        {name: _shape(state.get(name)) for name in unexpected},
        reshaped,
    )


def check_fit(
    misfit: Misfit,
    module: nn.Module,
    content: Mapping,
    path: str | Path,
    allow_partial: bool,
    part: str = 'this model',
) -> None:
    """Say what of a checkpoint does not fit a model, as a table if that is allowed.

    Args:
        misfit: Of :func:`load_what_fits`.
        module: That got the weights.
        content: Of the checkpoint.
        path: Of the checkpoint.
        allow_partial: Whether it is allowed.
        part: What the module is, in words.

    Raises:
        ValueError: If it is not allowed, or nothing fits at all.
    """
    if not misfit:
        return
    unloaded = {**misfit.missing, **misfit.reshaped}
    if all(name in unloaded for name, _ in module.named_parameters()):
        families = families_of(weight_names(content))
        raise ValueError(
            f'checkpoint {str(path)!r} has no weight that fits {part}: {misfit.line()}'
            + (f'; {use_converter(path, families)}' if families else '')
        )
    if not allow_partial:
        raise ValueError(
            f'checkpoint {str(path)!r} is not of this config: {misfit.line()}{_classes(content)} '
            '(tools with --allow-partial load what fits)'
        )
    print_log(
        f'Of {path} is loaded what fits; of the model, what is missing or of another shape keeps '
        f'the values it was built with:\n{misfit.table()}',
        logger='current',
        level=logging.WARNING,
    )


def classes_in(content: Mapping) -> Sequence[str] | None:
    """The classes that a checkpoint of MMEngine was trained for, if it knows their names."""
    classes = dataset_meta_in(content).get('classes')
    if isinstance(classes, (list, tuple)) and all(isinstance(name, str) for name in classes):
        return classes
    return None


def dataset_meta_in(content: Mapping) -> Mapping:
    """What a checkpoint of MMEngine says of its training data; it may say nothing of one data set.

    That is so for weights alone, and for data sets of different classes that are joined.
    """
    meta = content.get('meta')
    about = meta.get('dataset_meta') if isinstance(meta, Mapping) else None
    return about if isinstance(about, Mapping) else {}


def _classes(content: Mapping) -> str:
    classes = classes_in(content)
    if not classes:
        return ''
    names = ', '.join(map(str, classes[:3])) + (', ...' if len(classes) > 3 else '')
    return f'; it was trained for {len(classes)} classes, {names}'


def _shape(tensor: Any) -> str:
    return str(list(tensor.shape)) if isinstance(tensor, Tensor) else 'unknown'


def _shapes(line: str) -> tuple[str, str, str]:
    """A name and two shapes from PyTorch's line about a weight of another shape."""
    size = r'torch\.Size\((.*?)\)'
    match = re.search(rf'size mismatch for (\S+): .*?{size} from checkpoint, .*?{size}', line)
    return (match[1], match[2], match[3]) if match else (line.strip(), 'another', 'its own')


@HOOKS.register_module()
class WeightsHook(Hook):
    """Refuses a checkpoint of another model, where MMEngine goes on with random weights.

    A test and a resumed training need all weights. A training that starts from a checkpoint
    (``load_from``, or ``init_cfg`` of a part of the model) loads what fits, as for a head with
    other classes, and one table says what does not; a checkpoint of which nothing fits is refused.

    Args:
        allow_partial: Test with what fits, too.
    """

    priority = 'VERY_HIGH'

    def __init__(self, allow_partial: bool = False) -> None:
        self.allow_partial = allow_partial

    def before_run(self, runner: Runner) -> None:
        """Check the checkpoints of ``init_cfg``, which MMEngine loads next."""
        if not _has_whole_model(runner):
            return
        model = bare_model(runner.model)
        parts = [
            (module, init)
            for module in model.modules()
            for init in pretrained_parts(getattr(module, 'init_cfg', None))
        ]
        if all(is_local(init.get('checkpoint')) for _, init in parts):  # all is said in our tables
            runner.logger.addFilter(_not_about_misfits)
        if _trains(runner):
            for module, init in parts:
                if is_local(init['checkpoint']):
                    _check_initial(module, init)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Load what fits. What MMEngine loads next is that, so that it prints nothing about it."""
        if not _has_whole_model(runner):
            return
        path = runner.cfg.get('load_from') or 'given'
        model = bare_model(runner.model)
        resumes = bool(runner.cfg.get('resume'))
        fine_tunes = _trains(runner) and not resumes
        try:
            misfit = load_what_fits(model, weights_of(checkpoint, path))
            check_fit(misfit, model, checkpoint, path, self.allow_partial or fine_tunes)
            if not fine_tunes:
                names, split = classes_in(checkpoint), 'train' if resumes else 'test'
                check_class_order(names, runner.cfg, f'checkpoint {str(path)!r}', split)
        except ValueError as error:
            raise RunError(str(error)) from error
        if not resumes:
            checkpoint['state_dict'] = model.state_dict()


def is_divided(model: nn.Module) -> bool:
    """Whether a process may hold a part of the weights alone: FSDP, DeepSpeed, ColossalAI."""
    return any(word in type(model).__name__ for word in ('FullySharded', 'DeepSpeed', 'Colossal'))


def _has_whole_model(runner: Any) -> bool:
    """Not with ``FlexibleRunner``, whose strategies load checkpoints in ways of their own."""
    return isinstance(runner, Runner) and not is_divided(runner.model)


def _not_about_misfits(record: logging.LogRecord) -> bool:
    return 'do not match exactly' not in record.getMessage()


def bare_model(model: nn.Module) -> nn.Module:
    """A model without what wraps it, as for several processes."""
    inner: Any = model
    while is_model_wrapper(inner) or isinstance(inner, BaseTTAModel):
        inner = inner.module
    return inner


def _trains(runner: Runner) -> bool:
    """Whether this run is a training: its optimizer is built."""
    return isinstance(runner.optim_wrapper, (BaseOptimWrapper, OptimWrapperDict))


def _check_initial(module: nn.Module, init: Mapping) -> None:
    """Say what of a checkpoint does not fit the part of a model that ``init_cfg`` is of.

    Raises:
        RunError: If nothing fits.
    """
    path, prefix = init['checkpoint'], init.get('prefix') or ''
    prefix = f'{prefix.rstrip(".")}.' if prefix else ''
    try:
        content = read_checkpoint(path)
        state = weights_of(content, path)
        of_part = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
        check_fit(load_what_fits(module, of_part), module, content, path, allow_partial=True)
    except ValueError as error:
        hint = "; give init_cfg prefix='backbone.'" if not prefix and _has_backbone(state) else ''
        raise RunError(f'init_cfg of {type(module).__name__}: {error}{hint}') from error


def _has_backbone(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith('backbone.') for name in state)
