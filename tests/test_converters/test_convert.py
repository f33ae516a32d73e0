"""Official checkpoints to ours, shown on classifiers of SSViT."""

import argparse

import pytest
import torch
from mmengine.model import BaseModule
from tiny_data import SSVIT_ARCH, released_ssvit
from torch import nn

from mmlocalattn.backbones.ssvit import SSViT
from mmlocalattn.converters.convert import FAMILIES, convert_checkpoint
from mmlocalattn.converters.marks import MARKS
from mmlocalattn.registry import MODELS
from mmlocalattn.training import read_checkpoint


@pytest.fixture
def released(golden):
    return released_ssvit(golden)


@pytest.fixture
def src(released, tmp_path):
    path = tmp_path / 'released.pth'
    torch.save({'model': released, 'epoch': 299, 'args': argparse.Namespace(lr=1e-3)}, path)
    return path


def test_result_is_plain_and_complete(src, tmp_path):
    dst = tmp_path / 'new' / 'ssvit.pth'
    converted = convert_checkpoint('ssvit', src, dst, SSVIT_ARCH)
    assert (converted.about, converted.parts) == (
        {'arch': SSVIT_ARCH},
        ['backbone', 'head', 'neck'],
    )
    checkpoint = read_checkpoint(dst)
    assert set(checkpoint) == {'state_dict', 'meta'}
    assert checkpoint['meta']['arch'] == SSVIT_ARCH
    assert checkpoint['meta']['source'] == 'released.pth'
    assert [path.name for path in dst.parent.iterdir()] == ['ssvit.pth']


def test_result_loads_whole_in_a_classifier(src, tmp_path):
    from mmengine.runner import load_checkpoint
    from mmpretrain.registry import MODELS as MMPRETRAIN

    convert_checkpoint('ssvit', src, tmp_path / 'ssvit.pth', SSVIT_ARCH)
    backbone = dict(type='mmlocalattn.SSViT', arch=SSVIT_ARCH, out_indices=(3,), output_norm=False)
    model = MMPRETRAIN.build(
        dict(
            type='ImageClassifier',
            backbone=backbone,
            neck=dict(type='mmlocalattn.SSViTNeck', in_channels=96, out_channels=64),
            head=dict(type='LinearClsHead', num_classes=10, in_channels=64),
        )
    )
    load_checkpoint(model, str(tmp_path / 'ssvit.pth'), map_location='cpu', strict=True)


def test_result_loads_in_the_backbone_of_a_detector(src, released, tmp_path):
    class Detector(BaseModule):
        def __init__(self, backbone):
            super().__init__()
            self.backbone = MODELS.build(backbone)
            self.neck = nn.Conv2d(16, 4, 1)

    convert_checkpoint('ssvit', src, tmp_path / 'ssvit.pth', SSVIT_ARCH)
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'ssvit.pth'), prefix='backbone.')
    model = Detector(dict(type='SSViT', arch=SSVIT_ARCH, init_cfg=init_cfg))
    model.init_weights()

    theirs = {
        name.removeprefix('backbone.') for name in torch.load(tmp_path / 'ssvit.pth')['state_dict']
    }
    missing = set(model.backbone.state_dict()) - theirs
    assert missing == {f'output_norms.{i}.{kind}' for i in range(4) for kind in ('weight', 'bias')}
    stem = model.backbone.stem[0].weight
    assert torch.equal(stem, released['patch_embed.proj.0.weight'])
    last = model.backbone.stages[3].blocks[1].ffn.fc2.bias
    assert torch.equal(last, released['layers.3.blocks.1.ffn.fc2.bias'])


@pytest.mark.parametrize('key', ['model', 'state_dict', None])
def test_where_the_weights_lie(released, tmp_path, key):
    torch.save(released if key is None else {key: released}, tmp_path / 'released.pth')
    convert_checkpoint('ssvit', tmp_path / 'released.pth', tmp_path / 'ssvit.pth', SSVIT_ARCH)
    assert len(torch.load(tmp_path / 'ssvit.pth')['state_dict']) == len(released) - 4


def test_backbone_alone(released, tmp_path):
    backbone = {
        name: tensor
        for name, tensor in released.items()
        if name.startswith(('patch_embed.', 'layers.'))
    }
    torch.save(backbone, tmp_path / 'released.pth')
    converted = convert_checkpoint(
        'ssvit', tmp_path / 'released.pth', tmp_path / 'o.pth', SSVIT_ARCH
    )
    assert converted.parts == ['backbone']


