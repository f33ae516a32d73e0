"""tools/convert_checkpoint.py: what it prints and how it ends."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_data
import torch

from mmlocalattn.training import read_checkpoint

TOOL = tiny_data.load_tool('convert_checkpoint')


@pytest.fixture
def paths(golden, tmp_path: Path) -> list[str]:
    """A released classifier of SSViT, and where to write."""
    released = tiny_data.released_ssvit(golden)
    torch.save({'model': released}, tmp_path / 'released.pth')
    return [str(tmp_path / 'released.pth'), str(tmp_path / 'ours.pth')]


def test_says_what_was_written(paths: list[str], capsys: pytest.CaptureFixture) -> None:
    TOOL.main(['ssvit', *paths, '--arch', json.dumps(tiny_data.SSVIT_ARCH)])
    count = len(read_checkpoint(paths[1])['state_dict'])
    expected = (
        f'{paths[1]}: ssvit, arch {tiny_data.SSVIT_ARCH}, {count} tensors in backbone, head, neck\n'
    )
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--arch', '{"embed_dims": [16}'], 'error: --arch is not valid JSON: '),
        (['--arch', '{"embed_dims": [16]}'], 'missing='),
        (['--arch', 'huge'], "arch='huge'"),
        (['--config', 'x.py'], 'error: --config is for detectors and segmentors: ssvit has --arch'),
    ],
)
def test_wrong_arguments(paths: list[str], options: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as error:
        TOOL.main(['ssvit', *paths, *options])
    first, last = error.value.code.splitlines()
    assert message in first
    assert last == 'Nothing was written.'
    assert not Path(paths[1]).exists()


def test_command_line(paths: list[str]) -> None:
    command = [sys.executable, tiny_data.ROOT / 'tools' / 'convert_checkpoint.py', 'ssvit', *paths]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f'error: {paths[0]}: no architecture of ' in result.stderr
    assert result.stderr.endswith('pass --arch\nNothing was written.\n')
    assert 'Traceback' not in result.stderr
