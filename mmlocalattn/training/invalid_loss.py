"""Stopping a training whose loss has become NaN or infinite, with what is known about it."""

import logging
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor
from torch.optim import Optimizer

from mmlocalattn.registry import HOOKS
from mmlocalattn.training.checkpoint import last_whole_checkpoint, not_finite
from mmlocalattn.training.errors import RunError
from mmlocalattn.training.weights import bare_model

SHOWN = 4  # names of images or weights in the message


@HOOKS.register_module()
class InvalidLossHook(Hook):
    """Stops a training at the first loss, gradient or weight that is NaN or infinite.

    It does so before a checkpoint of the iteration is written, so that the last good one stays. The
    message names the losses, the learning rate, the images of the batch, what went first, causes
    that the batch and the config show, and that checkpoint.

    Cost: the largest gradient and the largest weight are computed on the device at each step of the
    optimizer, and read after MMEngine has read the loss for its log, and so waited for the device
    anyway. Several processes agree on two numbers per iteration, and all stop.

    Args:
        patience: With a dynamic loss scale (AMP), which skips the step where gradients are not
            finite: how many invalid losses in a row it gets while the weights are still good.
    """

    priority = 'ABOVE_NORMAL'  # before EMA, schedules and checkpoints

    def __init__(self, patience: int = 5) -> None:
        self.patience = patience
        self.in_a_row = 0
        self.losses: deque[float] = deque(maxlen=5)
        self.steps: list[_Step] = []

    def before_train(self, runner: Runner) -> None:
        """Watch the optimizers."""
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        for optimizer in (getattr(part, 'optimizer', None) for part in wrappers):
            if isinstance(optimizer, Optimizer):
                optimizer.register_step_pre_hook(self._look)

    def _look(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        if getattr(optimizer, 'found_inf', None) is None:  # a fused one skips bad steps by itself
            self.steps.append(_Step.of(optimizer))

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Look at the loss and the step.

        Raises:
            RunError: In all processes, if one of them cannot go on.
        """
        losses = {k: torch.as_tensor(v).item() for k, v in (outputs or {}).items() if 'loss' in k}
        steps, self.steps = self.steps, []
        bad_loss = not all(map(math.isfinite, losses.values()))
        bad_step = next((step for step in steps if not step.is_finite()), None)
        hopeless = bad_step is not None
        if bad_loss and not hopeless:
            skips_steps = _skips_bad_steps(runner.optim_wrapper)
            hopeless = not skips_steps or bool(not_finite(_weights(runner)))
        bad_loss_anywhere, hopeless_anywhere = _any_process([bad_loss, hopeless], runner)
        self.in_a_row = self.in_a_row + 1 if bad_loss_anywhere else 0
        if hopeless_anywhere or self.in_a_row > self.patience:
            findings = self._findings(runner, data_batch, losses, bad_step, bad_loss)
            raise RunError('\n  '.join(_whole_message(runner, findings, bad_loss)))
        if bad_loss:
            print_log(
                f'{_invalid(losses)} at iteration {runner.iter + 1}: the loss scaler skips this '
                f'step. {self.patience - self.in_a_row} more in a row are waited for.',
                logger='current',
                level=logging.WARNING,
            )
        elif 'loss' in losses:
            self.losses.append(losses['loss'])

    def _findings(
        self,
        runner: Runner,
        batch: Any,
        losses: Mapping[str, float],
        step: '_Step | None',
        bad_loss: bool,
    ) -> list[str] | None:
        """What this process saw, in lines; None if all went well here."""
        if step is None and not bad_loss:
            return None
        where = f'epoch {runner.epoch + 1}, iteration {runner.iter + 1}'
        what = _invalid(losses) if bad_loss else 'the step'
        lines = [f'{what if bad_loss else "gradients became NaN or infinite"} at {where}']
        lines[0] += f', learning rate {_learning_rate(runner)}; training has stopped'
        samples = list(_samples(batch))
        names = [str(path) for path in (_path(sample) for sample in samples) if path]
        lines.append(f'images: {_some(names) if names else "not named by this data set"}')
        lines.append('first to go: ' + _first_to_go(step, bad_loss, runner))
        if self.losses:
            lines.append(f'losses before: {", ".join(f"{loss:.4g}" for loss in self.losses)}')
        causes = [*_bad_annotations(batch, samples), *_bad_settings(runner)]
        lines.append('possible causes: ' + ('; '.join(causes) if causes else _NO_CAUSE))
        return lines


_NO_CAUSE = (
    'none that the batch or the config shows; a lower learning rate, a longer warm-up, '
    'optim_wrapper.clip_grad=dict(max_norm=1)'
)


class _Step:
    """The largest weight and gradient that an optimizer met, as tensors that nobody waits for."""

    def __init__(self, parameters: list[Tensor], weights: Tensor, gradients: Tensor) -> None:
        self.parameters, self.weights, self.gradients = parameters, weights, gradients
        self.summary = torch.stack([weights.amax(), gradients.amax()])

    @classmethod
    def of(cls, optimizer: Optimizer) -> '_Step':
        """Look at a step that is about to be done."""
        parameters = [p for group in optimizer.param_groups for p in group['params']]
        parameters = [
            p for p in parameters if p.grad is not None and not p.grad.is_sparse and p.numel()
        ]
        weights = _largest([parameter.detach() for parameter in parameters])
        return cls(
            parameters, weights, _largest([p.grad for p in parameters if p.grad is not None])
        )

    def is_finite(self) -> bool:
        """Whether weights and gradients were; waits for the device."""
        return all(map(math.isfinite, self.summary.tolist()))


def _largest(tensors: list[Tensor]) -> Tensor:
    """The largest absolute value of each tensor, NaN where one has any."""
    if not tensors:
        return torch.zeros(1)
    return torch.stack([norm.float() for norm in torch._foreach_norm(tensors, math.inf)])


def _skips_bad_steps(wrapper: Any) -> bool:
    scaler = getattr(wrapper, 'loss_scaler', None)
    return scaler is not None and scaler.is_enabled()


def _any_process(flags: Sequence[bool], runner: Runner) -> list[bool]:
    """Whether each flag is set in any process."""
    if get_world_size() == 1:
        return list(flags)
    device = next(runner.model.parameters()).device
    numbers = torch.tensor([float(flag) for flag in flags], device=device)
    all_reduce(numbers, 'max')
    return [bool(number) for number in numbers.tolist()]


def _whole_message(runner: Runner, findings: list[str] | None, bad_loss: bool) -> list[str]:
    """What one process saw, and from where to go on; the same in all.

    That is a process whose loss was invalid: the others got its gradients.
    """
    found = [item for item in all_gather_object((not bad_loss, findings)) if item[1] is not None]
    lines = min(found, key=lambda item: item[0])[1]
    good = last_whole_checkpoint(runner.work_dir, finite=True)
    if good is None:
        return [*lines, f'last good checkpoint: none in {runner.work_dir} yet']
    return [*lines, f'last good checkpoint: {good} (nothing was written after it)']


def _invalid(losses: Mapping[str, float]) -> str:
    """The names and values of losses that are not finite, parts before the sum of them."""
    bad = {name: value for name, value in losses.items() if not math.isfinite(value)}
    parts = {name: value for name, value in bad.items() if name != 'loss'} or bad
    return ', '.join(f'{name} is {value}' for name, value in parts.items())


def _first_to_go(step: _Step | None, bad_loss: bool, runner: Runner) -> str:
    names = {id(parameter): name for name, parameter in bare_model(runner.model).named_parameters()}
    if step is None:
        if bad := not_finite(_weights(runner)):
            return f'the weights, {_some(bad)}'
        return 'the loss; the weights are finite, and no step with bad gradients was done'
    for kind, sizes in (('weights', step.weights), ('gradients', step.gradients)):
        bad = [
            names.get(id(parameter), 'unnamed')
            for parameter, size in zip(step.parameters, sizes.tolist())
            if not math.isfinite(size)
        ]
        if bad and kind == 'weights':
            return f'the weights, {_some(bad)}, before this iteration'
        if bad and not bad_loss:
            return f'the gradients of {_some(bad)}; the loss was finite'
    return f'the loss; the weights were finite, the largest {step.summary[0].item():.3g}'


def _learning_rate(runner: Runner) -> str:
    rates = sorted({rate for values in runner.optim_wrapper.get_lr().values() for rate in values})
    return f'{rates[0]:.4g}' + (f' to {rates[-1]:.4g}' if len(rates) > 1 else '')


def _samples(batch: Any) -> Iterator[Any]:
    """The data samples of a batch of any of the toolboxes."""
    if isinstance(batch, Mapping):
        yield from (
            _samples(list(batch.get('data_samples', {}).values()))
            if isinstance(batch.get('data_samples'), Mapping)
            else _samples(batch.get('data_samples'))
        )
    elif isinstance(batch, (list, tuple)):
        for part in batch:
            yield from _samples(part)
    elif batch is not None and not isinstance(batch, (Tensor, str)):
        yield batch


def _path(sample: Any) -> str | None:
    return getattr(sample, 'img_path', None)


def _bad_annotations(batch: Any, samples: Sequence[Any]) -> Iterator[str]:
    """What is wrong with the images and annotations of a batch."""
    inputs = batch.get('inputs') if isinstance(batch, Mapping) else None
    if isinstance(inputs, (list, tuple, Tensor)):
        bad = [i for i, image in enumerate(inputs) if not torch.isfinite(image).all()]
        if bad:
            yield f'NaN or infinities among the pixels of image {bad[0] + 1} of the batch'
    for index, sample in enumerate(samples):
        name = _path(sample) or f'image {index + 1} of the batch'
        boxes = getattr(getattr(sample, 'gt_instances', None), 'bboxes', None)
        boxes = getattr(boxes, 'tensor', boxes)
        if isinstance(boxes, Tensor) and boxes.ndim == 2 and boxes.shape[1] == 4 and len(boxes):
            if not torch.isfinite(boxes).all():
                yield f'NaN in the boxes of {name}'
            elif number := int((boxes[:, 2:] <= boxes[:, :2]).any(dim=1).sum()):
                yield f'{number} boxes of no area in {name}'
        labels = getattr(getattr(sample, 'gt_sem_seg', None), 'data', None)
        if isinstance(labels, Tensor) and labels.numel() and bool((labels == 255).all()):
            yield f'nothing but 255, which is ignored, in the index map of {name}'


def _bad_settings(runner: Runner) -> Iterator[str]:
    """What of a config makes trainings diverge."""
    scaling = runner.cfg.get('auto_scale_lr') or {}
    base, is_scaled = scaling.get('base_batch_size'), scaling.get('enable', False)
    loader = runner.train_dataloader
    # A loader with a batch sampler, as mmdet's by aspect ratio, has no size of its own.
    per_step = (loader.batch_size or getattr(loader.batch_sampler, 'batch_size', 1)) * (
        get_world_size()
    )
    per_step *= (runner.cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    if base and not is_scaled and per_step < base:
        yield (
            f'the learning rate is for {base} images a step and this run has {per_step}: '
            '`--auto-scale-lr` divides it by ' + f'{base / per_step:g}'
        )
    elif is_scaled and base and per_step > 4 * base:
        yield f'--auto-scale-lr has multiplied the learning rate by {per_step / base:g}'


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ', '.join(names[:SHOWN]) + (f' and {more} more' if more > 0 else '')


def _weights(runner: Runner) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in bare_model(runner.model).named_parameters()}
