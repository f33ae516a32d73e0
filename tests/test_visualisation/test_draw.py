"""From a config to pictures of its attention: the image, the weights, the choice, the files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from tiny_data import quick  # noqa: F401

from mmlocalattn.visualisation.draw import (
    attention_of,
    build_backbone,
    draw_layers,
    prepare_image,
    select_layers,
)

pytestmark = pytest.mark.usefixtures('quick')  # it leaves no default scope behind
ARCH = dict(embed_dims=[8, 16], depths=[1, 3], num_heads=[1, 2], mlp_ratios=[2, 2])
IMAGE = np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8)


@pytest.fixture
def cfg() -> Config:
    backbone = dict(type='mmlocalattn.SSViT', arch=ARCH, out_indices=(0, 1))
    return Config(dict(model=dict(backbone=backbone)))


def test_the_image_is_normalised_as_in_training() -> None:
    image = np.full((40, 100, 3), (0, 50, 100), np.uint8)  # blue, green, red
    statistics = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
    expected = [(100 - 123.675) / 58.395, (50 - 116.28) / 57.12, (0 - 103.53) / 57.375]
    for config in (
        dict(model=dict(data_preprocessor=dict(bgr_to_rgb=True, **statistics))),  # mmdet, mmseg
        dict(model={}, data_preprocessor=dict(to_rgb=True, **statistics)),  # mmpretrain
    ):
        tensor = prepare_image(image, Config(config), 64)
        assert tensor.shape == (1, 3, 64, 160)
        torch.testing.assert_close(tensor[0, :, 5, 7], torch.tensor(expected))
    plain = prepare_image(image, Config(dict(model={})), 32)
    assert plain[0, :, 0, 0].tolist() == [0, 50, 100]


def test_weights_of_a_checkpoint(cfg: Config, tmp_path: Path) -> None:
    """All but the norms of the output maps, of which a classifier has fewer; none besides."""
    backbone, path = build_backbone(cfg), tmp_path / 'w.pth'
    state = {
        f'backbone.{name}': 2 * tensor
        for name, tensor in backbone.state_dict().items()
        if not name.startswith('output_norms.')
    }
    torch.save({'state_dict': state, 'meta': {}}, path)
    torch.testing.assert_close(
        build_backbone(cfg, str(path)).stem.state_dict(),
        {name: 2 * tensor for name, tensor in backbone.stem.state_dict().items()},
    )
    name = 'backbone.stages.0.blocks.0.attn.qkv.weight'
    torch.save({key: tensor for key, tensor in state.items() if key != name}, path)
    message = r'not of this config: 1 missing, that is .*attn\.qkv\.weight'
    with pytest.raises(ValueError, match=message):
        build_backbone(cfg, str(path))
    torch.save({name: torch.ones(2, 2)}, path)
    with pytest.raises(ValueError, match='not of this config'):
        build_backbone(cfg, str(path))
    with pytest.raises(FileNotFoundError, match=r"'no\.pth' does not exist"):
        build_backbone(cfg, 'no.pth')


def test_layers_are_chosen(cfg: Config) -> None:
    records = attention_of(cfg, IMAGE, short_side=64)
    chosen = [(a.stage, a.block, heads) for a, heads in select_layers(records)]
    assert chosen == [(0, '0', [0]), (1, '1', [0, 1]), (1, '2', [0, 1])]  # the last two blocks
    chosen = select_layers(records, stages=[1], blocks=['0'], heads=[1])
    assert [(a.stage, a.block, heads) for a, heads in chosen] == [(1, '0', [1])]
    with pytest.raises(ValueError, match=r'^stages 2: .* only in 0, 1$'):
        select_layers(records, stages=[2])


def test_a_page_that_leaves_out_queries_says_so(
    cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = select_layers(attention_of(cfg, IMAGE, short_side=64), stages=[1], blocks=['2'])
    out = tmp_path / 'out'
    files = draw_layers(layers, IMAGE, [(3, 5)], out, 'tiny', 'random weights')
    assert files == [out / 'stage1_3_5.png', out / 'attention.html']
    assert all(file.is_file() for file in files)
    assert 'the page has' not in capsys.readouterr().out
    limit = files[1].stat().st_size - 10_000
    draw_layers(layers, IMAGE, [], out, 'tiny', 'random weights', limit)
    assert files[1].stat().st_size <= limit
    assert 'stage 1, block 2: the page has ' in capsys.readouterr().out
    with pytest.raises(ValueError, match='point 120,0 is outside the image'):
        draw_layers(layers, IMAGE, [(120, 0)], out, 'tiny', 'random weights')
