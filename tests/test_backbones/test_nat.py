import numpy as np
import pytest
import torch
from backbone_contract import BackboneContract
from torch import nn

from mmlocalattn.backbones.nat import NAT, DiNAT
from mmlocalattn.converters.nat import convert

NARROW = {
    'embed_dims': (8, 12, 16, 24),
    'depths': (2, 1, 2, 2),
    'num_heads': (2, 2, 2, 2),
    'mlp_ratios': (2, 2, 2, 2),
    'layer_scale': (None, None, 0.1, 0.1),
}
GOLDEN_ARCH = {
    'embed_dims': (16, 32, 64, 128),
    'depths': (2, 2, 2, 2),
    'num_heads': (1, 2, 2, 4),
    'mlp_ratios': (3, 3, 3, 3),
}
# Whole classifiers, with the last norm and a linear layer for 1000 classes.
PARAMETERS = {
    (NAT, 'mini'): 19_984_174,
    (NAT, 'tiny'): 27_901_582,
    (NAT, 'small'): 50_743_297,
    (NAT, 'base'): 89_769_652,
    (DiNAT, 'mini'): 19_984_174,
    (DiNAT, 'tiny'): 27_901_582,
    (DiNAT, 'small'): 50_719_681,
    (DiNAT, 'base'): 89_769_652,
    (DiNAT, 'large'): 200_943_514,
}


def without_tail(backbone):
    dims = {arch: settings['embed_dims'][-1] for arch, settings in backbone.arch_settings.items()}
    return {
        arch: PARAMETERS[backbone, arch] - 2 * dim - 1000 * (dim + 1) for arch, dim in dims.items()
    }


class TestNAT(BackboneContract):
    backbone = NAT
    narrow = NARROW
    parameters = without_tail(NAT)


class TestDiNAT(BackboneContract):
    backbone = DiNAT
    narrow = NARROW
    parameters = without_tail(DiNAT)


class TestDiNATWithPadding(BackboneContract):
    backbone = DiNAT
    narrow = NARROW
    options = {'dilations': [[1, 2]] * 4, 'pad_small_maps': True}  # noqa: RUF012
    parameters = without_tail(DiNAT)


def assert_close(actual, expected):
    """``expected`` may be every n-th row of a map (B, C, H, W)."""
    if actual.dim() == 4:
        actual = actual[:, :, :: actual.shape[2] // expected.shape[2]]
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ('name', 'backbone', 'layer_scale'),
    [('nat_small_224x256', NAT, 1e-5), ('dinat_small_224x256', DiNAT, None)],
)
def test_equals_the_released_model(golden, name, backbone, layer_scale):
    """tests/data has the weights of the first two stages and of the tail, equal in both models, and
    some rows of the maps. Whole files (``--golden``) test all stages."""
    arrays = {
        key: torch.from_numpy(array)
        for key, array in {**golden('nat_small_224x256'), **golden(name)}.items()
        if layer_scale or 'gamma' not in key
    }
    image = torch.from_numpy(np.random.default_rng(8).standard_normal((1, 3, 224, 256))).float()
    arch = {**GOLDEN_ARCH, 'layer_scale': (layer_scale,) * 4}
    model = nn.ModuleDict({'backbone': backbone(arch, out_indices=(3,)), 'head': nn.ModuleDict()})
    model['head']['fc'] = nn.Linear(128, 10)
    weights = convert({key[6:]: array for key, array in arrays.items() if key[:6] == 'param/'})
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert unexpected == []
    assert all(key.startswith(('backbone.stages.2.', 'backbone.stages.3.')) for key in missing)

    with torch.no_grad():
        x = model['backbone'].stem(image)
        for index, stage in enumerate(model['backbone'].stages[: 2 if missing else 4]):
            x = stage(x)
            assert_close(x.permute(0, 3, 1, 2), arrays[f'out/stage{index}'])
        last = arrays['out/stage3'].permute(0, 2, 3, 1)
        vector = model['backbone'].output_norms['3'](last).mean((1, 2))
        assert_close(model['head']['fc'](vector), arrays['out/logits'])
        if not missing:
            (last,) = model['backbone'](image)
            assert_close(model['head']['fc'](last.mean((2, 3))), arrays['out/logits'])


def dilations(model):
    return [[block.attn.dilation for block in stage.blocks] for stage in model.stages]


