"""A hook that kills its own process in the middle of a run, as a power cut would."""

import os
import signal

import mmengine.config.config
import yapf.yapflib.yapf_api
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

# As the fixture `quick` in tiny_data.py, for the other process.
for module in (mmengine.config.config, yapf.yapflib.yapf_api):
    module.FormatCode = lambda text, **_: (text, True)


@HOOKS.register_module()
class KillHook(Hook):
    """Sends SIGKILL after a training iteration.

    Args:
        iteration: Counted from 0.
    """

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner: Runner, *_: object, **__: object) -> None:
        if runner.iter == self.iteration:
            os.kill(os.getpid(), signal.SIGKILL)
