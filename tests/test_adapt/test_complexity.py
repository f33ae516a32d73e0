"""Multiply-adds and parameters: those that MMEngine counts, and independent of the weights."""

from pathlib import Path

import pytest
import tiny_data
import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from tiny_data import quick  # noqa: F401

from mmlocalattn.adapt.complexity import IMAGE_SIZES, model_complexity

pytestmark = pytest.mark.usefixtures('quick')


def read(tmp_path: Path, text: str) -> Config:
    return Config.fromfile(tiny_data.write_config(tmp_path / 'config.py', text, tmp_path))


SLIDE_SWIN = """
_base_ = '{configs}/slide_swin_t_300e_imagenet.py'
model = dict(
    backbone=dict(arch=dict(
        _delete_=True, embed_dims=[8, 16, 24, 32], depths=[1, 1, 2, 1], num_heads=[1, 2, 3, 4],
        mlp_ratios=[2, 2, 2, 2])),
    head=dict(in_channels=32))
"""


@pytest.mark.parametrize('text', [tiny_data.CLASSIFICATION, tiny_data.SEGMENTATION, SLIDE_SWIN])
def test_counts_as_mmengine(tmp_path: Path, text: str) -> None:
    cfg = read(tmp_path, text)
    found = model_complexity(cfg, (64, 96))
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    assert found.params == sum(parameter.numel() for parameter in model.parameters())

    inner = model.forward

    def forward(images: torch.Tensor) -> object:
        if cfg.default_scope == 'mmseg':
            return model.encode_decode(images, [dict(img_shape=(64, 96))])
        return inner(images)

    model.forward = forward
    counts = FlopAnalyzer(model, (torch.rand(1, 3, 64, 96),)).by_operator()
    counts.pop('adaptive_avg_pool2d', None)  # a mean for PyTorch
    assert found.flops == sum(counts.values())


def test_regions_do_not_depend_on_the_weights(tmp_path: Path) -> None:
    cfg = read(tmp_path, tiny_data.DETECTION)
    counts = {}
    for proposals, detections in ((0, 0), (1000, 0), (0, 100)):
        cfg.model.test_cfg.rpn.max_per_img = proposals
        cfg.model.test_cfg.rcnn.max_per_img = detections
        counts[proposals, detections] = model_complexity(cfg, (64, 64)).flops
    box = 16 * 49 * 16 + 16 * 16 + 16 * (3 + 8)  # two hidden layers; classes and offsets
    mask = 4 * 9 * 16 * 16 * 14**2 + 16 * 16 * 28**2 + 16 * 2 * 28**2  # two by two taps, stride two
    assert counts[1000, 0] - counts[0, 0] == 1000 * box
    assert counts[0, 100] - counts[0, 0] == 100 * mask


def test_image_of_the_papers(tmp_path: Path) -> None:
    cfg = read(tmp_path, tiny_data.CLASSIFICATION)
    assert model_complexity(cfg) == model_complexity(cfg, IMAGE_SIZES['mmpretrain'])
    cfg.default_scope = 'mmengine'
    with pytest.raises(ValueError, match="default_scope is 'mmengine': give the shape"):
        model_complexity(cfg)
