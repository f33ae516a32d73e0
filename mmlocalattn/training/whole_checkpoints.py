"""Checkpoints of trainings that are whole whenever the training is killed or the disk is full."""

import os
from pathlib import Path
from typing import Any, ClassVar

from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mmlocalattn.files import NO_SPACE, whole_file
from mmlocalattn.training.checkpoint import last_whole_checkpoint
from mmlocalattn.training.errors import RunError

NAME = 'mmlocalattn.whole'


class WholeFileBackend(LocalBackend):
    """Writes files whole or not at all, and removes one only when the next one is written.

    MMEngine writes a checkpoint in place, and before that it removes the one that it is to replace:
    with ``max_keep_ckpts=1`` a training that is killed meanwhile has none left.
    """

    # Of all instances: MMEngine removes with one and writes with another.
    _outdated: ClassVar[set[str]] = set()

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        """Write a file, then remove those that it replaces.

        Raises:
            RunError: If the disk is full; says what there is to go on from.
        """
        path = Path(filepath)
        try:
            with whole_file(path) as partial, partial.open('wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())  # or a power cut would leave the name alone
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            last = last_whole_checkpoint(str(path.parent))
            raise RunError(
                f'checkpoint {filepath} is not written ({os.strerror(error.errno)}): make room; '
                + (f'--resume goes on from {last}' if last else 'start again')
            ) from error
        for outdated in self._outdated - {str(filepath)}:
            Path(outdated).unlink(missing_ok=True)
        self._outdated.clear()

    def remove(self, filepath: str | Path) -> None:
        """Remove a file with the next :meth:`put`."""
        self._outdated.add(str(filepath))


register_backend(NAME, WholeFileBackend, force=True)


def write_whole_checkpoints(runner: Any) -> None:
    """Let the checkpoints of a runner be written by :class:`WholeFileBackend`.

    Those that a config sends elsewhere, or writes with arguments of its own, are left alone, and
    those of a ``FlexibleRunner``, whose strategies write files of their own.
    """
    if not isinstance(runner, Runner):
        return
    for hook in runner.hooks:
        if not isinstance(hook, CheckpointHook) or '://' in str(hook.out_dir or ''):
            continue
        if hook.backend_args is None and getattr(hook, 'file_client_args', None) is None:
            hook.backend_args = dict(backend=NAME)
