import importlib
import math
import re

import numpy as np
import pytest
import torch
from backbone_contract import BackboneContract
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmlocalattn.backbones.nat import NAT
from mmlocalattn.backbones.slide_transformer import (
    SlideCSwin,
    SlideNAT,
    SlidePVT,
    SlidePVTv2,
    SlideSwin,
)
from mmlocalattn.converters.slide_swin import convert, infer_options
from mmlocalattn.layers.slide_attention import SlideAttention

NARROW = {
    'embed_dims': (8, 12, 16, 24),
    'depths': (2, 1, 2, 2),
    'num_heads': (2, 2, 2, 2),
    'mlp_ratios': (2, 2, 2, 2),
}
PVT = {**NARROW, 'sr_ratios': (8, 4, 2, 1)}
CSWIN = {**NARROW, 'split_sizes': (1, 2, 7, None)}
# Parameters with the last norm and a linear layer for 1000 classes: of the host, with slide
# attention, and of both in millions as published (CSwin rounds up).
PARAMETERS = {
    SlideSwin: {
        'tiny': (28_288_354, 28_298_146, 28.3, None),
        'small': (49_606_258, 49_616_050, 49.6, None),
        'base': (87_768_224, 87_777_056, 87.8, None),
    },
    SlidePVT: {
        'tiny': (13_228_264, 12_203_934, 13.2, 12.2),
        'small': (24_484_840, 22_692_171, 24.5, 22.7),
        'medium': (44_207_080, 42_414_411, 44.2, None),
    },
    SlidePVTv2: {
        'b1': (14_009_000, 12_984_670, 14.0, 13.0),
        'b2': (25_362_856, 23_570_187, 25.4, None),
        'b3': (45_238_696, 43_446_027, 45.2, None),
        'b4': (62_556_072, 59_738_707, 62.6, None),
        'b5': (81_956_008, 79_650_991, 82.0, None),
    },
    SlideCSwin: {
        'tiny': (22_320_552, 22_326_946, 23, None),
        'small': (34_643_304, 34_656_092, 35, 35),
        'base': (77_382_184, 77_387_200, 78, 78),
    },
    SlideNAT: {
        'mini': (19_984_174, 19_992_718, 20, None),
        'tiny': (27_901_582, 27_910_126, 28, 28),
        'small': (50_743_297, 50_751_361, 51, 51),
    },
}
# 1e9 multiply-adds for 224 x 224 as published for the slide model
MULTIPLY_ADDS = {(SlidePVT, 'tiny'): 2.0, (SlidePVTv2, 'b1'): 2.2, (SlideNAT, 'tiny'): 4.3}


def alone(backbone, slides):
    """Parameters without the classification tail."""
    last_norm = 0 if backbone is SlidePVTv2 else 2  # its stages end with a norm
    return {
        arch: counts[slides] - (1000 + last_norm) * dims[-1] - 1000
        for arch, counts in PARAMETERS[backbone].items()
        for dims in [backbone.arch_settings[arch]['embed_dims']]
    }


class SlideContract(BackboneContract):
    """Subclasses run both as the slide model and, as ``Host``, without slide attention."""

    in_a_graph = {'depths': (1, 1, 2, 2)}  # noqa: RUF012

    def test_which_stages_slide(self):
        model = self.build()
        slides = [
            all(isinstance(block.attn, SlideAttention) for block in stage.blocks)
            for stage in model.stages
        ]
        count = self.options.get('num_slide_stages', 1 if self.backbone is SlideNAT else 2)
        assert slides == [stage < count for stage in range(4)]


class TestSlideSwin(SlideContract):
    backbone, narrow, parameters = SlideSwin, NARROW, alone(SlideSwin, 1)


class TestSlidePVT(SlideContract):
    backbone, narrow, parameters = SlidePVT, PVT, alone(SlidePVT, 1)


class TestSlidePVTv2(SlideContract):
    backbone, narrow, parameters = SlidePVTv2, PVT, alone(SlidePVTv2, 1)


class TestSlideCSwin(SlideContract):
    backbone, narrow, parameters = SlideCSwin, CSWIN, alone(SlideCSwin, 1)


