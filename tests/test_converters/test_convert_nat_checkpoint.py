"""Classifiers, detectors and segmentors of NAT and DiNAT to ours."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import tiny_data
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from tiny_data import NUM_IMAGES, data, quick  # noqa: F401

from mmlocalattn.backbones.nat import NAT, DiNAT
from mmlocalattn.converters.convert import FAMILIES, convert_checkpoint
from mmlocalattn.training import read_checkpoint

CONFIGS = Path(__file__).parents[2] / 'configs'
ARCH = {
    'embed_dims': [8, 12, 16, 24],
    'depths': [2, 1, 2, 2],
    'num_heads': [2, 2, 2, 2],
    'mlp_ratios': [2, 2, 2, 2],
    'layer_scale': [1e-5, 1e-5, 1e-5, 1e-5],
}
CLASSIFIER = dict(
    type='ImageClassifier',
    backbone=dict(type='mmlocalattn.NAT', arch=ARCH, out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=24),
)
# What makes the published models small.
SMALL = {
    'maskrcnn_nat_m_3x_coco.py': {
        'model.neck': dict(in_channels=ARCH['embed_dims'], out_channels=8),
        'model.rpn_head': dict(in_channels=8, feat_channels=8),
        'model.roi_head.bbox_roi_extractor.out_channels': 8,
        'model.roi_head.bbox_head': dict(in_channels=8, fc_out_channels=16),
        'model.roi_head.mask_roi_extractor.out_channels': 8,
        'model.roi_head.mask_head': dict(in_channels=8, conv_out_channels=8),
    },
    'upernet_dinat_m_160k_ade20k.py': {
        'model.decode_head': dict(in_channels=ARCH['embed_dims'], channels=8),
        'model.auxiliary_head': dict(in_channels=16, channels=8),
    },
}


def released_name(ours):
    """A backbone's name in the released code."""
    part, *rest = ours.split('.')
    if part == 'stem':
        return '.'.join(['patch_embed', *rest])
    if part == 'output_norms':
        return f'norm{rest[0]}.{rest[1]}'
    stage, part, *rest = rest
    if part == 'downsample':
        rest[0] = {'conv': 'reduction', 'norm': 'norm'}[rest[0]]
        return '.'.join(['levels', str(int(stage) - 1), 'downsample', *rest])
    block, *rest = rest
    name = {'scale1.weight': 'gamma1', 'scale2.weight': 'gamma2', 'attn.rel_pos_bias': 'attn.rpb'}
    rest = '.'.join(rest)
    return f'levels.{stage}.blocks.{block}.{name.get(rest, rest)}'


def release(model, classifier=False):
    """A model's weights by the released names."""
    weights = {}
    for name, tensor in model.state_dict().items():
        part, _, rest = name.partition('.')
        if part == 'backbone':
            name = f'backbone.{released_name(rest)}'
        if classifier:
            name = name.removeprefix('backbone.').replace('norm3.', 'norm.')
            name = name.replace('head.fc.', 'head.')
        weights[name] = tensor
    return weights


def build(model, scope='mmpretrain', device='cpu'):
    with DefaultScope.overwrite_default_scope(scope), torch.device(device):
        return MODELS.build(model)


def weights_of(path):
    return read_checkpoint(path)['state_dict']


def test_the_released_names_are_those_of_the_golden_arrays(golden):
    theirs = {name[6:] for name in golden('nat_small_224x256') if name.startswith('param/')}
    backbone = {**CLASSIFIER['backbone'], 'arch': {**ARCH, 'depths': [2, 2, 2, 2]}}
    names = release(build({**CLASSIFIER, 'backbone': backbone}), classifier=True).keys()
    assert theirs <= names
    stages = {name[:9] for name in theirs if name.startswith('levels.')}
    missing = {name for name in names - theirs if name[:9] in stages}
    assert all('downsample' in name for name in missing)


@pytest.fixture
def classifier(tmp_path):
    model = build(CLASSIFIER)
    torch.save(release(model, classifier=True), tmp_path / 'released.pth')
    return model


