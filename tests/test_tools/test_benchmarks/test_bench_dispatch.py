"""bench_dispatch.py: what a call costs before its kernel has work."""

import json
from pathlib import Path

import bench_dispatch
import pytest
import torch
from benchmarking import dispatch

from mmlocalattn.ops import OPS


@pytest.mark.parametrize('name', OPS)
def test_public_function_and_operator_do_the_same(name: str) -> None:
    public, operator, tensors = dispatch.calls(name, 8, grad=True)
    assert torch.equal(public(), operator())
    assert all(tensor.requires_grad for tensor in tensors)


def test_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, 'set_num_threads', lambda count: None)
    out = tmp_path / 'dispatch.json'
    bench_dispatch.main(['--rounds', '2', '--head-dim', '8', '--out', str(out)])
    product, *records = json.loads(out.read_text())['results']
    assert [record['way'] for record in records] == [*OPS]
    assert product['forward of mm'] == 1
    for record in records:
        assert record['forward of mm'] * product['forward'] == pytest.approx(record['forward'])
        assert record['checks'] == pytest.approx(record['forward'] - record['operator'])
    printed = capsys.readouterr().out
    assert all(f'| {name} ' in printed for name in OPS)


def test_unknown_operator() -> None:
    with pytest.raises(SystemExit, match=r'^error: no operator attention: there are neighborhood_'):
        bench_dispatch.main(['--operators', 'attention'])
