"""A model runs on random data, or says what is wrong with it."""

from pathlib import Path

import pytest
import tiny_data
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from tiny_data import quick  # noqa: F401

from mmlocalattn.adapt.nodes import dicts
from mmlocalattn.adapt.trial import random_batch, run_model, small_model
from mmlocalattn.training import load_config

pytestmark = pytest.mark.usefixtures('quick')


def read(tmp_path: Path, text: str) -> Config:
    return load_config(tiny_data.write_config(tmp_path / 'c.py', text, tmp_path))


@pytest.mark.parametrize('task', ['DETECTION', 'SEGMENTATION', 'CLASSIFICATION'])
def test_models_run(tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = read(tmp_path, getattr(tiny_data, task))
    before = cfg.pretty_text
    modes = []
    parent = type(build(cfg))
    forward = parent.forward

    def record(self: torch.nn.Module, *args: object, mode: str, **options: object) -> object:
        modes.append(mode)
        return forward(self, *args, mode=mode, **options)

    monkeypatch.setattr(parent, 'forward', record)
    run_model(cfg)
    assert modes == ['loss', 'predict']
    assert cfg.pretty_text == before


def build(cfg: Config) -> torch.nn.Module:
    init_default_scope(cfg.default_scope)
    return MODELS.build(small_model(cfg, 64))


def test_what_is_wrong_is_raised(tmp_path: Path) -> None:
    cfg = read(tmp_path, tiny_data.SEGMENTATION)
    cfg.model.decode_head.in_channels = [16, 16, 16, 17]
    with pytest.raises(RuntimeError, match='17'):
        run_model(cfg)


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    cfg = read(tmp_path, tiny_data.CLASSIFICATION)
    cfg.model.head.loss.loss_weight = float('nan')
    with pytest.raises(ValueError, match='loss is nan'):
        run_model(cfg)


def test_small_models(tmp_path: Path) -> None:
    cfg = read(tmp_path, tiny_data.DETECTION)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='no.pth')
    cfg.model.roi_head.bbox_head.num_classes = 1203
    cfg.model.neck.norm_cfg = dict(type='MMSyncBN')
    cfg.model.data_preprocessor.size = (800, 800)
    model = small_model(cfg, 128)
    assert model['backbone']['init_cfg'] is None
    assert model['roi_head']['bbox_head']['num_classes'] == 100
    assert model['neck']['norm_cfg'] == dict(type='BN')
    assert model['data_preprocessor']['size'] == (128, 128)
    assert cfg.model.roi_head.bbox_head.num_classes == 1203


@pytest.mark.parametrize('task', ['DETECTION', 'SEGMENTATION', 'CLASSIFICATION'])
def test_batches(tmp_path: Path, task: str) -> None:
    batch = random_batch(read(tmp_path, getattr(tiny_data, task)), (32, 48), 3, num_objects=5)
    assert [image.shape for image in batch['inputs']] == [(3, 32, 48)] * 3
    assert len(batch['data_samples']) == 3
    if task == 'DETECTION':
        assert [len(sample.gt_instances) for sample in batch['data_samples']] == [5] * 3


def test_other_packages_have_no_batches() -> None:
    with pytest.raises(ValueError, match="default_scope is 'mmengine': there are random data for"):
        random_batch(Config(dict(default_scope='mmengine')), (32, 32))


def test_dicts_from_the_outside() -> None:
    node = dict(a=[dict(b=1), (dict(c={}),)], d=2)
    assert list(dicts(node)) == [node, dict(b=1), dict(c={}), {}]
