import copy

import pytest
import torch
from backbone_contract import BackboneContract
from mmengine.analysis import FlopAnalyzer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmlocalattn.backbones.ssvit import SSViT
from mmlocalattn.converters.ssvit import convert
from mmlocalattn.heads.ssvit_neck import SSViTNeck

NARROW = {
    'embed_dims': (8, 16, 24, 32),
    'depths': (2, 1, 2, 1),
    'num_heads': (2, 2, 2, 2),
    'mlp_ratios': (2, 2, 2, 2),
    'layer_scale': (None, None, 0.1, 0.1),
}
GOLDEN_ARCH = {
    'embed_dims': (16, 32, 64, 96),
    'depths': (2, 2, 2, 2),
    'num_heads': (1, 2, 2, 3),
    'mlp_ratios': (4, 4, 3, 3),
    'layer_scale': (None, None, 1e-6, 1e-6),
}
# arch: parameters with the classification tail (1000 classes), of the backbone alone
PARAMETERS = {
    'tiny': (15_095_688, 13_543_328),
    'small': (27_175_240, 25_622_880),
    'base': (57_138_736, 55_586_376),
    'large': (100_234_112, 98_550_680),
}
# arch: 1e9 multiply-adds of the attention windows at 224x224; at 800x1280 adaptive; fixed
ATTENTION_MACS = {
    'tiny': (0.19, 18.75, 3.91),
    'small': (0.35, 31.33, 7.05),
    'base': (0.63, 55.89, 12.90),
    'large': (0.88, 78.16, 17.99),
}