@pytest.mark.parametrize('family', ['nat', 'dinat'])
def test_classifier(classifier, family, tmp_path):
    dst = tmp_path / 'ours.pth'
    converted = convert_checkpoint(family, tmp_path / 'released.pth', dst, ARCH)
    meta = read_checkpoint(dst)['meta']
    assert (meta['arch'], meta['kernel_size']) == (ARCH, 7)
    assert converted.parts == ['backbone', 'head']
    other = build(CLASSIFIER)
    load_checkpoint(other, str(dst), map_location='cpu', strict=True)
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_backbone_alone(classifier, tmp_path):
    weights = release(classifier, classifier=True)
    alone = {name: weights[name] for name in weights if not name.startswith(('norm.', 'head.'))}
    torch.save(alone, tmp_path / 'released.pth')
    dst = tmp_path / 'ours.pth'
    convert_checkpoint('nat', tmp_path / 'released.pth', dst, ARCH)
    assert all(name.startswith('backbone.st') for name in weights_of(dst))


def test_a_classifier_without_its_norm_is_incomplete(classifier, tmp_path):
    weights = release(classifier, classifier=True)
    torch.save({k: v for k, v in weights.items() if k != 'norm.bias'}, tmp_path / 'released.pth')
    with pytest.raises(ValueError, match=r'missing +backbone\.output_norms\.3\.bias \(24,\)$'):
        convert_checkpoint('nat', tmp_path / 'released.pth', tmp_path / 'x.pth', ARCH)
    assert not (tmp_path / 'x.pth').exists()


def test_the_window_is_found_by_its_position_bias(tmp_path):
    model = {**CLASSIFIER, 'backbone': {**CLASSIFIER['backbone'], 'kernel_size': 11}}
    torch.save(release(build(model), classifier=True), tmp_path / 'released.pth')
    dst = tmp_path / 'ours.pth'
    convert_checkpoint('dinat', tmp_path / 'released.pth', dst, ARCH)
    assert torch.load(dst)['meta']['kernel_size'] == 11
    load_checkpoint(build(model), str(dst), map_location='cpu', strict=True)


@pytest.mark.parametrize(
    ('backbone', 'arch'), [(cls, arch) for cls in (NAT, DiNAT) for arch in cls.arch_settings]
)
def test_the_arch_is_found_by_shapes(backbone, arch):
    with torch.device('meta'):
        model = backbone(arch, output_norm=False)
    weights = {released_name(name): tensor for name, tensor in model.state_dict().items()}
    family, other = ('nat', 'dinat') if backbone is NAT else ('dinat', 'nat')
    assert FAMILIES[family].find_arch(weights) == arch
    if arch in ('small', 'large'):  # the sizes in which NAT and DiNAT differ
        with pytest.raises(ValueError, match=f'it looks like {family}$'):
            FAMILIES[other].choose_arch(weights)


@pytest.mark.parametrize('name', SMALL)
def test_whole_model(name, tmp_path):
    config = Config.fromfile(CONFIGS / name)
    config.model.backbone.arch = ARCH
    config.merge_from_dict(SMALL[name])
    config.dump(tmp_path / 'small.py')
    model = build(config.model, config.default_scope)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    meta = dict(CLASSES=('a', 'b'), config='model = dict()', hook_msgs=dict(best=np.float64(0.5)))
    optimizer = torch.optim.AdamW(model.parameters()).state_dict()
    src, dst = tmp_path / 'released.pth', tmp_path / 'ours.pth'
    torch.save(dict(meta=meta, state_dict=release(model), optimizer=optimizer), src)

    family = 'nat_seg' if 'upernet' in name else 'nat_det'
    convert_checkpoint(family, src, dst, config=tmp_path / 'small.py')
    checkpoint = read_checkpoint(dst)
    assert checkpoint['meta']['config'] == 'small.py'
    assert set(checkpoint) == {'state_dict', 'meta'}

    other = build(config.model, config.default_scope)
    load_checkpoint(other, str(dst), map_location='cpu', strict=True)
    for key, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], tensor), key

    with pytest.raises(
        ValueError, match=r'no published model has these weights, .*: pass --config'
    ):
        convert_checkpoint(family, src, tmp_path / 'x.pth')
    other_family = 'nat_det' if family == 'nat_seg' else 'nat_seg'
    with pytest.raises(ValueError, match=f'not a checkpoint of .*: it looks like {family}$'):
        convert_checkpoint(other_family, src, tmp_path / 'x.pth')
    broken = release(model)
    broken['backbone.levels.0.blocks.0.attn.rpb'] = torch.zeros(2, 5, 5)
    broken['ema_backbone_norm0_bias'] = broken.pop('backbone.norm0.bias')
    torch.save(broken, src)
    with pytest.raises(ValueError, match='does not match the model') as error:
        convert_checkpoint(family, src, tmp_path / 'x.pth', config=tmp_path / 'small.py')
    assert [' '.join(line.split()) for line in str(error.value).splitlines()[1:]] == [
        'missing backbone.output_norms.0.bias (8,)',
        'shape backbone.stages.0.blocks.0.attn.rel_pos_bias (2, 5, 5), expected (2, 13, 13)',
        'unexpected ema_backbone_norm0_bias (8,)',
    ]
    assert not (tmp_path / 'x.pth').exists()


