"""tools/analysis/vis_attention.py: what it draws, and what it refuses."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_data
import torch
from tiny_data import CLASSIFICATION, quick  # noqa: F401

from mmlocalattn.training import load_config
from mmlocalattn.visualisation.draw import build_backbone

TOOL = tiny_data.load_tool('analysis/vis_attention')
pytestmark = pytest.mark.usefixtures('quick')
MODEL = """
model = dict(
    backbone=dict(type='mmlocalattn.SSViT', arch=dict(
        embed_dims=[8, 16, 24, 32], depths=[1, 1, 2, 1], num_heads=[1, 2, 3, 4],
        mlp_ratios=[2, 2, 2, 2])))
"""
HOST = """
model = dict(backbone=dict(type='mmlocalattn.SlideSwin', num_slide_stages=0))
"""
RESNET = """
default_scope = 'mmpretrain'
model = dict(backbone=dict(type='ResNet', depth=18))
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With image.png, 120 pixels wide and 80 high, configs and a checkpoint."""
    folder = tmp_path_factory.mktemp('vis')
    image = np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / 'image.png'), image)
    for name, text in (('ssvit', MODEL), ('host', HOST), ('resnet', RESNET), ('empty', '')):
        (folder / f'{name}.py').write_text(text)
    tiny_data.write_config(folder / 'classifier.py', CLASSIFICATION, folder)
    (folder / 'no_image.png').write_text('text')
    return folder


@pytest.fixture
def args(folder: Path, tmp_path: Path) -> list[str]:
    """A tiny SSViT on the image, 64 pixels high for the model."""
    return [
        *(str(folder / name) for name in ('ssvit.py', 'image.png')),
        *('--short-side', '64', '--out', str(tmp_path / 'out')),
    ]


def data_of(page: Path) -> dict:
    (text,) = re.findall(r'<script id="data"[^>]*>(.*?)</script>', page.read_text())
    return json.loads(text)


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as error:
        tiny_data.run(TOOL, *argv)
    return f'{error.value} {capsys.readouterr().err}'


def test_everything_by_default(args: list[str], tmp_path: Path) -> None:
    tiny_data.run(TOOL, *args)
    out = tmp_path / 'out'
    pictures = [f'stage{stage}_60_40.png' for stage in range(4)]
    assert sorted(path.name for path in out.iterdir()) == ['attention.html', *pictures]
    data = data_of(out / 'attention.html')
    assert data['weights'] == 'random weights'
    assert data['points'] == [[60, 40]]
    assert data['size'] == [80, 120]
    layers = [(x['stage'], x['block'], x['heads'], x['size']) for x in data['layers']]
    assert layers == [
        (0, '0', [0], [16, 24]),
        (1, '0', [0, 1], [8, 12]),
        (2, '0', [0, 1, 2], [4, 6]),
        (2, '1', [0, 1, 2], [4, 6]),
        (3, '0', [0, 1, 2, 3], [2, 3]),
    ]


def test_what_is_chosen(args: list[str], tmp_path: Path) -> None:
    chosen = ['--points', '0,0', '119,79', '--stages', '2', '--blocks', '1', '--heads', '0', '2']
    tiny_data.run(TOOL, *args, *chosen)
    out = tmp_path / 'out'
    names = ['attention.html', 'stage2_0_0.png', 'stage2_119_79.png']
    assert sorted(path.name for path in out.iterdir()) == names
    (layer,) = data_of(out / 'attention.html')['layers']
    assert (layer['stage'], layer['block'], layer['heads']) == (2, '1', [0, 2])


def test_checkpoint(args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, image, *rest = args
    backbone = build_backbone(load_config(config))
    state = {f'backbone.{name}': tensor for name, tensor in backbone.state_dict().items()}
    path = tmp_path / 'w.pth'
    torch.save({'state_dict': state, 'meta': {}}, path)
    tiny_data.run(TOOL, config, path, image, *rest, '--stages', '3')
    assert data_of(tmp_path / 'out' / 'attention.html')['weights'] == 'w.pth'
    del state['backbone.stages.0.blocks.0.attn.qkv.weight']
    torch.save(state, path)
    argv = [config, str(path), image, *rest]
    assert 'stages.0.blocks.0.attn.qkv.weight' in refused(argv, capsys)
    tiny_data.run(TOOL, *argv, '--stages', '3', '--allow-partial')
    assert '| backbone.stages.0.blocks.0.attn.qkv.weight | missing ' in capsys.readouterr().out


def test_another_backbone(
    args: list[str],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = str(folder / 'classifier.py')
    tiny_data.run(TOOL, config, '--backbone', 'slide_pvt_t', *args[1:], '--blocks', '1')
    assert 'mmlocalattn.SlidePVT' in capsys.readouterr().out  # the changes
    data = data_of(tmp_path / 'out' / 'attention.html')
    assert data['title'] == 'classifier with slide_pvt_t'
    assert {layer['operator'] for layer in data['layers']} == {'slide_attention'}


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--points', '120,3'], r'point 120,3 is outside the image: x must be in 0\.\.119, y in'),
        (['--points', 'middle'], r"invalid point value: 'middle'"),
        (['--stages', '4'], r'stages 4: what is chosen has local attention only in 0, 1, 2, 3'),
        (['--stages', '0', '--blocks', '1'], r'blocks 1: .* only in 0$'),
        (['--blocks', 'down'], r'blocks down: .* only in 0, 1$'),
        (['--stages', '1', '--heads', '1', '2'], r'heads 2: .* only in 0, 1$'),
        (['--short-side', '20'], r'the short side must have at least 32 pixels, got 20'),
        (['--max-mb', '0.01'], r'choose fewer stages'),
    ],
)
def test_arguments_that_do_not_fit(
    args: list[str],
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    message: str,
) -> None:
    assert re.search(message, refused([*args, *argv], capsys).strip())


@pytest.mark.parametrize(
    ('config', 'image', 'message'),
    [
        ('host.py', 'image.png', 'SlideSwin, the backbone of .* has no local attention'),
        ('resnet.py', 'image.png', 'ResNet, the backbone of .*--backbone ssvit_t, puts'),
        ('empty.py', 'image.png', "empty.py' has no model.backbone"),
        ('none.py', 'image.png', "none.py' does not exist"),
        ('ssvit.py', 'none.png', "none.png' does not exist"),
        ('ssvit.py', 'no_image.png', 'is no image'),
    ],
)
def test_files_that_do_not_fit(
    args: list[str],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    config: str,
    image: str,
    message: str,
) -> None:
    files = [str(folder / config), str(folder / image)]
    assert re.search(message, refused([*files, *args[2:]], capsys))


def test_the_pictures(args: list[str], tmp_path: Path) -> None:
    """The mark of the query is where the point is, in the first picture of the grid."""
    tiny_data.run(TOOL, *args, '--points', '30,20', '90,60', '--stages', '0')
    centres = []
    for name in ('stage0_30_20.png', 'stage0_90_60.png'):
        picture = cv2.imread(str(tmp_path / 'out' / name)).astype(int)[:-60]  # without the legend
        blue, green, red = np.moveaxis(picture, -1, 0)
        rows, columns = np.nonzero((green > 180) & (red < 110) & (blue < 180))
        first = columns < columns.min() + 100
        centres.append((columns[first].mean(), rows[first].mean()))
    width, height = np.subtract(centres[1], centres[0]) * 2  # of the picture
    assert width / height == pytest.approx(120 / 80, rel=0.05)
