"""A hook that writes the losses of a run, averaged over its processes."""

import json
from pathlib import Path

import mmengine.config.config
import yapf.yapflib.yapf_api
from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

# As the fixture `quick` in tiny_data.py, for other processes.
for module in (mmengine.config.config, yapf.yapflib.yapf_api):
    module.FormatCode = lambda text, **_: (text, True)


@HOOKS.register_module()
class LossHook(Hook):
    """Writes ``losses.json`` into the work dir: the total loss of every iteration."""

    def __init__(self) -> None:
        self.losses = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: dict
    ) -> None:
        loss = outputs['loss'].detach().clone()
        all_reduce(loss, 'mean')
        self.losses.append(loss.item())

    def after_train(self, runner: Runner) -> None:
        if is_main_process():
            Path(runner.work_dir, 'losses.json').write_text(json.dumps(self.losses))
