"""Released Mask2Former models with DiNAT to ours.

The golden file has names, shapes and outputs of the released code's pixel decoder and decoder
(Mask2Former, commit 9b0651c, on a CPU) with the weights and the maps of ``values_for``.
"""

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from test_convert_nat_checkpoint import ARCH, CONFIGS, build, released_name

from mmlocalattn.backbones.nat import DiNAT
from mmlocalattn.converters import mask2former
from mmlocalattn.converters.convert import FAMILIES, convert_checkpoint
from mmlocalattn.converters.released import RELEASED
from mmlocalattn.training import read_checkpoint

PANOPTIC = 'mask2former_dinat_l_90k_cityscapes_panoptic.py'
SEMANTIC = 'mask2former_dinat_l_90k_cityscapes.py'
PUBLISHED = {
    'mask2former_dinat_l_100e_coco.py': (80, 200),
    'mask2former_dinat_l_100e_coco_panoptic.py': (133, 200),
    'mask2former_dinat_l_160k_ade20k_instance.py': (100, 200),
    'mask2former_dinat_l_160k_ade20k_panoptic.py': (150, 200),
    'mask2former_dinat_l_160k_ade20k.py': (150, 100),
    'mask2former_dinat_l_90k_cityscapes_instance.py': (8, 200),
    PANOPTIC: (19, 200),
    SEMANTIC: (19, 100),
}
"""Classes and queries of the released models."""

DIMS = ARCH['embed_dims']
NARROW = {
    'in_channels': DIMS,
    'feat_channels': 32,
    'out_channels': 32,
    'num_queries': 5,
    'positional_encoding.num_feats': 16,
    'pixel_decoder.positional_encoding.num_feats': 16,
    'pixel_decoder.encoder.num_layers': 2,
    'pixel_decoder.encoder.layer_cfg.self_attn_cfg.embed_dims': 32,
    'pixel_decoder.encoder.layer_cfg.ffn_cfg': dict(embed_dims=32, feedforward_channels=24),
    'transformer_decoder.num_layers': 4,
    'transformer_decoder.layer_cfg.self_attn_cfg.embed_dims': 32,
    'transformer_decoder.layer_cfg.cross_attn_cfg.embed_dims': 32,
    'transformer_decoder.layer_cfg.ffn_cfg': dict(embed_dims=32, feedforward_channels=40),
}


def values_for(name, shape):
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape) * 0.3
    return torch.from_numpy(noise + ('norm' in name and name.endswith('weight'))).float()


def head_name(config):
    return 'panoptic_head' if 'panoptic_head' in config.model else 'decode_head'


@pytest.fixture
def released(golden, tmp_path):
    """Weights of a small released model, and its checkpoint ``released.pth``."""
    shapes = {name[6:]: tuple(s) for name, s in golden('mask2former_small').items() if '/s' in name}
    arch = {key: value for key, value in ARCH.items() if key != 'layer_scale'}
    backbone = DiNAT(arch, output_norm=True, kernel_size=11)
    shapes |= {f'backbone.{released_name(k)}': v.shape for k, v in backbone.state_dict().items()}
    weights = {name: values_for(name, shape) for name, shape in shapes.items()}
    weights['criterion.empty_weight'] = torch.ones(20)
    file = dict(model=weights, iteration=1, scheduler=dict(last_epoch=1, base_lrs=[1e-4]))
    torch.save(file, tmp_path / 'released.pth')
    return weights


def small_config(name, folder):
    config = Config.fromfile(CONFIGS / name)
    config.model.backbone.arch = {**ARCH, 'layer_scale': [None] * 4}
    config.merge_from_dict({f'model.{head_name(config)}.{k}': v for k, v in NARROW.items()})
    config.dump(folder / 'small.json')
    return config


