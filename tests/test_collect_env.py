"""``python -m mmlocalattn.collect_env``."""

import subprocess
import sys

import pytest

from mmlocalattn import collect_env, ops


def test_collect_env_names_versions_and_kernels(capsys: pytest.CaptureFixture) -> None:
    collect_env.main()
    printed = capsys.readouterr().out
    assert 'mmcv: mmcv 2.1.0' in printed or 'mmcv: onedl-mmcv' in printed
    assert 'nvcc: ' in printed
    assert 'FORCE_CUDA=1' in printed
    assert 'python -m mmlocalattn.check' in printed
    assert 'CUDA tensors are served by: kernels (MMLOCALATTN_CUDA)' in printed
    rows = {words[0]: words[1:] for words in map(str.split, printed.splitlines()) if words}
    for name in ops.OPS:
        assert rows[name] == [
            'compiled' if ops.has_kernel(name, device) else 'reference'
            for device in ('cpu', 'cuda')
        ]


def test_collect_env_without_mm_packages() -> None:
    program = """
import importlib.metadata, sys
for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain'):
    sys.modules[name] = None
importlib.metadata.packages_distributions = dict
from mmlocalattn.collect_env import main
main()
"""
    run = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, check=True
    )
    assert 'mmcv: not installed' in run.stdout
    assert 'PyTorch: ' in run.stdout
    assert 'neighborhood_attention' in run.stdout


def test_describe_kernels_reports_a_broken_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr('mmlocalattn.ops')
    monkeypatch.setitem(sys.modules, 'mmlocalattn.ops', None)
    assert 'import of mmlocalattn.ops halted' in collect_env.describe_kernels()
