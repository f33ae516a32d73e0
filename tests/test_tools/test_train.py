"""tools/train.py: options, errors, and a killed run that resumes exactly."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_data
import torch
from tiny_data import ROOT, data, quick  # noqa: F401

from mmlocalattn.training import allow_mmengine_checkpoints, read_checkpoint

TRAIN = tiny_data.load_tool('train')
PASS = 3  # iterations over all images
pytestmark = pytest.mark.usefixtures('quick')


def build_config(*argv: object):
    return TRAIN.build_config(TRAIN.parse_args([str(arg) for arg in argv]))


def run_and_kill(config: str, work_dir: Path, iteration: int) -> None:
    """Train in another process, which gets SIGKILL after its 0-based ``iteration``."""
    killed = Path(config).with_name('killed.py')
    killed.write_text(
        f'{Path(config).read_text()}\n'
        "custom_imports = dict(imports=['kill_hook'])\n"
        f"custom_hooks = [dict(type='KillHook', iteration={iteration})]\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
    done = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'train.py', killed, '--work-dir', work_dir],
        env=os.environ | dict(PYTHONPATH=path, OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def weights(work_dir: Path) -> dict[str, torch.Tensor]:
    last = (work_dir / 'last_checkpoint').read_text()
    allow_mmengine_checkpoints()  # onedl's MMEngine takes its permissions back after a load
    return read_checkpoint(last)['state_dict']


@pytest.mark.parametrize(
    ('text', 'saved', 'unfinished'),
    [
        (tiny_data.DETECTION, 'epoch_1.pth', 'epoch_2.pth'),
        (tiny_data.SEGMENTATION, 'iter_3.pth', 'iter_6.pth'),
    ],
    ids=['detection', 'segmentation'],
)
def test_resumed_run_equals_uninterrupted_run(
    tmp_path: Path,
    data: Path,  # noqa: F811
    text: str,
    saved: str,
    unfinished: str,
) -> None:
    config = tiny_data.write_config(tmp_path / 'c.py', text, data, 'randomness = dict(seed=3)')
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    tiny_data.run(TRAIN, config, '--work-dir', whole)
    run_and_kill(config, killed, PASS + 1)  # in the middle of the second pass
    assert [file.name for file in killed.glob('*.pth')] == [saved]
    # What a kill while the next checkpoint is written leaves as well.
    (killed / unfinished).write_bytes((killed / saved).read_bytes()[:5000])

    # The seed, and with it the order of the images, comes from the checkpoint.
    other_seed = ['--cfg-options', 'randomness.seed=4']
    tiny_data.run(TRAIN, config, '--work-dir', killed, '--resume', *other_seed)
    expected, resumed = weights(whole), weights(killed)
    assert expected.keys() == resumed.keys()
    assert [name for name in expected if not torch.equal(expected[name], resumed[name])] == []


def test_trains_a_classifier_with_ema(
    tmp_path: Path,
    data: Path,  # noqa: F811
    capsys: pytest.CaptureFixture,
) -> None:
    config = tiny_data.write_config(tmp_path / 'c.py', tiny_data.CLASSIFICATION, data)
    tiny_data.run(TRAIN, config, '--work-dir', tmp_path, '--resume', '--amp', '--auto-scale-lr')
    printed = capsys.readouterr().out
    assert f'No checkpoint in {tmp_path}: training from the start.' in printed
    assert 'Training in bfloat16, losses in float32: backbone, neck, head.' in printed
    assert f'Scaling the original LR by {2 / 2048}' in printed
    checkpoint = read_checkpoint(tmp_path / 'epoch_1.pth')
    assert {'state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'} <= checkpoint.keys()


@pytest.fixture
def config(tmp_path: Path, data: Path) -> str:  # noqa: F811
    return tiny_data.write_config(tmp_path / 'c.py', tiny_data.DETECTION, data)


def test_options(tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = build_config(config, '--cfg-options', 'train_dataloader.batch_size=5', 'a.b=c')
    assert cfg.work_dir == 'work_dirs/c'
    assert cfg.train_dataloader.batch_size == 5
    assert cfg.a.b == 'c'
    assert cfg.launcher == 'none'
    assert not cfg.get('resume')
    cfg = build_config(config, '--cfg-options', 'optim_wrapper.type=OptimWrapper', '--amp')
    assert cfg.optim_wrapper.type == 'OptimWrapper'
    assert cfg.train_dtype == 'bfloat16'
    monkeypatch.setenv('SLURM_PROCID', '0')
    cfg = build_config(config, '--auto-scale-lr', '--launcher', 'slurm', '--local-rank', '1')
    assert cfg.auto_scale_lr.enable is True
    assert cfg.launcher == 'slurm'


def test_resumes_from_a_named_checkpoint(tmp_path: Path, config: str) -> None:
    content = dict(meta=dict(seed=17, epoch=1, iter=3), message_hub={})
    torch.save(content, tmp_path / 'epoch_1.pth')
    cfg = build_config(config, '--resume', tmp_path / 'epoch_1.pth')
    assert cfg.resume is True
    assert cfg.load_from == str(tmp_path / 'epoch_1.pth')
    assert cfg.randomness.seed == 17


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['no.py'], "error: config 'no.py' does not exist"),
        (['CONFIG', '--resume', 'no.pth'], "error: checkpoint 'no.pth' does not exist"),
        (['CONFIG', '--cfg-options', 'work_dir=CONFIG'], "c.py' cannot be a folder: "),
        (
            ['CONFIG', '--cfg-options', 'train_cfg.val_interval=0'],
            'c.py must be 1 or more, got 0',
        ),
        (['CONFIG', '--cfg-options', 'load_from=no.pth'], "c.py: 'no.pth' does not exist"),
        (
            ['CONFIG', '--launcher', 'pytorch'],
            'error: --launcher pytorch is for processes that are',
        ),
        (
            ['CONFIG', '--cfg-options', 'train_cfg=None'],
            'has no train_cfg: a training needs all of',
        ),
        (['CONFIG', '--resume', 'CONFIG'], "c.py' is not whole; --resume alone finds one that is"),
        (
            ['CONFIG', '--auto-scale-lr', '--cfg-options', 'auto_scale_lr=None'],
            'error: --auto-scale-lr needs auto_scale_lr.base_batch_size in ',
        ),
        (
            ['CONFIG', '--cfg-options', 'default_scope=mmnothing'],
            'needs mmnothing, which is not installed: pip install -r requirements/mminstall.txt',
        ),
        (
            ['CONFIG', '--cfg-options', 'val_dataloader.dataset.data_root=data/nowhere'],
            "error: 'data/nowhere', which val_dataloader (CocoDataset) reads, does not exist. "
            'Put the data set there (see README.md), or make the sample data set with '
            '`python tools/make_sample_data.py` and use configs/quickstart_*.py.',
        ),
    ],
)
def test_one_line_errors(config: str, argv: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as raised:
        TRAIN.main([arg.replace('CONFIG', config) for arg in argv])
    assert message in raised.value.code
    assert '\n' not in raised.value.code


def test_missing_base_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / 'c.py').write_text("_base_ = 'mmdet::mask_rcnn/nothing.py'")
    with pytest.raises(SystemExit, match=r'error: .*nothing\.py'):
        TRAIN.main([str(tmp_path / 'c.py')])


def test_no_gpus_option(capsys: pytest.CaptureFixture) -> None:
    """``mim train`` adds --gpus to the command if the help text has it."""
    with pytest.raises(SystemExit):
        TRAIN.parse_args(['--help'])
    printed = capsys.readouterr().out
    assert '--gpus' not in printed
    assert '--local_rank' in printed


def test_checkpoint_with_code_is_refused(tmp_path: Path, config: str) -> None:
    torch.save(dict(meta=dict(seed=0), run=os.system), tmp_path / 'bad.pth')
    with pytest.raises(
        SystemExit, match=r'error: .*bad\.pth. holds \w+\.system beside its weights'
    ):
        TRAIN.main([config, '--resume', str(tmp_path / 'bad.pth')])
