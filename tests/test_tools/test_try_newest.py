"""tools/dev/try_newest.py: which packages, in which order, with which commands."""

import re
from pathlib import Path

import pytest
import try_newest


@pytest.mark.parametrize('row', try_newest.PINS)
def test_steps(row: str) -> None:
    pins = try_newest.pins_of(row)
    named = dict(try_newest.steps(Path('python'), list(pins), ['tests/test_ops']))
    names = list(named)
    assert names[0] == 'install what PyPI has'
    assert names[-2:] == ['compile the kernels', 'tests']
    first = set(named[names[0]])
    alone = {name.removeprefix('install ') for name in names[1:] if name.startswith('install ')}
    assert {'torch', 'numpy'} <= first
    assert pins.keys() <= first | alone
    assert not first & alone
    assert any(re.fullmatch('(onedl-)?mmcv', name) for name in alone)