class TestSlideNAT(SlideContract):
    backbone, parameters = SlideNAT, alone(SlideNAT, 1)
    narrow = {**NARROW, 'layer_scale': (None, None, 0.1, 0.1)}  # noqa: RUF012


class Host:
    options = {'num_slide_stages': 0}  # noqa: RUF012


class TestSwin(Host, TestSlideSwin):
    in_a_graph = {}  # noqa: RUF012 - the second block shifts its windows
    parameters = alone(SlideSwin, 0)


class TestPVT(Host, TestSlidePVT):
    parameters = alone(SlidePVT, 0)


class TestPVTv2(Host, TestSlidePVTv2):
    parameters = alone(SlidePVTv2, 0)


class TestCSwin(Host, TestSlideCSwin):
    parameters = alone(SlideCSwin, 0)


class TestNATHost(Host, TestSlideNAT):
    parameters = alone(SlideNAT, 0)


@pytest.mark.parametrize('backbone', PARAMETERS)
def test_published_parameters(backbone):
    for host, slide, *published in PARAMETERS[backbone].values():
        for count, millions in zip((host, slide), published):
            if millions is not None:
                places = 0 if isinstance(millions, int) else 1
                rounded = math.ceil(count / 1e6) if not places else round(count / 1e6, 1)
                assert rounded == millions


@pytest.mark.parametrize(('arch', 'millions'), [('tiny', 28.34), ('small', 49.74), ('base', 87.94)])
def test_parameters_of_the_released_slide_swin(arch, millions):
    with torch.device('meta'):
        model = nn.ModuleList([SlideSwin(arch, window_size=56, out_indices=(3,))])
        model.append(nn.Linear(model[0].out_channels[0], 1000))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(millions * 1e6, abs=5e3)


@pytest.mark.parametrize(('backbone', 'arch'), MULTIPLY_ADDS)
def test_published_multiply_adds(backbone, arch):
    """Nothing is computed on the meta device."""
    with torch.device('meta'):
        model = backbone(arch)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 224, 224))
    assert round(counter.get_total_flops() / 2e9, 1) == MULTIPLY_ADDS[backbone, arch]


@pytest.mark.parametrize('name', ['slide_swin_small_ws7', 'slide_swin_small_ws56'])
def test_equals_the_released_model(golden, name):
    """Both window sizes share what the second file lacks; tests/data has no stage 3."""
    arrays = {
        key: torch.from_numpy(array)
        for key, array in {**golden('slide_swin_small_ws7'), **golden(name)}.items()
    }
    weights = {key[6:]: array for key, array in arrays.items() if key[:6] == 'param/'}
    options = infer_options(weights)
    assert options == {
        'num_slide_stages': 2,
        'kernel_size': 3,
        'window_size': int(name.rpartition('ws')[2]),
    }
    arch = {
        'embed_dims': (16, 32, 64, 128),
        'depths': (2, 2, 2, 2),
        'num_heads': (1, 2, 2, 4),
        'mlp_ratios': (4, 4, 4, 4),
    }
    model = nn.ModuleDict({'backbone': SlideSwin(arch, out_indices=(3,), **options)})
    model['head'] = nn.ModuleDict({'fc': nn.Linear(128, 10)})
    missing, unexpected = model.load_state_dict(convert(weights), strict=False)
    assert unexpected == []
    assert all(key.startswith('backbone.stages.3.') for key in missing)

    image = torch.from_numpy(np.random.default_rng(6).standard_normal((1, 3, 224, 224))).float()
    with torch.no_grad():
        x = model['backbone'].stem(image)
        for index, stage in enumerate(model['backbone'].stages[: 3 if missing else 4]):
            x = stage(x)
            if (key := f'out/stage{index}') in arrays:
                assert_close(x.permute(0, 3, 1, 2), arrays[key])
        last = arrays['out/stage3'].permute(0, 2, 3, 1)
        vector = model['backbone'].output_norms['3'](last).mean((1, 2))
        assert_close(model['head']['fc'](vector), arrays['out/logits'])
        if not missing:
            (last,) = model['backbone'](image)
            assert_close(model['head']['fc'](last.mean((2, 3))), arrays['out/logits'])


