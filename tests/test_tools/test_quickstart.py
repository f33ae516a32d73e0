"""The quickstart: configs that build, a report that reads MMEngine's logs, a shell script."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from run_log import write_log

ROOT = Path(__file__).parents[2]
DETECTION_METRICS = {
    f'coco/{kind}_mAP{suffix}': value
    for kind, value in (('bbox', 0.5), ('segm', 0.25))
    for suffix in ('', '_50', '_75')
}
SEGMENTATION_METRICS = {'mIoU': 61.5, 'mAcc': 70.25, 'aAcc': 95.0}


def load_script() -> ModuleType:
    path = ROOT / 'tools' / 'quickstart_report.py'
    spec = importlib.util.spec_from_file_location('quickstart_report', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


quickstart_report = load_script()


def write_run(work_dir: Path, metrics: dict[str, float]) -> None:
    write_log(work_dir / '20260101_000000', range(10, 60, 10), metrics)
    write_log(work_dir / '20260101_000100', range(40, 110, 10), metrics)
    result = work_dir / 'test' / '20260101_000200' / '20260101_000200.json'
    result.parent.mkdir(parents=True)
    result.write_text(json.dumps(metrics))
    pictures = work_dir / 'pictures' / 'inner'
    pictures.mkdir(parents=True)
    for index in range(2):
        cv2.imwrite(str(pictures / f'{index}.png'), np.full((20, 40, 3), 100 * index, np.uint8))


@pytest.mark.parametrize(
    ('metrics', 'table'),
    [
        (
            DETECTION_METRICS,
            '              AP    AP50    AP75\n'
            'box        0.500   0.500   0.500\n'
            'mask       0.250   0.250   0.250',
        ),
        (
            SEGMENTATION_METRICS,
            '            mIoU    mAcc    aAcc\npercent   61.500  70.250  95.000',
        ),
    ],
)
def test_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metrics: dict[str, float], table: str
) -> None:
    write_run(tmp_path, metrics)
    quickstart_report.main([str(tmp_path)])
    out = capsys.readouterr().out
    assert table in out
    assert '100 iterations in 1.0 minutes of training' in out
    assert f'{tmp_path}/pictures/inner/ (2 files)' in out
    assert cv2.imread(str(tmp_path / 'curves.png')).std() > 10
    columns = quickstart_report.SHEET_COLUMNS
    height, width = cv2.imread(str(tmp_path / 'pictures.png')).shape[:2]
    assert width == columns * (quickstart_report.SHEET_CELL_WIDTH + 8)
    assert height == quickstart_report.SHEET_CELL_WIDTH // 2 + 8


def test_report_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='no test result'):
        quickstart_report.read_metrics(tmp_path)
    with pytest.raises(FileNotFoundError, match='no picture'):
        quickstart_report.find_pictures(tmp_path)
    with pytest.raises(KeyError, match='neither detection nor segmentation'):
        quickstart_report.task_of({'accuracy': 0.5})


@pytest.mark.parametrize('name', ['maskrcnn', 'upernet'])
def test_config_builds_and_runs(name: str) -> None:
    """The models are those of the COCO and ADE20K configs, narrower, and take a 160-pixel image."""
    config = Config.fromfile(ROOT / 'configs' / f'quickstart_{name}_ssvit.py')
    parent = {'maskrcnn': 'maskrcnn_ssvit_t_1x_coco', 'upernet': 'upernet_ssvit_s_160k_ade20k'}
    full = Config.fromfile(ROOT / 'configs' / f'{parent[name]}.py')
    assert config.model.type == full.model.type
    assert config.model.backbone.type == full.model.backbone.type == 'mmlocalattn.SSViT'
    assert config.optim_wrapper.type == 'OptimWrapper'
    for transform in config.train_dataloader.dataset.pipeline:
        assert 'Flip' not in transform.type
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
    tools/make_sample_data.py) mkdir -p data/digit_cards ;;
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
    steps = ['make_sample_data', 'train', 'test', 'quickstart_report']
    assert names == ['setup_env.sh', *(f'tools/{step}.py' for step in steps)]
    train, test, report = calls[-3:]
    assert train.startswith(f'tools/train.py configs/{config}.py --work-dir {work_dir} --resume')
    assert test.startswith(f'tools/test.py configs/{config}.py {work_dir}/epoch_1.pth')
    assert f'--show-dir {work_dir}/pictures' in test
    assert report == f'tools/quickstart_report.py {work_dir}'
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
    assert message == 'usage: bash tools/quickstart.sh [--smoke] [detection|segmentation]\n'
