"""What the tools write is whole or as it was where the disk takes no more of a file."""

import json
import resource
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_data
import torch
from tiny_data import data, quick  # noqa: F401

Write = Callable[[], None]


def convert(folder: Path, golden: Callable[[str], dict]) -> tuple[Path, Write]:
    torch.save({'model': tiny_data.released_ssvit(golden)}, folder / 'released.pth')
    argv = ['ssvit', folder / 'released.pth', folder / 'out' / 'ours.pth']
    argv += ['--arch', json.dumps(tiny_data.SSVIT_ARCH)]
    return folder / 'out', lambda: tiny_data.run(tiny_data.load_tool('convert_checkpoint'), *argv)


def export(folder: Path, golden: Callable[[str], dict]) -> tuple[Path, Write]:
    config = tiny_data.write_config(folder / 'c.py', tiny_data.CLASSIFICATION, folder)
    argv = [config, '--random-weights', '--format', 'torchscript', '--size', '64x64']
    argv += ['--out', folder / 'out' / 'model.pt']
    return folder / 'out', lambda: tiny_data.run(tiny_data.load_tool('export'), *argv)


def make_sample_data(folder: Path, golden: Callable[[str], dict]) -> tuple[Path, Write]:
    argv = ['--out', folder / 'out' / 'cards', '--num-train', 1, '--num-val', 1, '--force']
    return folder / 'out', lambda: tiny_data.run(tiny_data.load_tool('make_sample_data'), *argv)


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files, hidden ones too."""
    files = [path for path in folder.rglob('*') if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def fill_disk(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Let no file get larger than so many bytes, on a disk that says it is full.

    PyTorch's archives do not say which error of the disk made them fail.
    """
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    usage = namedtuple('usage', 'free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(0))


@pytest.fixture
def unlimited(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Makes room again."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def make_room() -> None:
        monkeypatch.undo()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    yield make_room
    make_room()


@pytest.mark.usefixtures('quick')
@pytest.mark.parametrize('tool', [convert, export, make_sample_data])
def test_the_last_good_files_stay(
    tool: Callable,
    golden: Callable[[str], dict],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unlimited: Callable[[], None],
) -> None:
    out, write = tool(tmp_path, golden)
    write()
    good = contents(out)
    fill_disk(monkeypatch, max(map(len, good.values())) // 2)
    with pytest.raises(SystemExit) as raised:
        write()
    unlimited()
    first, *others = str(raised.value.code).splitlines()
    assert first.startswith('error: ')
    assert 'make room, nothing of it is written' in first
    assert others in ([], ['Nothing was written.'])
    assert contents(out) == good
    assert {path.name for path in out.iterdir()} == {Path(name).parts[0] for name in good}


@pytest.mark.usefixtures('quick')
def test_the_last_checkpoint_stays(
    data: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unlimited: Callable[[], None],
) -> None:
    train, work_dir = tiny_data.load_tool('train'), tmp_path / 'out'
    config = tiny_data.write_config(tmp_path / 'c.py', tiny_data.CLASSIFICATION, data)
    argv = [config, '--work-dir', work_dir, '--cfg-options', 'default_hooks.checkpoint.interval=1']
    argv += ['default_hooks.checkpoint.max_keep_ckpts=1']
    tiny_data.run(train, *argv)
    good = work_dir / 'epoch_1.pth'
    weights = good.read_bytes()
    fill_disk(monkeypatch, len(weights) // 2)
    with pytest.raises(SystemExit) as raised:
        tiny_data.run(train, *argv, 'train_cfg.max_epochs=2', '--resume')
    unlimited()
    assert str(raised.value.code) == (
        f'error: checkpoint {work_dir / "epoch_2.pth"} is not written (File too large): make room; '
        f'--resume goes on from {good}'
    )
    assert good.read_bytes() == weights
    assert [path.name for path in work_dir.rglob('*.pth')] == ['epoch_1.pth']