def test_lists_every_difference_and_writes_nothing(released, tmp_path):
    del released['layers.2.blocks.1.attn.lepe.bias'], released['norm.weight']
    released['layers.0.blocks.0.attn.rpb'] = torch.zeros(2, 3)
    released['patch_embed.proj.0.bias'] = torch.zeros(9)
    torch.save(released, tmp_path / 'released.pth')
    with pytest.raises(ValueError, match='does not match the model') as error:
        convert_checkpoint('ssvit', tmp_path / 'released.pth', tmp_path / 'ssvit.pth', SSVIT_ARCH)
    lines = [' '.join(line.split()) for line in str(error.value).splitlines()]
    assert set(lines[1:]) == {
        'missing backbone.stages.2.blocks.1.attn.lepe.bias (64,)',
        'missing neck.norm.weight (64,)',
        'unexpected layers.0.blocks.0.attn.rpb (2, 3)',
        'shape backbone.stem.0.bias (9,), expected (8,)',
    }
    assert [path.name for path in tmp_path.iterdir()] == ['released.pth']


@pytest.mark.parametrize('name', ['tiny', 'small'])
def test_the_arch_is_found_by_shapes(name):
    settings = SSViT.arch_settings[name]
    weights = {
        f'layers.{stage}.blocks.{block}.norm1.norm.weight': torch.empty(dim)
        for stage, (dim, depth) in enumerate(
            zip(settings['embed_dims'], settings['depths'], strict=True)
        )
        for block in range(depth)
    }
    assert FAMILIES['ssvit'].find_arch(weights) == name


@pytest.mark.parametrize(
    ('arch', 'message'),
    [
        (None, r"no architecture of .*'large'\] has .*\(16, 32, 64, 96\).*pass --arch"),
        ('huge', "arch='huge'"),
        ({'embed_dims': [16]}, 'missing='),
    ],
)
def test_rejects_arch(src, tmp_path, arch, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint('ssvit', src, tmp_path / 'ssvit.pth', arch)
    assert not (tmp_path / 'ssvit.pth').exists()


class Surprise:
    """What a checkpoint must not make us execute."""

    def __reduce__(self):
        return print, ('executed',)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (
            {'model': {'w': torch.zeros(1)}, 'extra': Surprise()},
            'holds builtins.print beside its weights',
        ),
        ({'model': {'w': torch.zeros(1), 'lr': 0.1}}, 'not tensors among its weights: lr'),
        ([1, 2], "neither bare nor under 'model' or 'state_dict'"),
        ({}, 'holds no weights'),
    ],
)
def test_rejects_other_files(tmp_path, capsys, content, message):
    torch.save(content, tmp_path / 'released.pth')
    with pytest.raises(ValueError, match=message):
        convert_checkpoint('ssvit', tmp_path / 'released.pth', tmp_path / 'ssvit.pth', SSVIT_ARCH)
    assert 'executed' not in capsys.readouterr().out
    assert not (tmp_path / 'ssvit.pth').exists()


def test_rejects_what_is_not_a_checkpoint(tmp_path):
    (tmp_path / 'released.pth').write_text('hello')
    with pytest.raises(
        ValueError, match=r'released\.pth. is no checkpoint: torch\.save has not written it'
    ):
        convert_checkpoint('ssvit', tmp_path / 'released.pth', tmp_path / 'ssvit.pth')
    with pytest.raises(FileNotFoundError, match=r'absent\.pth. does not exist'):
        convert_checkpoint('ssvit', tmp_path / 'absent.pth', tmp_path / 'ssvit.pth')
    with pytest.raises(ValueError, match=r"family must be one of ssvit, .*, got 'swin'"):
        convert_checkpoint('swin', tmp_path / 'released.pth', tmp_path / 'ssvit.pth')


def test_an_interrupted_write_leaves_the_old_file(src, tmp_path, monkeypatch):
    dst = tmp_path / 'ssvit.pth'
    dst.write_text('old')

    def full_disk(checkpoint, file):
        file.write(b'half')
        raise OSError('No space left on device')

    monkeypatch.setattr(torch, 'save', full_disk)
    with pytest.raises(OSError, match='No space left'):
        convert_checkpoint('ssvit', src, dst, SSVIT_ARCH)
    assert dst.read_text() == 'old'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['released.pth', 'ssvit.pth']


def test_what_is_converted_already(tmp_path):
    weights = {'backbone.stages.0.blocks.0.norm1.weight': torch.zeros(1)}
    torch.save({'state_dict': weights}, tmp_path / 'a.pth')
    for family in ('ssvit', 'nat_det'):
        with pytest.raises(
            ValueError, match=r'a\.pth: its weights have our names: it needs no conv'
        ):
            convert_checkpoint(family, tmp_path / 'a.pth', tmp_path / 'b.pth')


def test_families_have_the_marks_by_which_they_are_known():
    assert {name: family.marks for name, family in FAMILIES.items()} == MARKS
