"""``python -m mmlocalattn.check``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmlocalattn import check, ops
from mmlocalattn.ops._library import REFERENCES

CPU = torch.device('cpu')


def test_every_operator_has_cases() -> None:
    assert {case.operator for case in check.CASES} == {*ops.OPS}
    labels = [(case.operator, case.label) for case in check.CASES]
    assert len({*labels}) == len(labels)
    tensors = {name for case in check.CASES for name in case.shapes}
    assert {'bias', 'position_bias', 'attention_scale', 'row_embedding', 'weight'} <= tensors


def test_command(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    out = tmp_path / 'check.json'
    check.main(['--device', 'cpu', '--operators', 'neighborhood_attention', '--out', str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f'cpu; torch {torch.__version__}'
    served = 'kernel' if ops.has_kernel('neighborhood_attention', 'cpu') else 'reference'
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines[3:-1]]
    assert [row[:3] for row in rows] == [
        ['neighborhood_attention', str(dtype)[6:], served] for dtype in check.DTYPES['cpu']
    ]
    assert {row[-1] for row in rows} == {'ok'}
    results = json.loads(out.read_text())['results']
    assert [record['is_right'] for record in results] == [True] * 4
    assert all(0 < record['error'] <= record['allowed'] for record in results)


def wrong_by(factor: float):
    """A stand-in for the public function that scales the gradient of the values."""

    def attend(query, key, value, **options):
        output = REFERENCES['stand_alone_attention']
        args = options['kernel_size'], options['padding'] == 'zero', options['scale']
        value = value * factor + (value - value * factor).detach()
        tables = options['row_embedding'], options['column_embedding']
        return output(query, key, value, *tables, *args)[0]

    return attend


@pytest.mark.parametrize('dtype', check.DTYPES['cpu'], ids=str)
def test_wrong_gradient_is_found(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, 'stand_alone_attention', wrong_by(1.02))
    (finding,) = check.check_operators(CPU, ['stand_alone_attention'], [dtype])
    assert not finding.is_right
    assert finding.tensor == 'the gradient of value'
    assert finding.error == pytest.approx(0.02, rel=0.5)


def test_not_a_number_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, 'slide_attention', lambda query, **_: query * float('nan'))
    monkeypatch.setattr(torch.autograd, 'grad', lambda output, tensors, grad: tensors)
    (finding,) = check.check_operators(CPU, ['slide_attention'], [torch.float32])
    assert not finding.is_right
    assert finding.error != finding.error


def test_status_and_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def broken(**_: object) -> torch.Tensor:
        raise RuntimeError('no kernel image is available\nand more')

    monkeypatch.setattr(ops, 'query_and_attend', broken)
    with pytest.raises(SystemExit) as stopped:
        check.main(['--device', 'cpu', '--operators', 'query_and_attend'])
    message = str(stopped.value).splitlines()[0]
    assert message == (
        'error: query_and_attend in float32 raises in the case 3x3: no kernel image is available'
    )
    assert 'WRONG' in capsys.readouterr().out


def test_device_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    with pytest.raises(SystemExit, match='error: no cuda here: '):
        check.main(['--device', 'cuda'])


def test_unknown_device(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        check.main(['--device', 'meta'])
    assert '--device must be one of cuda, cpu, mps, got meta' in capsys.readouterr().err


@pytest.mark.cuda
def test_this_gpu() -> None:
    check.main(['--device', 'cuda'])


def test_needs_torch_only() -> None:
    program = """
import sys
for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain'):
    sys.modules[name] = None
from mmlocalattn.check import main
main(['--device', 'cpu', '--operators', 'stand_alone_attention'])
"""
    result = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, check=True
    )
    assert result.stdout.count('| ok |') == 4
