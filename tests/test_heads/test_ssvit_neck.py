import pytest
import torch
from mmpretrain.registry import MODELS
from torch import nn

from mmlocalattn.converters.ssvit import convert
from mmlocalattn.heads.ssvit_neck import SSViTNeck

ARCH = {
    'embed_dims': (16, 32, 64, 96),
    'depths': (2, 2, 2, 2),
    'num_heads': (1, 2, 2, 3),
    'mlp_ratios': (4, 4, 3, 3),
    'layer_scale': (None, None, 1e-6, 1e-6),
}


def classifier() -> nn.Module:
    return MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='mmlocalattn.SSViT', arch=ARCH, out_indices=(3,), output_norm=False),
            neck=dict(type='mmlocalattn.SSViTNeck', in_channels=96, out_channels=64),
            head=dict(type='LinearClsHead', num_classes=10, in_channels=64),
        )
    )


def test_classifier_gives_the_released_logits(golden):
    arrays = {
        name: torch.from_numpy(array) for name, array in golden('ssvit_small_224x256').items()
    }
    model = classifier().eval()
    model.load_state_dict(
        convert({name[6:]: array for name, array in arrays.items() if name.startswith('param/')})
    )
    with torch.no_grad():
        logits = model(arrays['input'], mode='tensor')
    expected = arrays['out/logits']
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()


def test_classifier_trains_every_parameter():
    from mmpretrain.structures import DataSample

    model = classifier()
    model.init_weights()
    samples = [DataSample().set_gt_label(label) for label in (1, 7)]
    model(torch.randn(2, 3, 64, 48), samples, mode='loss')['loss'].backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_uses_the_last_map():
    neck = SSViTNeck(8, 16).eval()
    maps = torch.randn(2, 4, 6, 6), torch.randn(2, 8, 3, 5)
    (vector,) = neck(maps)
    hidden = neck.norm(neck.proj(maps[1]))
    torch.testing.assert_close(vector, (hidden * hidden.sigmoid()).mean((2, 3)))


@pytest.mark.parametrize('norm_cfg', [None, dict(type='SyncBN')])
def test_parameter_count_and_norm(norm_cfg):
    neck = SSViTNeck(512, norm_cfg=norm_cfg)
    assert sum(parameter.numel() for parameter in neck.parameters()) == 512 * 1024 + 3 * 1024
    assert isinstance(neck.norm, nn.SyncBatchNorm if norm_cfg else nn.BatchNorm2d)
