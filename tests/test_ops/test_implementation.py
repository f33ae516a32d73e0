"""The user's choice of what serves the tensors of a device."""

import os
import subprocess
import sys
import warnings
from types import ModuleType

import pytest
import torch
from test_neighborhood import TestNeighborhoodAttention as Neighborhood

from mmlocalattn import ops
from mmlocalattn.check import CASES, check_operators
from mmlocalattn.ops import _implementation, has_kernel, implementation
from mmlocalattn.ops._library import REFERENCES

CPU = torch.device('cpu')


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the references that have run, in order."""
    called: list[str] = []
    for name, reference in REFERENCES.items():

        def record(*args: object, name: str = name, reference=reference) -> object:
            called.append(name)
            return reference(*args)

        monkeypatch.setitem(REFERENCES, name, record)
    return called


@pytest.mark.parametrize('name', ops.OPS)
def test_reference_serves_both_passes(name: str, calls: list[str]) -> None:
    case = next(case for case in CASES if case.operator == name)
    tensors = {key: torch.randn(shape).requires_grad_() for key, shape in case.shapes.items()}
    built = has_kernel(name, 'cpu')
    with implementation('reference', 'cpu'):
        assert not has_kernel(name, 'cpu')
        case.call(tensors).sum().backward()
    if built:  # else the references of the registration serve, which are not recorded
        assert calls == [name, f'_{name}_backward']
    assert has_kernel(name, 'cpu') == built
    case.call(tensors).sum().backward()
    assert len(calls) == 2 * built


def test_blocks_nest(calls: list[str]) -> None:
    tensors = torch.randn(3, 1, 5, 6, 2, 4)
    with implementation('reference', 'cpu'):
        with implementation('kernels', 'cpu'):
            ops.neighborhood_attention(*tensors, 3)
        assert _implementation.chosen('cpu') == 'reference'
    ops.neighborhood_attention(*tensors, 3)
    assert calls == []


def test_a_block_ends_with_an_error() -> None:
    with pytest.raises(RuntimeError, match='in the block'), implementation('reference', 'cpu'):
        raise RuntimeError('in the block')
    assert _implementation.chosen('cpu') == 'kernels'


def test_overriding_is_not_worth_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with implementation('reference', 'cpu'):
            pass


def test_devices_are_chosen_for_alone() -> None:
    with implementation('reference', 'cuda'):
        assert _implementation.chosen('cuda') == 'reference'
        assert _implementation.chosen('cpu') == 'kernels'


@pytest.mark.needs_torch('2.4', 'torch.compile of an operator')
def test_compiled_functions_follow(calls: list[str]) -> None:
    if not has_kernel('neighborhood_attention', 'cpu'):
        pytest.skip('without kernels there is one implementation')
    tensors = torch.randn(3, 1, 5, 6, 2, 4)
    compiled = torch.compile(ops.neighborhood_attention, backend='aot_eager', fullgraph=True)
    expected = compiled(*tensors, 3)
    with implementation('reference', 'cpu'):
        torch.testing.assert_close(compiled(*tensors, 3), expected)
    assert set(calls) == {'neighborhood_attention'}


def test_autocast_and_second_derivatives_stay() -> None:
    contract = Neighborhood()
    with implementation('reference', 'cpu'):
        contract.test_autocast_mixed_dtypes(next(iter(contract.cases)))
        contract.test_second_derivative_raises()


def test_whole_check_with_the_reference() -> None:
    with implementation('reference', 'cpu'):
        findings = check_operators(CPU, dtypes=[torch.float32])
    assert [finding.operator for finding in findings] == [*ops.OPS]
    assert all(finding.is_right for finding in findings)


def test_unknown_name() -> None:
    with (
        pytest.raises(ValueError, match="one of kernels, reference, natten, got 'natan'"),
        implementation('natan'),
    ):
        pass


def test_variable_is_read_at_import() -> None:
    program = 'from mmlocalattn.ops import _implementation as i; print(i.chosen("cuda"))'
    env = os.environ | {'MMLOCALATTN_CUDA': 'reference'}
    result = subprocess.run(
        [sys.executable, '-c', program], env=env, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == 'reference'


def test_variable_with_an_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('MMLOCALATTN_CUDA', 'kernel')
    with pytest.raises(ValueError, match='MMLOCALATTN_CUDA must be one of kernels, ref'):
        _implementation.choose_from_environment()
    assert _implementation.chosen('cuda') == 'kernels'


OLD = ModuleType('natten')
OLD.__version__ = '0.17.5+torch250cu124'


@pytest.mark.parametrize(
    ('module', 'reason'),
    [
        (None, 'import of natten halted; None in sys.modules'),
        (OLD, 'natten 0.17.5+torch250cu124 is too old, 0.20 is needed'),
    ],
)
def test_natten_that_is_missing_or_old(
    module: ModuleType | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, 'natten', module)
    monkeypatch.delitem(sys.modules, 'mmlocalattn.ops.through_natten', raising=False)
    monkeypatch.delattr(ops, 'through_natten', raising=False)
    monkeypatch.setenv('MMLOCALATTN_CUDA', 'natten')
    with pytest.raises(ImportError) as raised:
        _implementation.choose_from_environment()
    assert str(raised.value) == (
        f'natten is chosen, but it does not import ({reason}): `pip install --no-build-isolation '
        'natten==0.21.7`, or choose kernels or reference'
    )
    assert _implementation.chosen('cuda') == 'kernels'
