"""The kernels on an emulated aarch64; and how the check reads what it compiled."""

import re
from pathlib import Path

import check_aarch64
import pytest
import torch
from aarch64.comparison import relative_error
from aarch64.disassembly import Disassembly

FORWARD = 'portable::(anonymous namespace)::forward<float>(mmlocalattn::cpu::slide::Piece<float> *)'
PACK = 'portable::(anonymous namespace)::pack<4, float>(float*)'
DISASSEMBLY = f"""
0000000000001000 <long mmlocalattn::cpu::{FORWARD}>:
    1000:\tfmadd\ts0, s1, s2, s3
    1004:\tfmla\tv0.4s, v1.4s, v2.4s
    1008:\tfmls\tv3.4s, v1.4s, v2.s[0]
    100c:\tb.ne\t1004 <long mmlocalattn::cpu::{FORWARD}+0x4>
    1010:\tcbnz\tx1, 1000 <long mmlocalattn::cpu::{FORWARD}>
    1014:\tbl\t2000 <void mmlocalattn::cpu::{PACK}>
    1018:\tbl\t3000 <exp2>
    101c:\tret

0000000000002000 <void mmlocalattn::cpu::{PACK}>:
    2000:\tfmla\tv0.4s, v1.4s, v2.4s
    2004:\tfmadd\ts0, s1, s2, s3
    2008:\tb\t2000 <void mmlocalattn::cpu::{PACK}>

0000000000003000 <exp2>:
    3000:\tfmadd\td0, d1, d2, d3
    3004:\tb\t3000 <exp2>
""".splitlines()


def test_kernels_on_aarch64(capsys: pytest.CaptureFixture[str]) -> None:
    if what := check_aarch64.missing([check_aarch64.COMPILER, check_aarch64.QEMU]):
        pytest.skip(what)
    status = check_aarch64.main([])
    lines = capsys.readouterr().out.splitlines()
    assert status == 0, lines
    assert len(lines) == 4 * 3 * 2  # operators, dtypes, directions
    assert all(re.search(r'error \S+ of \S+, \d+ fmla v and \d scalar', line) for line in lines)


def test_inner_loops_and_calls_are_counted() -> None:
    disassembly = Disassembly(DISASSEMBLY)
    assert disassembly.count('slide', 'forward', torch.float32, 'portable') == (3, 1)


def test_what_is_missing_is_named() -> None:
    assert check_aarch64.missing(['python3']) is None
    assert check_aarch64.missing(['python3', 'no-such-g++']) == 'no-such-g++ is not installed'
    names = ['no-such-g++', 'no-such-qemu']
    assert check_aarch64.missing(names) == 'no-such-g++ and no-such-qemu are not installed'
    with pytest.raises(SystemExit, match='error: no-such-g\\+\\+ is not installed'):
        check_aarch64.main(['--compiler', 'no-such-g++ -O2', '--qemu', ''])


def test_wrong_numbers_are_seen() -> None:
    expected = torch.tensor([1.0, -2.0])
    assert relative_error(torch.tensor([1.0, -1.5]), expected) == 0.25
    assert relative_error(torch.tensor([1.0, torch.nan]), expected) == torch.inf


def test_faults_of_the_build_are_shown(tmp_path: Path) -> None:
    if what := check_aarch64.missing(['g++']):
        pytest.skip(what)
    options = ['--compiler', 'g++', '--qemu', '', '--flags=--no-such-option']
    with pytest.raises(SystemExit, match=r'error: the harness does not build:[^$]*no-such-option'):
        check_aarch64.main([*options, '--build-folder', str(tmp_path)])
