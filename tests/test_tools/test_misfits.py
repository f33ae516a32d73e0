"""A model whose parts do not fit each other, or its pipelines: one line before training."""

from pathlib import Path

import numpy as np
import pytest
import tiny_data
import torch
from tiny_data import data, quick  # noqa: F401

from mmlocalattn.training import build_runner
from mmlocalattn.training.config import load_config

TRAIN = tiny_data.load_tool('train')
TEST = tiny_data.load_tool('test')
pytestmark = pytest.mark.usefixtures('quick')

LOAD = "dict(type='LoadImageFromFile')"
PACK = "dict(type='PackDetInputs')"


def loader(*steps: str, split: str = 'train') -> str:
    loader, pipeline = f'{split}_dataloader', f'[{", ".join(steps)}]'
    return f'{loader} = dict({loader}, dataset=dict(data, pipeline={pipeline}))'


@pytest.mark.parametrize(
    ('task', 'extra', 'message'),
    [
        (
            'DETECTION',
            "model['neck']['in_channels'][3] = 64",
            r'a validation would stop: model\.neck \(FPN\): its lateral_convs\.3\.conv takes 64 '
            r'channels and gets 32, of \(1, 32, 2, 2\): set its in_channels to what the part '
            'before it gives$',
        ),
        (
            'DETECTION',
            "model['rpn_head']['in_channels'] = 8",
            r'.*: model\.rpn_head \(RPNHead\): its rpn_conv takes 8 channels and gets 16, ',
        ),
        (
            'DETECTION',
            "model['roi_head']['bbox_head']['roi_feat_size'] = 5",
            r'.*: model\.roi_head\.bbox_head \(Shared2FCBBoxHead\): its shared_fcs\.0 takes 400 '
            r'channels and gets 784, .*: set its in_channels and roi_feat_size to what',
        ),
        (
            'DETECTION',
            "model['rpn_head']['anchor_generator'] = dict(strides=[4, 8, 16, 32])",
            r'model\.rpn_head\.anchor_generator\.strides is \[4, 8, 16, 32\], and the maps that '
            r'it is for have strides of \[4, 8, 16, 32, 64\]: set it to those, or num_outs, ',
        ),
        (
            'DETECTION',
            "model['roi_head']['bbox_roi_extractor']['featmap_strides'] = [8, 16, 32, 64]",
            r'model\.roi_head\.bbox_roi_extractor\.featmap_strides is \[8, 16, 32, 64\], and ',
        ),
        (
            'SEGMENTATION',
            "model['decode_head']['in_channels'] = [16, 16, 16, 8]",
            r'.*: model\.decode_head \(FPNHead\): its scale_heads\.3\.0\.conv takes 8 channels and',
        ),
        (
            'SEGMENTATION',
            "model['decode_head']['in_index'] = [0, 1, 2, 4]",
            r'.*: model\.decode_head \(FPNHead\), which gets (\(1, 16, \d+, \d+\)(, )?){4}, does '
            r'not take its first batch: IndexError: .* \(mmseg/.*py, line \d+\)$',
        ),
        (
            'CLASSIFICATION',
            "model['head']['in_channels'] = 8",
            r'.*: model\.head \(.*Head\): its (layers\.)?fc\w* takes 8 channels and gets 16, ',
        ),
        (
            'DETECTION',
            loader(LOAD, "dict(type='LoadAnnotations', with_bbox=True, with_mask=True)"),
            r"train_dataloader\.dataset\.pipeline makes no 'inputs' for the model: it must end "
            r"with dict\(type='PackDetInputs'\)$",
        ),
        (
            'DETECTION',
            loader(LOAD, PACK),
            r'train_dataloader\.dataset\.pipeline makes no boxes to learn: it must have dict\('
            r"type='LoadAnnotations', with_bbox=True\)$",
        ),
        (
            'DETECTION',
            loader("dict(type='Resize', scale=(64, 64))", PACK, split='val'),
            r'val_dataloader\.dataset\.pipeline: Resize: .* \(mm\w+/.*\.py, line \d+\)$',
        ),
        (
            'DETECTION',
            loader(LOAD, "dict(type='PackDetInputs', meta_keys=('img_shape',))", split='val'),
            r'a validation would stop: .*KeyError: ',
        ),
        (
            'SEGMENTATION',
            loader(LOAD, "dict(type='PackSegInputs')"),
            r'train_dataloader\.dataset\.pipeline makes no index map to learn: it must have dict\('
            r"type='LoadAnnotations'\)$",
        ),
    ],
)
def test_misfits(
    tmp_path: Path,
    data: Path,  # noqa: F811
    task: str,
    extra: str,
    message: str,
) -> None:
    config = tiny_data.write_config(tmp_path / 'c.py', getattr(tiny_data, task), data, extra)
    with pytest.raises(SystemExit, match=f'^error: .*c.py: {message}') as stopped:
        tiny_data.run(TRAIN, config, '--work-dir', tmp_path / 'run')
    assert '\n' not in stopped.value.code
    assert not list((tmp_path / 'run').rglob('*.pth'))