@pytest.mark.parametrize(
    ('name', 'arch', 'expected'),
    [
        ('imagenet', 'mini', [[1, 8, 1], [1, 4, 1, 4], [1, 2] * 3, [1] * 5]),
        ('imagenet', 'large', [[1, 8, 1], [1, 4, 1, 4], [1, 2] * 9, [1] * 5]),
        ('imagenet_384', 'large', [[1, 13, 1], [1, 6, 1, 6], [1, 3] * 9, [1] * 5]),
        ('coco', 'mini', [[1, 28, 1], [1, 7, 1, 14], [1, 3, 1, 5, 1, 7], [1, 3, 1, 3, 1]]),
        ('coco', 'base', [[1, 28, 1], [1, 7, 1, 14], [1, 3, 1, 5, 1, 7] * 3, [1, 3, 1, 3, 1]]),
        ('ade20k', 'tiny', [[1, 16, 1], [1, 4, 1, 8], [1, 2, 1, 3, 1, 4] * 3, [1, 2, 1, 2, 1]]),
        (
            'ade20k_640',
            'large',
            [
                [1, 20, 1],
                [1, 5, 1, 10],
                [1, 2, 1, 3, 1, 4, 1, 5, 1, 2, 1, 3, 1, 4, 1, 5, 1, 5],
                [1, 2, 1, 2, 1],
            ],
        ),
        (
            'mask2former',
            'large',
            [[1, 14, 1], [1, 4, 1, 7], [1, 2, 1, 3] * 4 + [1, 3], [1] * 5],
        ),
    ],
)
def test_dilations_by_name(name, arch, expected):
    with torch.device('meta'):
        assert dilations(DiNAT(arch, dilations=name)) == expected


def test_dilations_by_default_and_by_stage():
    assert dilations(NAT(NARROW)) == [[1, 1], [1], [1, 1], [1, 1]]
    assert dilations(DiNAT(NARROW)) == [[1, 8], [1], [1, 2], [1, 1]]
    for backbone in (NAT, DiNAT):
        model = backbone(NARROW, dilations=[[3], [1, 9], [4, 5], (1, 2, 3)])
        assert dilations(model) == [[3, 3], [1], [4, 5], [1, 2]]


@pytest.mark.parametrize(
    ('backbone', 'given', 'message'),
    [
        (DiNAT, 'cityscapes', r"one of \['imagenet', .*, got dilations='cityscapes'"),
        (DiNAT, [[1, 2]] * 3, 'each of 4 stages, got dilations='),
        (NAT, [[1], [1], [], [1]], 'each of 4 stages, got dilations='),
        (NAT, [[1], [1], [0], [1]], 'dilation must be at least 1, got dilation=0'),
    ],
)
def test_rejects_dilations(backbone, given, message):
    with pytest.raises(ValueError, match=message):
        backbone(NARROW, dilations=given)


def test_padding_changes_maps_below_the_window_only():
    torch.manual_seed(1)
    options = {'dilations': [[1, 2]] * 4, 'out_indices': (0,), 'kernel_size': 5}
    plain, padded = (DiNAT(NARROW, pad_small_maps=pad, **options).eval() for pad in (False, True))
    padded.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for size, equal in (((40, 48), True), ((36, 48), False)):  # maps of 10 x 12 and 9 x 12
            image = torch.randn(1, 3, *size)
            assert torch.equal(plain(image)[0], padded(image)[0]) == equal


def test_kernel_size_reaches_every_block():
    model = NAT(NARROW, kernel_size=11)
    assert {block.attn.kernel_size for stage in model.stages for block in stage.blocks} == {11}


def test_released_initialisation():
    model = NAT({**NARROW, 'embed_dims': (64,) * 4})
    attn = model.stages[2].blocks[1].attn
    for weight in (attn.qkv.weight, attn.proj.weight, attn.rel_pos_bias):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not attn.qkv.bias.any()
    assert model.stages[2].blocks[0].scale1.weight.unique().tolist() == [pytest.approx(0.1)]
    assert model.stages[1].downsample.conv.bias is None


@pytest.mark.needs_torch('2.8', 'torch.compile of a backbone')
def test_inductor() -> None:
    """What the contract shows with `aot_eager`; `bench_model.py --compile` times it."""
    torch.compiler.reset()
    arch = {name: values[:1] for name, values in NARROW.items()} | {'depths': (1,)}
    model = NAT(arch, out_indices=(0,)).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        compiled(torch.randn(2, 3, 72, 90))
        image = torch.randn(3, 3, 100, 118)
        with torch.compiler.set_stance('fail_on_recompile'):
            actual = compiled(image)
        torch.testing.assert_close(actual, model(image), rtol=1e-4, atol=1e-5)
