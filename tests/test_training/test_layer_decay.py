import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

ARCH = dict(
    embed_dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), num_heads=(1, 2, 3, 4), mlp_ratios=(2,) * 4
)


class Model(nn.Module):
    """Any model of any task: a backbone and something behind it."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(32, 2)


@pytest.fixture
def model():
    yield Model(MODELS.build(dict(type='mmlocalattn.SSViT', arch=ARCH)))
    DefaultScope._instance_dict.clear()


def groups_of(model, **options):
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1),
            constructor='mmlocalattn.LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(norm_decay_mult=0.0, **options),
        ),
    )
    return {group['param_name']: group for group in wrapper.optimizer.param_groups}


def test_rates_fall_towards_the_stem(model):
    groups = groups_of(model, layer_decay_rate=0.5)
    for group in groups.values():
        print(f'{group["lr"]:<8.5f} {group["weight_decay"]:<4} {group["param_name"]}')
    assert set(groups) == {name for name, _ in model.named_parameters()}
    rates = {name: group['lr'] for name, group in groups.items()}
    assert rates['head.weight'] == rates['backbone.output_norms.0.weight'] == 1
    assert rates['backbone.stages.3.blocks.0.attn.qkv.weight'] == 0.5
    assert rates['backbone.stages.3.downsample.conv.weight'] == 0.5
    assert rates['backbone.stages.2.blocks.1.ffn.fc1.weight'] == 0.5**2
    assert rates['backbone.stages.2.blocks.0.ffn.fc1.weight'] == 0.5**3
    assert rates['backbone.stages.0.blocks.0.norm1.weight'] == 0.5**5
    assert rates['backbone.stem.0.weight'] == 0.5**6
    assert groups['backbone.stages.0.blocks.0.norm1.weight']['weight_decay'] == 0
    assert groups['backbone.stem.0.weight']['weight_decay'] == 0.1


def test_multiplies_with_other_multipliers(model):
    groups = groups_of(model, layer_decay_rate=0.5, custom_keys={'head': dict(lr_mult=10.0)})
    assert groups['head.weight']['lr'] == 10
    assert groups['backbone.stem.0.weight']['lr'] == 0.5**6


@pytest.mark.parametrize('rate', [None, 0.0, 1.5])
def test_rejects_a_rate(model, rate):
    options = {} if rate is None else {'layer_decay_rate': rate}
    with pytest.raises(ValueError, match=rf'layer_decay_rate in \(0, 1\], got {rate}'):
        groups_of(model, **options)


def test_rejects_a_backbone_that_does_not_know_its_layers():
    with pytest.raises(ValueError, match='get_layer_depth, which Conv2d does not have'):
        groups_of(Model(nn.Conv2d(3, 3, 1)), layer_decay_rate=0.5)


def test_one_step_trains(model):
    optimizer = build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type='AdamW', lr=1e-3),
            constructor='mmlocalattn.LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.9),
        ),
    )
    before = model.backbone.stem[0].weight.detach().clone()
    optimizer.update_params(
        model.head(model.backbone(torch.randn(2, 3, 32, 32))[-1].mean((2, 3))).sum()
    )
    assert not torch.equal(model.backbone.stem[0].weight, before)
