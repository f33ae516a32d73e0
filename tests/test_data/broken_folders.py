"""Changes that break a folder, and what is said then, for the tests of the faults."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from sample_folders import read

from mmlocalattn.data.check import KINDS
from mmlocalattn.data.folders import FolderData

Break = Callable[[Path], object]


def lines(data: FolderData) -> list[str]:
    """What is said, but for what the good folder says too."""
    assert {finding.kind for finding in data.findings} <= set(KINDS)
    usual = ('images without objects', 'class never occurs')
    return [f'{it.severity}: {it.message}' for it in data.findings if it.kind not in usual]


def assert_like(said: str, line: str, root: Path) -> None:
    """Compare a line with one that has ``{root}`` in it, and ... where versions differ."""
    parts = line.replace('{root}', str(root)).split('...')
    assert re.fullmatch('.*'.join(map(re.escape, parts)), said), said


def read_broken(root: Path, change: Break, line: str, skipped: int) -> FolderData:
    """A folder after a change that gives one line, without what is bad."""
    change(root)
    data = read(root, skip_bad=True)
    (said,) = lines(data)
    assert_like(said, line, root)
    assert data.skipped == skipped
    return data


def save(path: Path, array: np.ndarray, **options: object) -> None:
    Image.fromarray(array).save(path, **options)


RGB = np.zeros((64, 64, 3), np.uint8)
