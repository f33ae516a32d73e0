"""The quickstart: configs that build, a shell script."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('name', ['maskrcnn', 'upernet', 'fasterrcnn'])
def test_config_builds_and_runs(name: str) -> None:
    """The models are those of the COCO and ADE20K configs, narrower, and take a 160-pixel image."""
    config = Config.fromfile(ROOT / 'configs' / f'quickstart_{name}_ssvit.py')
    parent = {'maskrcnn': 'maskrcnn_ssvit_t_1x_coco', 'upernet': 'upernet_ssvit_s_160k_ade20k'}
    full = Config.fromfile(ROOT / 'configs' / f'{parent.get(name, parent["maskrcnn"])}.py')
    assert config.model.type == ('FasterRCNN' if name == 'fasterrcnn' else full.model.type)
    assert config.model.backbone.type == full.model.backbone.type == 'mmlocalattn.SSViT'
    assert config.optim_wrapper.type == 'OptimWrapper'
    for transform in config.train_dataloader.dataset.pipeline:
        assert name == 'fasterrcnn' or 'Flip' not in transform.type
    init_default_scope(config.default_scope)
    model = MODELS.build(config.model).eval()
    with torch.no_grad():
        features = model.extract_feat(torch.zeros(1, 3, 160, 160))
    assert [feature.shape[-1] for feature in features] == [40, 20, 10, 5]


FAKE_PYTHON = """#!/usr/bin/env bash
# Notes the command and does the least that the real one would.
echo "$@" >>calls
work_dir=$(sed -n 's/.*--work-dir \\([^ ]*\\).*/\\1/p' <<<"$*")
case "$1" in
    tools/make_sample_data.py) mkdir -p "data/$2" ;;
    tools/train.py)
        [ ! -e fail ] || exit 1
        mkdir -p "$work_dir"
        printf %s "$work_dir/epoch_1.pth" >"$work_dir/last_checkpoint"
        ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with quickstart.sh in which Python and the set-up do next to nothing."""
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'venv' / 'bin').mkdir(parents=True)
    shutil.copy(ROOT / 'tools' / 'quickstart.sh', tmp_path / 'tools')
    (tmp_path / 'tools' / 'setup_env.sh').write_text('echo setup_env.sh >>calls\n')
    python = tmp_path / 'venv' / 'bin' / 'python'
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    return tmp_path


def run_script(clone: Path, *args: str) -> tuple[int, list[str], str]:
    """Returns the exit status, the commands that ran, and what went to stderr."""
    (clone / 'calls').write_text('')
    done = subprocess.run(
        ['bash', str(clone / 'tools' / 'quickstart.sh'), *args],
        env={**os.environ, 'MMLOCALATTN_VENV': 'venv'},
        capture_output=True,
        text=True,
    )
    return done.returncode, (clone / 'calls').read_text().splitlines(), done.stderr


@pytest.mark.parametrize(
    ('args', 'config', 'work_dir'),
    [
        ((), 'quickstart_maskrcnn_ssvit', 'quickstart'),
        (('detection',), 'quickstart_maskrcnn_ssvit', 'quickstart'),
        (('segmentation',), 'quickstart_upernet_ssvit', 'quickstart_segmentation'),
        (('trees',), 'quickstart_fasterrcnn_ssvit', 'quickstart_trees'),
        (('--smoke', 'trees'), 'quickstart_fasterrcnn_ssvit', 'quickstart_smoke_trees'),
        (('--smoke',), 'quickstart_maskrcnn_ssvit', 'quickstart_smoke'),
        (('--smoke', 'segmentation'), 'quickstart_upernet_ssvit', 'quickstart_smoke_segmentation'),
    ],
)
def test_script_runs_every_step_once(
    clone: Path, args: tuple[str, ...], config: str, work_dir: str
) -> None:
    status, calls, _ = run_script(clone, *args)
    assert status == 0
    work_dir = f'work_dirs/{work_dir}'
    names = [call.split()[0] for call in calls]
    steps = ['make_sample_data', 'train', 'test', 'analysis/quickstart_report']
    assert names == ['setup_env.sh', *(f'tools/{step}.py' for step in steps)]
    train, test, report = calls[-3:]
    assert train.startswith(f'tools/train.py configs/{config}.py --work-dir {work_dir} --resume')
    folder = work_dir if 'trees' in args else 'configs'
    assert test.startswith(f'tools/test.py {folder}/{config}.py {work_dir}/epoch_1.pth')
    minutes = '--minutes 1 ' if '--smoke' in args else '--minutes 12'
    assert (f'--data data/trees {minutes}' in train) == ('trees' in args)
    assert f'--show-dir {work_dir}/pictures' in test
    assert report == f'tools/analysis/quickstart_report.py {work_dir}'
    for call in (train, test):
        assert ('indices=' in call) == ('--smoke' in args)
    assert run_script(clone, *args)[1] == ['setup_env.sh', report]


def test_script_goes_on_after_a_failed_training(clone: Path) -> None:
    (clone / 'fail').touch()
    status, calls, _ = run_script(clone)
    assert status != 0
    assert calls[-1].startswith('tools/train.py')
    (clone / 'fail').unlink()
    status, calls, _ = run_script(clone)
    assert status == 0
    assert [call.split()[0] for call in calls][1:3] == ['tools/train.py', 'tools/test.py']


def test_script_rejects_an_unknown_argument(clone: Path) -> None:
    status, calls, message = run_script(clone, '--fast')
    assert status == 2
    assert calls == []
    assert message == 'usage: bash tools/quickstart.sh [--smoke] [detection|segmentation|trees]\n'