def assert_close(result, expected):
    assert (result - expected).abs().max() < 1e-4 * expected.abs().max()


def rename(state_dict, renames):
    """Names by regular expressions, in turn."""
    renamed = {}
    for name, tensor in state_dict.items():
        for pattern, ours in renames:
            name = re.sub(pattern, ours, name)
        renamed[name] = tensor
    return renamed


def randomize(model):
    """So that no parameter is 0 or 1, and what it does shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def assert_same_maps(ours, theirs, size):
    image = torch.randn(1, 3, *size)
    for model in (ours, theirs):
        model.eval()
    with torch.no_grad():
        for result, expected in zip(ours(image), theirs(image), strict=True):
            assert_close(result, expected)


def merging_order(name, tensor):
    """mmdet's PatchMerging has the channels of four neighbors side by side."""
    if 'downsample' in name:
        tensor = tensor.unflatten(-1, (-1, 2, 2)).transpose(-1, -2).flatten(-2)
        tensor = tensor.transpose(-1, -2).flatten(-2)
    return tensor


def test_swin_is_that_of_mmdet():
    """On maps of several whole windows: mmdet attends to padding, and shifts a single window."""
    from mmdet.models.backbones import SwinTransformer

    theirs = SwinTransformer(embed_dims=8, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4))
    randomize(theirs)
    arch = {
        'embed_dims': (8, 16, 32, 64),
        'depths': (2, 2, 2, 2),
        'num_heads': (1, 2, 2, 4),
        'mlp_ratios': (4, 4, 4, 4),
    }
    ours = SlideSwin(arch, num_slide_stages=0)
    renamed = rename(
        theirs.state_dict(),
        (
            (r'^patch_embed\.projection', 'stem.proj'),
            (r'^patch_embed\.norm', 'stem.norm'),
            (r'attn\.w_msa\.relative_position_bias_table', 'attn.rel_pos_bias'),
            (r'attn\.w_msa', 'attn'),
            (r'ffn\.layers\.0\.0', 'mlp.fc1'),
            (r'ffn\.layers\.1', 'mlp.fc2'),
            (r'^norm([0-3])', r'output_norms.\1'),
            *((rf'^stages\.{i}\.downsample', f'stages.{i + 1}.step') for i in (2, 1, 0)),
            ('step', 'downsample'),
        ),
    )
    weights = {}
    for name, tensor in renamed.items():
        if name.endswith('rel_pos_bias'):
            tensor = tensor.t().unflatten(1, (13, 13))
        if 'relative_position_index' not in name:
            weights[name] = merging_order(name, tensor)
    ours.load_state_dict(weights)
    assert_same_maps(ours, theirs, (448, 448))


PVT_NAMES = (
    (r'^layers\.0\.0\.', 'stem.'),
    (r'^layers\.(\d)\.0\.', r'stages.\1.downsample.'),
    (r'^layers\.(\d)\.1\.(\d)\.', r'stages.\1.blocks.\2.'),
    (r'^layers\.(\d)\.2\.', r'stages.\1.norm.'),
    (r'projection\.', 'proj.'),
    (r'attn\.sr\.', 'attn.reduction.proj.'),
    (r'attn\.norm\.', 'attn.reduction.norm.'),
    (r'attn\.attn\.out_proj\.', 'attn.proj.'),
    (r'attn\.attn\.in_proj_', 'attn.in_proj.'),
)
V1_NAMES = ((r'ffn\.layers\.0\.', 'mlp.fc1.'), (r'ffn\.layers\.3\.', 'mlp.fc2.'))
V2_NAMES = (
    (r'ffn\.layers\.0\.', 'mlp.fc1.'),
    (r'ffn\.layers\.1\.', 'mlp.dwconv.'),
    (r'ffn\.layers\.4\.', 'mlp.fc2.'),
)


