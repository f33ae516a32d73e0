"""Parts of a model in bfloat16, the rest in float32."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from test_configs import load, shrink
from torch import Tensor, nn

from mmlocalattn.adapt.trial import random_batch
from mmlocalattn.training import autocast_parts, has_bfloat16_units, low_precision

PARTS = {
    'maskrcnn_ssvit_t_1x_coco': {
        'backbone',
        'neck',
        'rpn_head',
        'roi_head.bbox_head',
        'roi_head.mask_head',
    },
    'cascade_maskrcnn_nat_t_3x_coco': {
        *('backbone', 'neck', 'rpn_head'),
        *(f'roi_head.{head}_head.{stage}' for head in ('bbox', 'mask') for stage in range(3)),
    },
    'retinanet_ssvit_t_1x_coco': {'backbone', 'neck', 'bbox_head'},
    'detr_qna_vit_t_150e_coco': {'backbone', 'neck', 'bbox_head'},
    'upernet_nat_t_160k_ade20k': {'backbone', 'decode_head', 'auxiliary_head'},
    'nat_t_300e_imagenet': {'backbone', 'neck', 'head'},
}


def build(name: str) -> tuple[Config, Any]:
    cfg = load(name)
    init_default_scope(cfg.default_scope)
    shrink(cfg.model)
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    torch.manual_seed(0)
    return cfg, revert_sync_batchnorm(MODELS.build(cfg.model))


def dtypes(outputs: Any) -> set[torch.dtype]:
    if isinstance(outputs, Tensor):
        return {outputs.dtype}
    return set().union(*map(dtypes, outputs))


@pytest.mark.parametrize('name', PARTS)
def test_loss_and_prediction(name: str) -> None:
    """Products are in bfloat16, what a part hands on in float32, and the loss nearly the same."""
    cfg, model = build(name)
    torch.manual_seed(1)
    batch = random_batch(cfg, (64, 64), 2, True, 3)
    if getattr(model.data_preprocessor, 'size', None):
        model.data_preprocessor.size = (64, 64)
    losses = []
    found: dict[str, set] = {'product': set(), 'part': set()}
    for dtype in ('float32', 'bfloat16'):
        parts = autocast_parts(model, dtype)
        for part in parts:
            model.get_submodule(part).register_forward_hook(
                lambda module, inputs, out: found['part'].update(dtypes(out))
            )
        if parts:
            for module in model.backbone.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    module.register_forward_hook(
                        lambda module, inputs, out: found['product'].update(dtypes(out))
                    )
        model.train()
        torch.manual_seed(2)
        data = model.data_preprocessor(copy.deepcopy(batch), training=True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        losses.append(loss)
    assert set(parts) == PARTS[name]
    assert found == {'product': {torch.bfloat16}, 'part': {torch.float32}}
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.05)
    assert losses[1].item() != losses[0].item()
    losses[1].backward()
    assert all(
        weight.grad.isfinite().all()
        for weight in model.backbone.parameters()
        if weight.requires_grad
    )
    model.eval()
    with torch.no_grad():
        assert len(model(**model.data_preprocessor(batch), mode='predict')) == 2


def test_float32_changes_nothing() -> None:
    _, model = build('nat_t_300e_imagenet')
    assert autocast_parts(model, 'float32') == []
    assert 'forward' not in vars(model.backbone)


def test_only_in_training() -> None:
    _, model = build('nat_t_300e_imagenet')
    model.eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.backbone(image)[-1]
        hook = low_precision.TrainDtypeHook('bfloat16')
        runner = SimpleNamespace(model=nn.ModuleDict({'module': model}), logger=MMLogger('a'))
        hook.before_train(runner)
        assert torch.equal(model.backbone(image)[-1], expected)
        model.train()
        assert not torch.equal(model.backbone(image)[-1], expected)


def test_model_without_parts() -> None:
    with pytest.raises(ValueError, match='Linear has no backbone, neck or head to run in bfloat16'):
        autocast_parts(nn.Linear(2, 2), 'bfloat16')


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('processor : 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n', True),
        ('flags\t\t: fpu avx2 avx512f\n', False),
        ('Features\t: fp asimd bf16\n', True),
        ('', False),
    ],
)
def test_units(text: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / 'cpuinfo'
    info.write_text(text)
    monkeypatch.setattr(low_precision, 'Path', lambda path: info)
    assert has_bfloat16_units() is expected
    info.unlink()
    assert has_bfloat16_units() is False