@pytest.mark.parametrize('name', [PANOPTIC, SEMANTIC])
def test_numbers_are_those_of_the_released_code(released, golden, name, tmp_path):
    config, dst = small_config(name, tmp_path), tmp_path / 'ours.pth'
    convert_checkpoint(
        'dinat_mask2former', tmp_path / 'released.pth', dst, config=tmp_path / 'small.json'
    )
    assert read_checkpoint(dst)['meta']['config'] == 'small.json'
    model = build(config.model, config.default_scope).eval()
    load_checkpoint(model, str(dst), map_location='cpu', strict=True)
    sizes = [(-(-24 // 2**i), -(-18 // 2**i)) for i in range(4)]
    maps = [values_for(f'res{i + 2}', (1, DIMS[i], *sizes[i])) for i in range(4)]
    with torch.no_grad():
        classes, masks = getattr(model, head_name(config))(maps, [None])
    expected = {key: torch.from_numpy(value) for key, value in golden('mask2former_small').items()}
    # mmdet has the eight classes of things before those of stuff.
    order = [*range(11, 19), *range(11), 19] if name == PANOPTIC else [*range(20)]
    close = dict(rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(
        torch.stack(classes), expected['output/classes'][..., order], **close
    )
    torch.testing.assert_close(torch.stack(masks), expected['output/masks'], **close)


def test_every_weight_arrives(released, tmp_path):
    small_config(PANOPTIC, tmp_path)
    src, dst = tmp_path / 'released.pth', tmp_path / 'ours.pth'
    converted = convert_checkpoint('dinat_mask2former', src, dst, config=tmp_path / 'small.json')
    sums = sorted(float(tensor.double().abs().sum()) for tensor in converted.weights.values())
    released.pop('criterion.empty_weight')
    expected = sorted(float(tensor.double().abs().sum()) for tensor in released.values())
    np.testing.assert_allclose(sums, expected)


def test_differences_are_listed(released, tmp_path):
    small_config(SEMANTIC, tmp_path)
    predictor = 'sem_seg_head.predictor'
    released[f'{predictor}.query_embed.weight'] = torch.zeros(7, 32)
    released[f'{predictor}.input_proj.0.bias'] = released.pop(f'{predictor}.decoder_norm.bias')
    torch.save(dict(model=released), tmp_path / 'released.pth')
    with pytest.raises(ValueError, match='does not match the model') as error:
        convert_checkpoint(
            'dinat_mask2former',
            tmp_path / 'released.pth',
            tmp_path / 'x.pth',
            config=tmp_path / 'small.json',
        )
    assert [' '.join(line.split()) for line in str(error.value).splitlines()[1:]] == [
        'missing decode_head.transformer_decoder.post_norm.bias (32,)',
        'shape decode_head.query_embed.weight (7, 32), expected (5, 32)',
        'unexpected sem_seg_head.predictor.input_proj.0.bias (32,)',
    ]
    assert not (tmp_path / 'x.pth').exists()


def test_a_model_that_nobody_published_needs_its_config(released, tmp_path):
    with pytest.raises(
        ValueError, match=r'no published model has these weights, .*: pass --config'
    ):
        convert_checkpoint('dinat_mask2former', tmp_path / 'released.pth', tmp_path / 'x.pth')
    with pytest.raises(ValueError, match='not a checkpoint of nat_det: it looks like dinat_mask2f'):
        convert_checkpoint('nat_det', tmp_path / 'released.pth', tmp_path / 'x.pth')


def full_size(ours):
    """A released model's weights by the names of ours, without values."""
    layer = r'^transformer_decoder\.layers\.(\d+)\.'
    theirs = r'predictor.transformer_{}_layers.\1.'
    cross, own, ffn = map(theirs.format, ('cross_attention', 'self_attention', 'ffn'))
    renames = (
        (layer + r'cross_attn\.attn', cross + 'multihead_attn'),
        (layer + r'self_attn\.attn', own + 'self_attn'),
        (layer + r'norms\.0', cross + 'norm'),
        (layer + r'norms\.1', own + 'norm'),
        (layer + r'norms\.2', ffn + 'norm'),
        (layer + r'ffn\.layers\.0\.0', ffn + 'linear1'),
        (layer + r'ffn\.layers\.1', ffn + 'linear2'),
        (r'^transformer_decoder\.post_norm', 'predictor.decoder_norm'),
        (r'^(query_feat|query_embed|level_embed)', r'predictor.\1'),
        ('^cls_embed', 'predictor.class_embed'),
        (r'^mask_embed\.(\d)', lambda m: f'predictor.mask_embed.layers.{int(m[1]) // 2}'),
        (r'^pixel_decoder\.input_convs\.(\d)\.conv', r'pixel_decoder.input_proj.\1.0'),
        (r'^pixel_decoder\.input_convs\.(\d)\.gn', r'pixel_decoder.input_proj.\1.1'),
        (r'^pixel_decoder\.level_encoding\.weight', 'pixel_decoder.transformer.level_embed'),
        (r'^pixel_decoder\.lateral_convs\.0\.(conv\.)?', 'pixel_decoder.adapter_1.'),
        (r'^pixel_decoder\.output_convs\.0\.(conv\.)?', 'pixel_decoder.layer_1.'),
        (r'(adapter_1|layer_1)\.gn', r'\1.norm'),
        ('mask_feature', 'mask_features'),
        (r'^pixel_decoder\.encoder', 'pixel_decoder.transformer.encoder'),
        (r'^(pixel.*)norms\.0', r'\1norm1'),
        (r'^(pixel.*)norms\.1', r'\1norm2'),
        (r'^(pixel.*)ffn\.layers\.0\.0', r'\1linear1'),
        (r'^(pixel.*)ffn\.layers\.1', r'\1linear2'),
    )
    weights = {}
    for name, tensor in ours.items():
        part, _, rest = name.partition('.')
        if part == 'backbone':
            weights[f'backbone.{released_name(rest)}'] = tensor
            continue
        for pattern, their in renames:
            rest = re.sub(pattern, their, rest)
        weights[f'sem_seg_head.{rest}'] = tensor
    return weights


@pytest.mark.parametrize(
    'name', ['mask2former_dinat_l_160k_ade20k.py', 'mask2former_dinat_l_160k_ade20k_panoptic.py']
)
def test_published_model(name, golden):
    config = Config.fromfile(CONFIGS / name)
    model = build(config.model, config.default_scope, 'meta')
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert round(millions) == RELEASED[Path(name).stem].parameters
    weights = full_size(model.state_dict())
    names = {re.sub(r'\d+\.', '', name[6:]) for name in golden('mask2former_small') if '/s' in name}
    assert {re.sub(r'\d+\.', '', k) for k in weights if 'sem_seg_head' in k} == names
    converted = FAMILIES['dinat_mask2former'].convert(weights)
    assert converted.weights.keys() == model.state_dict().keys()
    assert converted.about == {'config': name}


@pytest.mark.parametrize('name', PUBLISHED)
def test_released_files_find_their_configs(name):
    classes, queries = PUBLISHED[name]
    predictor = 'sem_seg_head.predictor'
    weights = {
        f'{predictor}.class_embed.weight': torch.zeros(classes + 1, 1),
        f'{predictor}.query_feat.weight': torch.zeros(queries, 1),
    }
    assert mask2former.find_configs(weights, ['dinat_l']) == [name]
    assert RELEASED[Path(name).stem].family == 'dinat_mask2former'


def test_classes_of_ade20k_are_those_of_mmdet():
    from mmdet.datasets import ADE20KPanopticDataset
    from mmseg.datasets import ADE20KDataset

    released = [*ADE20KDataset.METAINFO['classes'], 'no object']
    model = dict(panoptic_head=dict(num_things_classes=100, num_stuff_classes=50))
    rows = {'sem_seg_head.predictor.class_embed.bias': torch.arange(151)}
    order = mask2former.convert(rows, model)['panoptic_head.cls_embed.bias']
    theirs = [*ADE20KPanopticDataset.METAINFO['classes'], 'no object']
    pairs = [
        (released[i].split(',')[0].strip(), name.split(',')[0].strip())
        for i, name in zip(order, theirs, strict=True)
    ]
    assert {ours: theirs for ours, theirs in pairs if ours != theirs} == {
        'windowpane': 'window',
        'bathtub': 'tub',
        'railing': 'rail',
        'streetlight': 'street lamp',
        'television receiver': 'tv',
        'apparel': 'clothes',
        'ashcan': 'trash can',
        'swimming pool': 'pool',
        'waterfall': 'falls',
    }
