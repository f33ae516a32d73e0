"""A resumed run that repeats the run it continues."""

import os
from collections.abc import Mapping
from itertools import chain, islice, repeat
from types import NoneType

import numpy as np
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS as ROOT
from mmengine.runner import IterBasedTrainLoop, Runner, set_random_seed

from mmlocalattn.registry import HOOKS
from mmlocalattn.training.checkpoint import (
    checkpoint_files,
    is_whole,
    last_whole_checkpoint,
    read_checkpoint,
)
from mmlocalattn.training.processes import number_of_processes


def apply_resume(cfg: Config, checkpoint: str) -> None:
    """Set a config to continue from a checkpoint, with the order of the images of the first run.

    Args:
        cfg: Changed in place; has its ``work_dir``.
        checkpoint: A file, or a folder as FSDP writes them, or ``'auto'`` for the last whole one in
            the work dir.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file was not written to its end, is no checkpoint, has weights alone, or
            was written by another number of processes that divide the model.
    """
    if checkpoint == 'auto':
        found = last_whole_checkpoint(cfg.work_dir)
        if found is None:
            print_log(f'No checkpoint in {cfg.work_dir}: training from the start.', logger=None)
            return
        checkpoint = found
    elif not os.path.exists(checkpoint):
        raise FileNotFoundError(f'checkpoint {checkpoint!r} does not exist')
    elif not is_whole(checkpoint):
        raise ValueError(
            f'checkpoint {checkpoint!r} is not whole; --resume alone finds one that is'
        )
    files = checkpoint_files(checkpoint)
    processes = number_of_processes()
    if os.path.isdir(checkpoint) and len(files) != processes:
        raise ValueError(
            f'checkpoint {checkpoint!r} has the files of {len(files)} processes, this training has '
            f'{processes}: start as many, or give an earlier checkpoint if one was killed meanwhile'
        )
    try:
        content = read_checkpoint(files[0], mmap=True)
    except ValueError as error:
        if not os.path.isdir(checkpoint):
            raise
        raise ValueError(
            f'checkpoint {checkpoint!r} cannot be resumed: its files hold parts of tensors, which '
            "weights_only=True refuses. With state_dict_cfg='full' in strategy it is one file"
        ) from error
    meta = content.get('meta') or {}
    if not _has_state(meta, content):
        raise ValueError(
            f'checkpoint {checkpoint!r} has no state of a training to resume: start from its '
            f'weights with --cfg-options load_from={checkpoint}'
        )
    cfg.randomness = {**cfg.get('randomness', {}), 'seed': meta.get('seed')}
    cfg.resume = True
    cfg.load_from = checkpoint
    print_log(f'Resuming from {checkpoint}.', logger=None)
    for unit in ('epoch', 'iter'):
        last = (cfg.get('train_cfg') or {}).get(f'max_{unit}s')
        if last is not None and meta[unit] >= last:
            print_log(
                f'It is at the end, {unit} {meta[unit]} of {last}: nothing is left to train. '
                f'Raise train_cfg.max_{unit}s, and param_scheduler with it, to train longer.',
                logger=None,
            )


def _has_state(meta: object, content: Mapping) -> bool:
    """Whether a checkpoint says where its training stood."""
    return (
        isinstance(meta, Mapping)
        and all(isinstance(meta.get(unit), int) for unit in ('epoch', 'iter'))
        and isinstance(meta.get('seed'), (int, NoneType))
        and isinstance(content.get('message_hub'), Mapping)
    )


@ROOT.register_module()  # the name without a scope, deprecated
@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Makes training after ``--resume`` continue exactly where the checkpoint was written.

    MMEngine restores weights, optimizer, schedules and counters. This hook adds what it does not:

    - The random numbers of the training step (drop path, sampled boxes, mixup) come from (seed,
      rank, iteration), so they do not depend on whether the run was interrupted. Those of the data
      pipeline are drawn while an image is loaded and are not repeated.
    - An iteration-based run moves its sampler to the checkpoint's position. MMEngine 0.10.7 gets
      there by loading every image it skips, which takes hours late in a long run.
    """

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner: Runner) -> None:
        """Skip the images that were trained on; an iteration-based run is one epoch for hooks."""
        loop = runner.train_loop
        if not isinstance(loop, IterBasedTrainLoop) or loop.iter == 0:
            return
        sampler = loop.dataloader.sampler
        skips_itself = hasattr(loop.dataloader_iterator, 'skip_iter')  # onedl's MMEngine
        if skips_itself or type(sampler) is not InfiniteSampler:
            return
        stream = InfiniteSampler(sampler.dataset, sampler.shuffle, sampler.seed).indices
        sampler.indices = islice(stream, loop.iter * loop.dataloader.batch_size, None)
        # The loop asks for `iter` batches and drops them, then trains on what follows.
        loop.dataloader_iterator = chain(repeat(None, loop.iter), iter(loop.dataloader))

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Seed the step."""
        entropy = np.random.SeedSequence([runner.seed, runner.rank, runner.iter])
        set_random_seed(int(entropy.generate_state(1)[0]))