def test_misfit_of_the_training_alone(tmp_path: Path, data: Path) -> None:  # noqa: F811
    extra = "model['auxiliary_head'] = dict(type='FCNHead', in_channels=8, in_index=1, "
    extra += 'channels=8, num_classes=3)'
    config = tiny_data.write_config(tmp_path / 'c.py', tiny_data.SEGMENTATION, data, extra)
    message = r'c.py: model\.auxiliary_head \(FCNHead\): its convs\.0\.conv takes 8 channels and '
    with pytest.raises(SystemExit, match=message):
        tiny_data.run(TRAIN, config, '--work-dir', tmp_path / 'run')


def test_test(tmp_path: Path, data: Path) -> None:  # noqa: F811
    extra = "model['rpn_head']['in_channels'] = 8"
    config, checkpoint = tiny_data.write_model(tmp_path, data, 'DETECTION', extra)
    message = r'^error: .*c.py: model\.rpn_head \(RPNHead\): its rpn_conv takes 8 channels and '
    argv = (TEST, config, checkpoint, '--work-dir', tmp_path / 'run')
    with pytest.raises(SystemExit, match=message):
        tiny_data.run(*argv)
    with pytest.raises(SystemExit, match=message):  # also where the training data are not there
        tiny_data.run(*argv, '--cfg-options', 'train_dataloader.dataset.ann_file=no.json')


def test_export(tmp_path: Path, data: Path) -> None:  # noqa: F811
    extra = "model['neck']['in_channels'].append(64)"
    config, checkpoint = tiny_data.write_model(tmp_path, data, 'DETECTION', extra)
    argv = (config, checkpoint, '--format', 'torchscript', '--out', tmp_path / 'model.pt')
    message = r'c\.py does not run on an image of --size 64x64: AssertionError: .*fpn\.py, line '
    with pytest.raises(SystemExit, match=message):
        tiny_data.run(tiny_data.load_tool('export'), *argv)


def test_random_numbers_are_those_of_a_run_without_the_check(
    tmp_path: Path,
    data: Path,  # noqa: F811
) -> None:
    config = tiny_data.write_config(tmp_path / 'c.py', tiny_data.DETECTION, data)
    cfg = load_config(config, {'work_dir': str(tmp_path / 'run')})
    runner = build_runner(cfg)
    runner._train_loop = runner.build_train_loop(cfg.train_cfg)
    runner._val_loop = runner.build_val_loop(cfg.val_cfg)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    weights = {name: value.clone() for name, value in runner.model.state_dict().items()}
    next(h for h in runner.hooks if type(h).__name__ == 'FirstItemHook').before_train(runner)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert all(
        torch.equal(value, weights[name]) for name, value in runner.model.state_dict().items()
    )
    assert runner.model.training
    assert not runner.val_loop.evaluator.metrics[0].results