@pytest.mark.usefixtures('quick')
def test_a_converted_detector_can_be_tested(tmp_path, data):  # noqa: F811
    text = tiny_data.DETECTION.replace('maskrcnn_ssvit_t_1x', 'maskrcnn_dinat_m_3x')
    config = tiny_data.write_config(tmp_path / 'c.py', text, data)
    model = build(Config.fromfile(config).model, 'mmdet')
    src, dst, out = (tmp_path / name for name in ('released.pth', 'ours.pth', 'out.pkl'))
    torch.save({'state_dict': release(model)}, src)
    convert_checkpoint('nat_det', src, dst, config=config)
    test = tiny_data.load_tool('test')
    tiny_data.run(test, config, dst, '--work-dir', tmp_path / 'work', '--out', out)
    assert len(pickle.loads(out.read_bytes())) == NUM_IMAGES


@pytest.mark.parametrize(
    'name',
    [
        'maskrcnn_nat_m_3x_coco.py',
        'maskrcnn_dinat_s_3x_coco.py',
        'cascade_maskrcnn_nat_s_3x_coco.py',
        'cascade_maskrcnn_dinat_m_3x_coco.py',
        'cascade_maskrcnn_dinat_l_3x_coco.py',
        'upernet_nat_m_160k_ade20k.py',
        'upernet_dinat_l_160k_ade20k.py',
    ],
)
def test_published_model(name):
    """Every name and shape. The weights of NAT and DiNAT of one size fit both unless they differ in
    their factors."""
    config = Config.fromfile(CONFIGS / name)
    model = build(config.model, config.default_scope, 'meta')
    family = FAMILIES['nat_seg' if name.startswith('upernet') else 'nat_det']
    weights = release(model)
    assert name in family.find_configs(weights)
    converted = family.convert(weights)
    assert converted.weights.keys() == model.state_dict().keys()
    nat, dinat = name.replace('dinat', 'nat'), name.replace('dinat', 'nat').replace('nat', 'dinat')
    is_alone = '_s_' in name or '_l_' in name
    assert converted.about == {'config': name if is_alone else f'{nat} or {dinat}'}


def test_a_checkpoint_of_another_release(golden, tmp_path):
    arrays = golden('ssvit_small_224x256')
    weights = {name[6:]: torch.from_numpy(arrays[name]) for name in arrays if 'param/' in name}
    torch.save(weights, tmp_path / 'released.pth')
    for family in ('nat', 'dinat', 'nat_det', 'nat_seg'):
        with pytest.raises(ValueError, match=f'not a checkpoint of {family}: it looks like ssvit'):
            convert_checkpoint(family, tmp_path / 'released.pth', tmp_path / 'x.pth')


@pytest.mark.parametrize(
    ('family', 'options', 'message'),
    [
        ('nat_det', dict(arch='tiny'), '--arch is for classifiers: nat_det has --config'),
        ('nat', dict(config='x.py'), '--config is for detectors and segmentors: nat has --arch'),
        ('nat', {}, r"no architecture of \['mini', .*\] has .*\(8, 12, 16, 24\).*: pass --arch"),
        ('ssvit', {}, 'not a checkpoint of ssvit: it looks like nat or dinat$'),
        ('nat_seg', {}, 'not a checkpoint of nat_seg: it looks like nat or dinat$'),
    ],
)
def test_wrong_arguments(classifier, tmp_path, family, options, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(family, tmp_path / 'released.pth', tmp_path / 'x.pth', **options)
    assert not (tmp_path / 'x.pth').exists()
