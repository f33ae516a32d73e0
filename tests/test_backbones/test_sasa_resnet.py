import pytest
import torch
from backbone_contract import BackboneContract
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50

from mmlocalattn.backbones.sasa_resnet import Bottleneck, SASAResNet
from mmlocalattn.layers.stand_alone_attention import StandAloneAttention

NARROW = {
    'embed_dims': (32, 48, 64, 96),
    'depths': (2, 1, 2, 1),
    'num_heads': (2, 2, 2, 2),
}
CLASSIFIER = 2048 * 1000 + 1000  # a linear layer for 1000 classes
STEMS = 9_408 + 128, 2_496  # parameters: convolution; attention


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class SASAResNetContract(BackboneContract):
    backbone = SASAResNet
    narrow = NARROW
    argument = 'depth'


class TestConvStem(SASAResNetContract):
    options = {'zero_init_residual': False}  # noqa: RUF012
    parameters = {'26': 8_293_632, '38': 12_141_632, '50': 15_989_632}  # noqa: RUF012


class TestAttentionStem(SASAResNetContract):
    options = {'stem': 'attention', 'conv_stages': 1, 'zero_init_residual': False}  # noqa: RUF012
    parameters = {'26': 8_310_720, '38': 12_182_848, '50': 16_054_976}  # noqa: RUF012


def resnet_weights(weights: dict) -> dict:
    """torchvision's weights of a ResNet under our names."""
    parts = {'conv1': 'reduce', 'conv2': 'spatial', 'conv3': 'expand', 'downsample': 'shortcut'}
    result = {}
    for name, tensor in weights.items():
        stage, *path = name.split('.')
        if stage in ('conv1', 'bn1'):
            prefix, kind = 'stem.conv', stage
        elif stage.startswith('layer'):
            block, part, *rest = path
            kind = {'0': 'conv', '1': 'bn'}[rest[0]] if part == 'downsample' else part
            part = parts[part.replace('bn', 'conv')]
            prefix = f'stages.{int(stage[5:]) - 1}.blocks.{block}.{part}'
        else:
            continue
        result[f'{prefix}.{"conv" if kind.startswith("conv") else "norm"}.{path[-1]}'] = tensor
    return result


def test_without_attention_it_is_resnet50():
    expected, model = resnet50().eval(), SASAResNet(conv_stages=4).eval()
    for module in expected.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.weight, 0.2, 0.5)
    model.load_state_dict(resnet_weights(expected.state_dict()))
    image = torch.randn(1, 3, 75, 100)
    with torch.no_grad():
        maps = model(image)
        x = expected.maxpool(expected.relu(expected.bn1(expected.conv1(image))))
        for index, output in enumerate(maps):
            x = expected.get_submodule(f'layer{index + 1}')(x)
            assert (output - x).abs().max() < 1e-4 * x.abs().max()


# 1e6 parameters with a classifier of 1000 classes as published (tables 1 and 3), and exactly ours
PARAMETERS = [
    (26, 4, 13.7, 13_696_552),
    (38, 4, 19.6, 19_626_792),
    (50, 4, 25.6, 25_557_032),
    (26, 0, 10.3, 10_342_632),
    (38, 0, 14.1, 14_190_632),  # published with its last digit cut
    (50, 0, 18.0, 18_038_632),
    (50, 1, 18.1, 18_111_016),
    (50, 2, 18.5, 18_500_648),
    (50, 3, 20.8, 20_849_192),
]


@pytest.mark.parametrize(('depth', 'conv_stages', 'published', 'exact'), PARAMETERS)
def test_published_parameters(depth, conv_stages, published, exact):
    with torch.device('meta'):
        models = [SASAResNet(depth, conv_stages=conv_stages, stem=s) for s in ('conv', 'attention')]
    counts = [parameters(model) + CLASSIFIER for model in models]
    assert counts == [exact, exact - STEMS[0] + STEMS[1]]
    digits = {round(count / 1e6, 1) for count in counts} | {exact // 10**5 / 10}
    assert published in digits
    assert (published == round(exact / 1e6, 1)) == (depth != 38 or conv_stages > 0)


@pytest.mark.parametrize('conv_stages', range(5))
def test_conv_stages_keep_their_convolutions(conv_stages):
    model = SASAResNet(NARROW, conv_stages=conv_stages)
    for index, stage in enumerate(model.stages):
        attention = [m for m in stage.modules() if isinstance(m, StandAloneAttention)]
        convs = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        depth = NARROW['depths'][index]
        assert (len(convs), len(attention)) == ((depth, 0) if index < conv_stages else (0, depth))
        strides = [module.stride for module in (attention or convs)]
        first = 2 if index else 1
        assert strides == [first if attention else (first,) * 2] + [
            1 if attention else (1, 1) for _ in range(depth - 1)
        ]


@pytest.mark.parametrize('padding', ['mask', 'zero'])
@pytest.mark.parametrize('norm_eval', [True, False])
def test_a_step_in_training(norm_eval, padding):
    """With fixed statistics the norms are folded, and still learn."""
    model = SASAResNet(NARROW, norm_eval=norm_eval, padding=padding, zero_init_residual=False)
    outputs = model.train()(torch.randn(2, 3, 64, 96))
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize('stem', ['conv', 'attention'])
def test_folding_changes_nothing(stem, monkeypatch):
    model, image = SASAResNet(NARROW, stem=stem, conv_stages=1), torch.randn(2, 3, 64, 96)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor in (norm.running_mean, norm.weight, norm.bias):
            nn.init.normal_(tensor)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    model.eval()
    with torch.no_grad():
        folded = model(image)
        for layer in ('conv_norm', 'stand_alone_attention', 'attention_stem'):
            monkeypatch.setattr(f'mmlocalattn.layers.{layer}.fixed_affine', lambda norm: None)
        for output, expected in zip(folded, model(image), strict=True):
            assert (output - expected).abs().max() < 1e-4 * expected.abs().max()


def test_zero_init_residual():
    model = SASAResNet(NARROW)
    assert all(not b.expand.norm.weight.any() for b in model.modules() if isinstance(b, Bottleneck))


def test_flops_of_the_attention():
    """An image of 224 x 224; nothing is computed on the meta device."""
    with torch.device('meta'):
        model, image = SASAResNet(26), torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        model(image)
    flops = {str(op): count for op, count in counter.get_flop_counts()['Global'].items()}
    # the blocks with a stride attend before they pool
    positions = [56**2, 56**2 + 28**2, 28**2 + 3 * 14**2, 14**2]
    products = sum(p * dim for p, dim in zip(positions, (64, 128, 256, 512)))
    assert flops['mmlocalattn.stand_alone_attention'] == 2 * 2 * 49 * products


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'depth': 101}, r"\['26', '38', '50'\] or a dict, got arch='101'"),
        ({'stem': 'patch'}, "must be 'conv' or 'attention', got stem='patch'"),
        ({'conv_stages': 5}, r'must be in 0..4, got conv_stages=5'),
        ({'kernel_size': 4}, 'got kernel_size=4'),
        ({'padding': 'same'}, "got padding='same'"),
    ],
)
def test_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        SASAResNet(**options)
