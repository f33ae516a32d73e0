"""tools/dev/fuzz_ops.py: its oracles, what it calls wrong, and crashes."""

import functools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fuzz_ops
import pytest
import test_neighborhood
import test_query_and_attend
import test_slide
import test_sparse_scan
import test_stand_alone
import torch
from fuzzing import models, oracles, problems
from torch import Tensor, nn

from mmlocalattn import ops

CONTRACTS = {
    'neighborhood': test_neighborhood.TestNeighborhoodAttention(),
    'sparse_scan': test_sparse_scan.TestSparseScanAttention(),
    'slide': test_slide.TestSlideAttention(),
    'query_and_attend': test_query_and_attend.TestQueryAndAttend(),
    'stand_alone': test_stand_alone.TestStandAloneAttention(),
}


def arguments(name: str, args: list[Any]) -> list[Any]:
    """Of an oracle here, from those of the operator."""
    if name == 'sparse_scan':
        query, key, value, sin, cos, *others = args
        return [query, key, value, None if sin is None else (sin, cos), *others]
    if name == 'stand_alone':
        return [*args[:6], 'zero' if args[6] else 'mask', args[7]]
    return args


@pytest.mark.parametrize(
    ('name', 'case'),
    [(name, case) for name, contract in CONTRACTS.items() for case in contract.cases],
)
def test_oracles_are_the_definitions(name: str, case: str) -> None:
    contract = CONTRACTS[name]
    tensors = contract.tensors(contract.cases[case])
    args = arguments(name, list(contract.op_args(tensors, contract.cases[case])))
    expected = contract.oracle(tensors, contract.cases[case])
    torch.testing.assert_close(getattr(oracles, name)(*args), expected, rtol=1e-12, atol=1e-12)


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """A call leaves its number of threads and its instruction set."""
    threads, isa = torch.get_num_threads(), os.environ.pop('MMLOCALATTN_CPU_ISA', None)
    yield
    torch.set_num_threads(threads)
    os.environ.pop('MMLOCALATTN_CPU_ISA', None)
    if isa is not None:
        os.environ['MMLOCALATTN_CPU_ISA'] = isa


def test_seeds_reach_everything() -> None:
    texts = [problems.problem(seed).text for seed in range(200)]
    isas = problems.isas_of_machine()
    for word in (
        *ops.OPS,
        *isas,
        *problems.LAYOUTS,
        *problems.VALUES,
        'float64',
        'bfloat16',
        'float16',
    ):
        assert any(re.search(rf'\b{word}\b', text) for text in texts), word
    assert problems.problem(7).text == texts[7]


DTYPES = (torch.float32, torch.bfloat16)


@functools.cache
def telling_seeds() -> dict[tuple[str, torch.dtype], int]:
    """Calls with windows of several positions, and numbers that tell them apart."""
    dull = re.compile(r'large|denormal|masked|expanded|\(1, 1\)|scale -?0(,|$)')
    found: dict[tuple[str, torch.dtype], int] = {}
    for seed in range(3000):
        made = problems.problem(seed)
        key = made.operator, made.tensors[0].dtype
        if key[1] in DTYPES and made.tensors[0].numel() > 500 and not dull.search(made.text):
            found.setdefault(key, seed)
        if len(found) == len(ops.OPS) * len(DTYPES):
            break
    return found


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('operator', ops.OPS)
def test_a_wrong_key_is_wrong(operator: str, dtype: torch.dtype) -> None:
    """What a kernel gives that reads the second tensor a row too low."""
    made = problems.problem(telling_seeds()[operator, dtype])
    assert made.check()[1] <= problems.ALLOWED
    call = made.call

    def shifted(first: Tensor, second: Tensor, *others: Tensor) -> Tensor:
        return call(first, second.roll(1, 1 if second.shape[1] > 1 else 2), *others)

    made.call = shifted
    tensor, error = made.check()
    assert error > problems.ALLOWED, tensor


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_nearest_number_is_right(dtype: torch.dtype) -> None:
    """Below the normal numbers too, where those of a dtype are equally far apart."""
    about = torch.finfo(dtype)
    for size in (1.0, about.tiny, about.tiny * about.eps):
        truth = torch.linspace(-size, size, 1001, dtype=torch.float64)
        assert problems._error(truth.to(dtype), truth, about.eps, 0.0) <= 0.5


def test_logits_are_all_that_exp_sees() -> None:
    """Also where the products are nothing: the bias, and the sum of equal weights."""
    query, bias = torch.ones(1, 2, 2, 1, 4), torch.tensor([3.0, -torch.inf])
    logits = problems._logits(9, scale=0.0, bias=2)
    assert logits([query, query, bias]) == pytest.approx(math.log(9) + 3)
    assert logits([query, query, None]) == pytest.approx(math.log(9))
    assert problems._logits(1, 0.5, factor=2)([query, query]) == pytest.approx(2 * 0.5 * 2)


def test_nan_is_wrong() -> None:
    made = problems.problem(telling_seeds()['neighborhood_attention', torch.float32])
    call = made.call
    made.call = lambda *tensors: call(*tensors) * torch.nan
    assert not made.check()[1] <= problems.ALLOWED


def test_a_crash_is_counted_with_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []

    def run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess:
        first, number = int(command[3]), int(command[4])
        starts.append(first)
        lines = []
        for seed in range(first, first + number):
            lines.append(json.dumps({'seed': seed}))
            if seed == 12:
                return subprocess.CompletedProcess(command, -11, '\n'.join(lines), 'a signal')
            lines.append(json.dumps(dict(seed=seed, operator='slide_attention', wrong=False)))
        return subprocess.CompletedProcess(command, 0, '\n'.join(lines), '')

    monkeypatch.setattr(subprocess, 'run', run)
    records = list(fuzz_ops.run_block(range(10, 15), models=False))
    assert starts == [10, 13]
    assert [record['seed'] for record in records] == [10, 11, 12, 13, 14]
    assert records[2] == {'seed': 12, 'crash': 'exit status -11: a signal'}


def test_broken_promises_of_a_backbone() -> None:
    made = models.problem(3)
    assert made.check() == ('', 0.0)
    made.model.unused = nn.Parameter(torch.zeros(1))
    assert made.check() == ("no gradient of ['unused']", math.inf)
    made.strides[0] += 1
    assert made.check()[0] == 'a map of another size'


def test_command_line(tmp_path: Path) -> None:
    out = tmp_path / 'calls.json'
    tool = Path(fuzz_ops.__file__)
    command = [sys.executable, tool, '4', '--seed', '20', '--out', out]
    run = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert '4 calls, 0 crashes, 0 wrong' in run.stdout
    assert [record['seed'] for record in json.loads(out.read_text())['calls']] == [20, 21, 22, 23]
    fuzz_ops.main(['--replay', '20'])
    fuzz_ops.main(['--replay', '20', '--models'])