def count(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize('arch', SSViT.arch_settings)
def test_every_arch(arch):
    backbone = SSViT(arch, output_norm=False).eval()
    dims = SSViT.arch_settings[arch]['embed_dims']
    tail = SSViTNeck(dims[-1]), nn.Linear(1024, 1000)
    assert (count(backbone, *tail), count(backbone)) == PARAMETERS[arch]

    with torch.inference_mode():
        outputs = backbone(torch.randn(2, 3, 32, 64))
    assert backbone.out_channels == dims
    assert [output.shape for output in outputs] == [
        (2, dim, 8 >> stage, 16 >> stage) for stage, dim in enumerate(dims)
    ]
    assert all(torch.isfinite(output).all() for output in outputs)


@pytest.mark.parametrize('arch', SSViT.arch_settings)
def test_attention_cost_of_the_docstring(arch):
    settings = SSViT.arch_settings[arch]
    heads_of_4 = {**settings, 'embed_dims': [4 * heads for heads in settings['num_heads']]}

    def macs(scan, height, width):
        total = 0
        for index, stage in enumerate(SSViT(heads_of_4, scan=scan).stages):
            size = -(-height // (4 << index)), -(-width // (4 << index))
            for block in stage.blocks:
                local, anchor, _ = block.attn.scan(*size)
                keys = sum(kernel[0] * kernel[1] for kernel in (local, anchor) if kernel != (1, 1))
                total += 2 * size[0] * size[1] * keys * settings['embed_dims'][index]
        return total / 1e9

    at_224, adaptive, fixed = ATTENTION_MACS[arch]
    assert macs('adaptive', 224, 224) == macs('fixed', 224, 224) == pytest.approx(at_224, abs=0.005)
    assert macs('adaptive', 800, 1280) == pytest.approx(adaptive, abs=0.005)
    assert macs('fixed', 800, 1280) == pytest.approx(fixed, abs=0.005)
    assert f'{adaptive:.2f}' in SSViT.__doc__
    assert f'{fixed:.2f}' in SSViT.__doc__


def small_macs(maps, windows):
    """Multiply-adds of SSViT-S in its attention windows and in its linear layers.

    maps: positions of each stage; windows: keys that a query sees in both steps, of the two blocks
    that take turns.
    """
    dims, depths, ratios = (64, 128, 256, 512), (3, 5, 18, 4), (4, 4, 3, 3)
    attention = linear = 0
    for pixels, dim, depth, ratio, keys in zip(maps, dims, depths, ratios, windows):
        attention += 2 * pixels * dim * depth * keys
        linear += pixels * dim**2 * depth * (3 + 1 + 2 * ratio)  # qkv, proj, fc1, fc2
    return attention, linear


def test_flops_of_small_in_torch():
    """An 800 x 1333 image; nothing is computed on the meta device."""
    backbone = SSViT('small').to('meta')
    with FlopCounterMode(display=False) as counter:
        backbone(torch.empty(1, 3, 800, 1333, device='meta'))
    flops = {str(op): count for op, count in counter.get_flop_counts()['Global'].items()}
    maps = 200 * 334, 100 * 167, 50 * 84, 25 * 42
    attention, linear = small_macs(maps, (49 + 29**2, 49 + 15**2, 49 + 49, 49 + 3**2))
    assert flops['mmlocalattn.sparse_scan_attention'] == 2 * attention
    assert flops['aten.addmm'] == 2 * linear


def test_flops_of_small_in_mmengine():
    analyzer = FlopAnalyzer(SSViT('small').eval(), (torch.zeros(1, 3, 224, 224),))
    counts = analyzer.by_operator()
    maps = 56**2, 28**2, 14**2, 7**2
    attention, linear = small_macs(maps, (49 + 9**2, 49 + 5**2, 49 + 3**2, 49))
    assert (counts['sparse_scan_attention'], counts['linear']) == (attention, linear)
    assert analyzer.total() == sum(
        counts[name]
        for name in ('sparse_scan_attention', 'linear', 'conv', 'layer_norm', 'batch_norm')
    )


@pytest.mark.parametrize('scan', ['adaptive', 'fixed'])
def test_equals_the_released_model(golden, scan):
    """tests/data has every fourth row of the larger maps."""
    arrays = {
        name: torch.from_numpy(array) for name, array in golden('ssvit_small_224x256').items()
    }
    weights = convert(
        {name[6:]: array for name, array in arrays.items() if name.startswith('param/')}
    )
    model = nn.ModuleDict(
        {
            'backbone': SSViT(GOLDEN_ARCH, output_norm=False, scan=scan),
            'neck': SSViTNeck(96, 64),
            'head': nn.ModuleDict({'fc': nn.Linear(64, 10)}),
        }
    ).eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        outputs = model['backbone'](arrays['input'])
        results = {
            'stem': model['backbone'].stem(arrays['input']).permute(0, 3, 1, 2),
            **{f'stage{index}': output for index, output in enumerate(outputs)},
            'logits': model['head']['fc'](*model['neck'](outputs)),
        }
    for name, result in results.items():
        expected = arrays[f'out/{name}']
        if result.dim() == 4:
            result = result[:, :, :: result.shape[2] // expected.shape[2]]
        assert (result - expected).abs().max() < 1e-4 * expected.abs().max(), name


@pytest.mark.parametrize('scan', ['adaptive', 'fixed'])
@pytest.mark.parametrize('size', [(1, 1), (32, 32), (37, 53), (64, 20)])
def test_any_image_and_every_parameter_gets_a_gradient(size, scan):
    model = SSViT(NARROW, scan=scan)
    outputs = model(torch.randn(2, 3, *size))
    assert [output.shape[2:] for output in outputs] == [
        (-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16, 32)
    ]
    assert all(torch.isfinite(output).all() for output in outputs)
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_adaptive_and_fixed_agree_at_224():
    adaptive, fixed = SSViT(NARROW).eval(), SSViT(NARROW, scan='fixed').eval()
    fixed.load_state_dict(adaptive.state_dict())
    with torch.no_grad():
        for size, equal in (((224, 224), True), ((320, 312), False)):
            image = torch.randn(1, 3, *size)
            pairs = zip(adaptive(image), fixed(image), strict=True)
            assert all(torch.equal(*pair) for pair in pairs) == equal


def geometries(scan, height, width):
    model = SSViT(NARROW, scan=scan)
    return [[block.attn.scan(height, width) for block in stage.blocks] for stage in model.stages]


def test_scan_per_stage():
    cycle = [
        {'local_kernel': 3, 'anchor_kernel': 5, 'anchor_dilation': 2},
        {'local_kernel': 1, 'anchor_kernel': 7},
    ]
    stages = geometries([cycle, 'adaptive', cycle[0], 'fixed'], 28, 40)
    assert stages[0] == [((3, 3), (5, 5), (2, 2)), ((1, 1), (7, 7), (4, 4))]
    assert stages[1] == [((7, 7), (5, 5), (5, 5))]
    assert stages[2] == [((3, 3), (5, 5), (2, 2))] * 2
    assert stages[3] == [((7, 7), (1, 1), (1, 1))]
    windows = geometries('adaptive', 14, 14)[0]
    assert windows == [((7, 7), (3, 3), (4, 4)), ((3, 3), (7, 7), (2, 2))]


@pytest.mark.parametrize(
    ('scan', 'message'),
    [
        ('released', r"'adaptive', 'fixed' or one entry per stage, got 'released'"),
        (['adaptive'] * 3, 'one entry for each of 4 stages'),
        ([{'local_kernel': 7}] * 4, r'must have the keys .*anchor_kernel'),
        ([{'local_kernel': 7, 'anchor_kernel': 3, 'kernel': 3}] * 4, 'must have the keys'),
        ([{'local_kernel': 6, 'anchor_kernel': 3}] * 4, 'local_kernel must be odd'),
    ],
)
def test_rejects_scan(scan, message):
    with pytest.raises(ValueError, match=message):
        SSViT(NARROW, scan=scan)


@pytest.mark.parametrize(
    ('arch', 'message'),
    [
        ('huge', r"\['tiny', 'small', 'base', 'large'\] or a dict, got arch='huge'"),
        ({**NARROW, 'window': (7,) * 4}, r"unknown=\['window'\]"),
        ({'embed_dims': (8,), 'depths': (1,), 'num_heads': (1,)}, r"missing=\['mlp_ratios'\]"),
        ({**NARROW, 'num_heads': (3, 2, 2, 2)}, 'got dim=8, num_heads=3'),
    ],
)
def test_rejects_arch(arch, message):
    with pytest.raises(ValueError, match=message):
        SSViT(arch)


def test_arguments_are_not_edited_and_layer_scale_is_optional():
    arch = {key: list(value) for key, value in NARROW.items() if key != 'layer_scale'}
    norm_cfg, scan = {'type': 'GN', 'num_groups': 2, 'requires_grad': False}, ['fixed'] * 4
    before = copy.deepcopy((arch, norm_cfg, scan))
    model = SSViT(arch, norm_cfg=norm_cfg, scan=scan, out_indices=[1, 3])
    assert (arch, norm_cfg, scan) == before
    assert not any('scale' in name for name in model.state_dict())
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == 7
    assert not any(norm.weight.requires_grad for norm in norms)


def test_initialisation_is_the_released_one():
    model = SSViT({**NARROW, 'embed_dims': (64, 64, 64, 64)})
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.35), name
        elif name.endswith('bias'):
            assert not parameter.any(), name
    assert model.stages[2].blocks[0].scale1.weight.unique().tolist() == [pytest.approx(0.1)]


def test_checkpointing_changes_nothing():
    results = []
    for with_cp in (False, True):
        torch.manual_seed(1)
        model = SSViT(NARROW, with_cp=with_cp, drop_path_rate=0.3)
        outputs = model(torch.randn(2, 3, 40, 56))
        sum(output.square().sum() for output in outputs).backward()
        results.append((outputs, {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-7)


class TestSSViT(BackboneContract):
    backbone = SSViT
    narrow = NARROW
    parameters = {arch: alone for arch, (_, alone) in PARAMETERS.items()}  # noqa: RUF012
