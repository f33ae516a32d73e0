"""Which checkpoint a run resumes from, what may be in one, and loading all of it."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmlocalattn.training import (
    last_whole_checkpoint,
    read_checkpoint,
    read_seed,
    save_checkpoint,
)


def save(folder: Path, name: str, time: int) -> Path:
    """A checkpoint file with a modification time in seconds."""
    file = folder / name
    torch.save(dict(meta=dict(seed=5)), file)
    os.utime(file, (time, time))
    return file


def truncate(file: Path) -> None:
    time = file.stat().st_mtime
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    os.utime(file, (time, time))


def record(file: Path, time: int) -> None:
    last = file.parent / 'last_checkpoint'
    last.write_text(f'/moved/since/{file.name}')
    os.utime(last, (time, time))


def test_none_in_an_empty_or_missing_folder(tmp_path: Path) -> None:
    assert last_whole_checkpoint(str(tmp_path)) is None
    assert last_whole_checkpoint(str(tmp_path / 'missing')) is None


@pytest.mark.parametrize('prefix', ['epoch', 'iter'])
def test_newest(tmp_path: Path, prefix: str) -> None:
    save(tmp_path, f'{prefix}_9.pth', 10)
    newest = save(tmp_path, f'{prefix}_10.pth', 20)
    save(tmp_path, 'best_mIoU.pth', 30)
    assert last_whole_checkpoint(str(tmp_path)) == str(newest)


def test_killed_while_writing(tmp_path: Path) -> None:
    whole = save(tmp_path, 'epoch_1.pth', 10)
    truncate(save(tmp_path, 'epoch_2.pth', 20))
    record(whole, 11)
    assert last_whole_checkpoint(str(tmp_path)) == str(whole)


def test_killed_while_rewriting_the_recorded_one(tmp_path: Path) -> None:
    whole = save(tmp_path, 'epoch_1.pth', 10)
    rewritten = save(tmp_path, 'epoch_2.pth', 20)
    record(rewritten, 21)
    truncate(rewritten)
    assert last_whole_checkpoint(str(tmp_path)) == str(whole)


def test_killed_before_the_record(tmp_path: Path) -> None:
    record(save(tmp_path, 'epoch_1.pth', 10), 11)
    unrecorded = save(tmp_path, 'epoch_2.pth', 20)
    assert last_whole_checkpoint(str(tmp_path)) == str(unrecorded)


def test_copied_folder_with_other_times(tmp_path: Path) -> None:
    newest = save(tmp_path, 'epoch_10.pth', 10)
    save(tmp_path, 'epoch_9.pth', 20)
    record(newest, 30)
    assert last_whole_checkpoint(str(tmp_path)) == str(newest)


def test_empty_record(tmp_path: Path) -> None:
    whole = save(tmp_path, 'epoch_1.pth', 10)
    (tmp_path / 'last_checkpoint').touch()
    assert last_whole_checkpoint(str(tmp_path)) == str(whole)


def test_read_seed(tmp_path: Path) -> None:
    assert read_seed(str(save(tmp_path, 'epoch_1.pth', 10))) == 5
    torch.save({}, tmp_path / 'bare.pth')
    assert read_seed(str(tmp_path / 'bare.pth')) is None


def test_log_history_is_allowed(tmp_path: Path) -> None:
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    scalar = np.float32(3.0)
    torch.save(dict(loss=history, scalar=scalar), tmp_path / 'a.pth')
    loaded = read_checkpoint(tmp_path / 'a.pth')
    assert loaded['loss'].mean() == 1.5
    assert loaded['scalar'] == scalar


class AskForAttribute:
    """Pickles as a call of ``getattr(owner, name)``."""

    def __init__(self, owner: type, name: str) -> None:
        self.call = (getattr, (owner, name))

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize(
    ('owner', 'name'),
    [(HistoryBuffer, '__init__'), (np.ndarray, 'tofile'), (HistoryBuffer, 'mean')],
)
def test_only_history_methods_are_allowed(tmp_path: Path, owner: type, name: str) -> None:
    path = tmp_path / 'a.pth'
    torch.save(dict(method=AskForAttribute(owner, name)), path)
    if name == 'mean':
        assert read_checkpoint(path)['method'] is HistoryBuffer.mean
    else:
        with pytest.raises(ValueError, match='which is not allowed'):
            read_checkpoint(path)


def test_other_content_is_refused(tmp_path: Path) -> None:
    path = tmp_path / 'a.pth'
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds no weights, neither bare nor under 'model' or"):
        read_checkpoint(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r'a\.pth. does not exist'):
        read_checkpoint(path)
    with pytest.raises(IsADirectoryError, match='is a folder: name a file in it'):
        read_checkpoint(tmp_path)


def test_files_of_old_versions_are_read_whole(tmp_path: Path) -> None:
    content = dict(meta=dict(seed=5), state_dict=dict(a=torch.ones(2)))
    torch.save(content, tmp_path / 'a.pth', _use_new_zipfile_serialization=False)
    assert read_seed(str(tmp_path / 'a.pth')) == 5


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, 'a.pth', 10)

    def full_disk(checkpoint: object, file: io.BufferedWriter) -> None:
        file.write(b'half')
        raise OSError('No space left on device')

    monkeypatch.setattr(torch, 'save', full_disk)
    with pytest.raises(OSError, match='No space left'):
        save_checkpoint({}, path)
    assert read_seed(str(path)) == 5
    assert list(tmp_path.iterdir()) == [path]
