"""A resumed run that repeats the run it continues."""

from itertools import chain, islice, repeat

import numpy as np
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner, set_random_seed


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
