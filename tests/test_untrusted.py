"""What is refused of strangers' archives and weights."""

import zipfile
from pathlib import Path

import pytest
import torch

from mmlocalattn.untrusted import BYTES, TIMES, check_archive, check_weights


def test_archives(tmp_path: Path) -> None:
    path = tmp_path / 'a.npz'
    path.write_bytes(b'no archive')
    check_archive(path)
    for surplus in (0, 1 << 22):
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
            archive.writestr('zeros', bytes(BYTES + surplus))
        if not surplus:
            check_archive(path)
    message = rf'unpacks to {BYTES + (1 << 22)}, more than {TIMES} times as many: it is refused'
    with pytest.raises(ValueError, match=message):
        check_archive(path)


def test_weights() -> None:
    shared = torch.zeros(1).expand(1000)  # as buffers are, of which one row is stored
    check_weights({'a': torch.ones(2), 'b.c': torch.ones(3)[1:], 'd': shared, 'e': 'text'}, 'f')


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        (1, torch.ones(1), 'has a weight called 1, which is no name'),
        ('a\x1b[2J', torch.ones(1), r"called 'a\\x1b\[2J', which is no name"),
        ('a', torch.ones(1, device='meta'), 'a is a tensor without values'),
        ('a', torch.eye(2).to_sparse(), 'a is a tensor of torch.sparse_coo'),
        ('a', torch.ones(1, dtype=torch.complex64), 'a is a tensor of torch.complex64'),
        ('a', torch.ones(1).expand(1 << 25), r'shape \[33554432\] of which 4 bytes are stored'),
    ],
)
def test_what_is_no_weight(name: str, value: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_weights({name: value}, 'file.pth')
