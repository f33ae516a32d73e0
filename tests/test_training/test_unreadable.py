"""What is said about files that are no checkpoints, or hold more than weights."""

import argparse
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from mmlocalattn.training import read_checkpoint

SSVIT = 'layers.0.blocks.0.attn.lepe.weight'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def message(path: str = 'a.pth') -> str:
    """What is said about a file, without its name."""
    with pytest.raises(ValueError, match=r"^checkpoint '") as raised:
        read_checkpoint(path)
    text = str(raised.value)
    assert '\n' not in text
    assert 'weights_only' not in text
    return text.removeprefix(f"checkpoint '{path}' ")


@pytest.mark.parametrize('zip_format', [True, False], ids=['zip', 'legacy'])
def test_classes_of_others(zip_format: bool) -> None:
    weights = {SSVIT: torch.zeros(1)}
    for content, expected in (
        (
            dict(model=weights, args=argparse.Namespace(lr=0.1)),
            'holds argparse.Namespace beside its weights, of which nothing is loaded or run: '
            '`tools/convert_checkpoint.py ssvit a.pth NEW.pth` converts this release',
        ),
        (
            dict(model={'a': torch.zeros(1)}, args=argparse.Namespace(lr=0.1)),
            'holds argparse.Namespace beside its weights, of which nothing is loaded or run: '
            "write a file of weights alone where it was made, torch.save({'state_dict': "
            'model.state_dict()}, FILE)',
        ),
        (
            dict(state_dict=weights, run=os.system),
            f'holds {os.system.__module__}.system beside its weights, of which nothing is loaded',
        ),
        (torch.nn.Linear(1, 1), 'holds torch.nn.modules.linear.Linear beside its weights, of whi'),
    ):
        torch.save(content, 'a.pth', _use_new_zipfile_serialization=zip_format)
        assert message().startswith(expected)


@pytest.mark.parametrize('zip_format', [True, False], ids=['zip', 'legacy'])
@pytest.mark.parametrize('share', [0.1, 0.6, 0.95])
def test_truncated(share: float, zip_format: bool) -> None:
    content = dict(state_dict=dict(a=torch.zeros(1000)))
    torch.save(content, 'a.pth', _use_new_zipfile_serialization=zip_format)
    whole = Path('a.pth').read_bytes()
    Path('a.pth').write_bytes(whole[: int(share * len(whole))])
    assert message() == 'was not written, copied or downloaded to its end'


@pytest.mark.parametrize(
    ('content', 'expected'),
    [
        (b'', 'is empty'),
        (b'hello', 'is no checkpoint: torch.save has not written it'),
        (b'\n<!DOCTYPE html><html>', 'is a web page and no checkpoint: download the file itself'),
        (
            b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n',
            'is a pointer of Git LFS and not the file itself: run `git lfs pull`',
        ),
        (
            (2).to_bytes(8, 'little') + b'{}' + bytes(8),
            'is a safetensors file: torch.save what safetensors.torch.load_file reads from it',
        ),
    ],
)
def test_other_files(content: bytes, expected: str) -> None:
    Path('a.pth').write_bytes(content)
    assert message() == expected


def test_other_archives() -> None:
    np.savez('a.npz', a=np.zeros(1))
    assert message('a.npz') == (
        'is an archive of NumPy: `tools/convert_checkpoint.py qna_vit` reads those of QnA'
    )
    torch.jit.script(torch.nn.Linear(1, 1)).save('a.pth')
    assert message() == 'is a TorchScript program and no checkpoint'
    with zipfile.ZipFile('a.pth', 'w') as archive:
        archive.writestr('notes.txt', 'hello')
    assert message() == 'is a zip archive and no checkpoint'