def load_pvt(ours, theirs, names):
    weights = {}
    for name, tensor in rename(theirs.state_dict(), (*names, *PVT_NAMES)).items():
        if 'in_proj' in name:
            dim = len(tensor) // 3
            weights[name.replace('in_proj', 'q')] = tensor[:dim]
            weights[name.replace('in_proj', 'kv')] = tensor[dim:]
        else:
            weights[name] = tensor.reshape(ours.state_dict()[name].shape)
    ours.load_state_dict(weights)


PVT_ARCH = {
    'embed_dims': (8, 16, 40, 64),
    'depths': (1, 1, 1, 1),
    'num_heads': (1, 2, 5, 8),
    'mlp_ratios': (8, 8, 4, 4),
    'sr_ratios': (8, 4, 2, 1),
}


def mmdet_pvt(name):
    """With mmdet's one eps for all norms, as :func:`our_pvt` has."""
    backbones = importlib.import_module('mmdet.models.backbones')
    model = getattr(backbones, name)(
        embed_dims=8, num_layers=[1, 1, 1, 1], norm_cfg=dict(type='LN', eps=1e-5)
    )
    randomize(model)
    return model


def our_pvt(backbone):
    model = backbone(PVT_ARCH, num_slide_stages=0, output_norm=False)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    return model


@pytest.mark.parametrize('size', [(224, 224), (256, 160)])
def test_pvt_is_that_of_mmdet(size):
    ours, theirs = our_pvt(SlidePVT), mmdet_pvt('PyramidVisionTransformer')
    positions = (
        (r'^layers\.0\.0\.', 'stem.0.'),
        (r'^layers\.(\d)\.0\.', r'stages.\1.downsample.0.'),
        (r'^layers\.0\.1\.0\.', 'stem.1.'),
        (r'^layers\.(\d)\.1\.0\.', r'stages.\1.downsample.1.'),
        (r'^layers\.(\d)\.1\.1\.', r'stages.\1.blocks.0.'),
    )
    load_pvt(ours, theirs, (*positions, *V1_NAMES))
    assert_same_maps(ours, theirs, size)


def test_pvtv2_is_that_of_mmdet():
    ours, theirs = our_pvt(SlidePVTv2), mmdet_pvt('PyramidVisionTransformerV2')
    load_pvt(ours, theirs, V2_NAMES)
    assert_same_maps(ours, theirs, (256, 160))


def test_nat_is_ours():
    arch = {**NARROW, 'layer_scale': (None, None, 0.1, 0.1)}
    ours, theirs = SlideNAT(arch, num_slide_stages=0), NAT(arch)
    randomize(theirs)
    ours.load_state_dict(theirs.state_dict())
    assert_same_maps(ours, theirs, (72, 100))


@pytest.mark.parametrize(
    ('window_size', 'expected'),
    [(56, [(14, 0), (14, 7), (7, 0)]), (7, [(7, 0), (7, 3), (7, 0)])],
)
def test_windows(window_size, expected):
    model = SlideSwin({**NARROW, 'depths': (1, 1, 2, 1)}, window_size=window_size)
    attention = [block.attn for stage in model.stages[2:] for block in stage.blocks]
    assert [(a.window_size[0], a.shift[0]) for a in attention] == expected


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'num_slide_stages': 5}, r'in 0\.\.4, got num_slide_stages=5'),
        ({'kernel_size': 4}, r'one of \(3, 5, 7\), got 4'),
        ({'kernel_size': 9}, r'one of \(3, 5, 7\), got 9'),
        ({'window_size': 0}, 'must be positive, got window_size=0'),
    ],
)
def test_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        SlideSwin(NARROW, **options)


def test_initialisation_is_that_of_the_hosts():
    wide = {**PVT, 'embed_dims': (64,) * 4}
    model = SlidePVTv2(wide)
    assert model.stages[2].blocks[0].attn.q.weight.std().item() == pytest.approx(0.02, rel=0.1)
    conv = model.stages[1].downsample.proj
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)
    assert not conv.bias.any()
    deform = SlidePVT(wide).stages[0].blocks[0].attn.deform
    assert 0.3 < deform['weight'].abs().max() <= 1 / 3
