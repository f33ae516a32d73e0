"""Checkpoints are whole, and the last one stays until the next one is."""

import errno
import os
from pathlib import Path

import pytest
import torch
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from toy_run import quick, toy_config, train  # noqa: F401

from mmlocalattn.training import RunError, read_checkpoint
from mmlocalattn.training.whole_checkpoints import (
    NAME,
    WholeFileBackend,
    write_whole_checkpoints,
)


def test_an_outdated_file_stays_until_the_next_is_written(tmp_path: Path) -> None:
    backend, first, second = WholeFileBackend(), tmp_path / 'a.pth', tmp_path / 'b.pth'
    backend.put(b'1', first)
    backend.remove(first)
    assert first.exists()
    WholeFileBackend().put(b'2', second)
    assert [path.name for path in tmp_path.iterdir()] == ['b.pth']
    backend.remove(second)
    backend.put(b'3', second)  # under the same name
    assert second.read_bytes() == b'3'


@pytest.mark.parametrize(
    ('options', 'backend'),
    [
        ({}, {'backend': NAME}),
        (dict(out_dir='s3://bucket'), None),
        (dict(backend_args=dict(backend='local')), {'backend': 'local'}),
        (dict(file_client_args=dict(backend='disk')), None),  # MMEngine takes but one of the two
    ],
)
def test_what_a_config_says_is_kept(options: dict, backend: dict | None) -> None:
    runner, hook = Runner.__new__(Runner), CheckpointHook(**options)
    runner._hooks = [hook]
    write_whole_checkpoints(runner)
    assert hook.backend_args == backend


@pytest.mark.usefixtures('quick')
def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(toy_config(tmp_path / 'whole', length=3))
    work_dir = tmp_path / 'full'
    fsync, calls = os.fsync, []

    def full(number: int) -> None:
        calls.append(number)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full)
        message = r'epoch_2\.pth is not written \(No space left .* goes on from .*epoch_1\.pth'
        with pytest.raises(RunError, match=message):
            train(toy_config(work_dir, length=3))
    assert [path.name for path in work_dir.glob('*.pth')] == ['epoch_1.pth']
    assert not [*work_dir.glob('.*.pth')]

    train(toy_config(work_dir, length=3), resume=True)
    assert [path.name for path in work_dir.glob('*.pth')] == ['epoch_3.pth']
    expected, resumed = (
        read_checkpoint(folder / 'epoch_3.pth')['state_dict']
        for folder in (tmp_path / 'whole', work_dir)
    )
    torch.testing.assert_close(resumed, expected, rtol=0, atol=0)
