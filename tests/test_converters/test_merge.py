"""Merging the paths of slide attention in a checkpoint of a tiny classifier."""

from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmlocalattn.converters.merge import merge_checkpoint
from mmlocalattn.layers.slide_attention import SlideAttention
from mmlocalattn.training import load_config, read_checkpoint

CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmlocalattn.SlideSwin',
        arch=dict(
            embed_dims=(32, 32, 16, 16),
            depths=(1, 1, 1, 1),
            num_heads=(1, 1, 2, 2),
            mlp_ratios=(1, 1, 1, 1),
        ),
        num_slide_stages=2,
        out_indices=(3,),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=16),
)
"""


def build(config: Path) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(load_config(str(config)).model).eval()


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Config, checkpoint, and where to write."""
    config, src = tmp_path / 'config.py', tmp_path / 'epoch_12.pth'
    config.write_text(CONFIG)
    meta = {'dataset_meta': {'classes': ('a', 'b', 'c')}, 'epoch': 3}
    torch.save({'meta': meta, 'state_dict': build(config).state_dict()}, src)
    return config, src, tmp_path / 'new' / 'dst.pth'


def test_merges_every_layer(paths):
    config, src, dst = paths
    assert merge_checkpoint(str(config), src, dst) < 1e-5
    before, after = (read_checkpoint(path) for path in (src, dst))
    assert dst.stat().st_size < src.stat().st_size
    assert set(after) == {'state_dict', 'meta'}
    assert after['meta']['dataset_meta'] == {'classes': ('a', 'b', 'c')}
    names = [name for name in after['state_dict'] if '.merged.' in name]
    assert len(names) == 4
    assert not any('.deform.' in name or '.shift.' in name for name in after['state_dict'])

    image, outputs = torch.randn(1, 3, 70, 90), []
    for checkpoint in (before, after):
        model = build(config)
        model.load_state_dict(checkpoint['state_dict'])
        with torch.no_grad():
            outputs.append(model(image))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)


def fails(paths, message, kind=ValueError):
    config, src, dst = paths
    with pytest.raises(kind, match=message):
        merge_checkpoint(str(config), src, dst)
    assert not dst.exists()


def test_merging_twice_is_an_error(paths, tmp_path):
    config, src, dst = paths
    merge_checkpoint(str(config), src, dst)
    fails((config, dst, tmp_path / 'again.pth'), r'blocks\.0\.attn.* are merged already')


def test_a_model_without_slide_attention(paths):
    paths[0].write_text(CONFIG.replace('num_slide_stages=2', 'num_slide_stages=0'))
    fails(paths, 'has no slide attention to merge')


def test_a_checkpoint_of_another_model(paths):
    paths[0].write_text(
        CONFIG.replace('SlideSwin', 'SlideCSwin').replace('mlp_', 'split_sizes=(None,) * 4, mlp_')
    )
    fails(
        paths, r'epoch_12\.pth. is not of this config: \S+ has shape .* and \d+ more are of another'
    )


def test_a_missing_checkpoint(paths):
    paths[1].unlink()
    fails(paths, r'epoch_12\.pth. does not exist', FileNotFoundError)


def test_a_wrong_merge_is_not_written(paths, monkeypatch):
    def merge(layer):
        layer.deform['weight'].data.add_(0.1)

    monkeypatch.setattr(SlideAttention, 'merge', merge)
    fails(paths, 'merged outputs differ by')
