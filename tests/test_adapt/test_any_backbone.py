"""Backbones that are not of this package in stock configs."""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmlocalattn.adapt import CannotAdapt, swap_backbone
from mmlocalattn.adapt.trial import run_model
from mmlocalattn.adapt.user_class import import_class
from mmlocalattn.training import load_config
from mmlocalattn.training.arguments import add_config_arguments, config_of

ROOT = Path(__file__).parents[2]
MASK_RCNN = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
CONVNEXT = dict(type='mmpretrain.ConvNeXt', arch='atto', gap_before_final_norm=False)
OWN = """
from torch import nn

class Halves(nn.Module):
    def __init__(self, out_indices=(0, 1, 2, 3, 4), in_channels=3):
        super().__init__()
        self.out_indices = out_indices
        self.layers = nn.ModuleList(
            nn.Conv2d(8 * i or in_channels, 8 * i + 8, 3, 2, 1) for i in range(5)
        )

    def forward(self, x):
        maps = [x := layer(x) for layer in self.layers]
        return tuple(maps[i] for i in self.out_indices)

class Fixed(Halves):
    def __init__(self):
        super().__init__((1, 2, 3, 4))

class Flat(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))
"""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """``own.py`` outside the repository, which is forgotten afterwards."""
    monkeypatch.setattr(sys, 'path', list(sys.path))
    (tmp_path / 'own.py').write_text(OWN)
    yield tmp_path / 'own.py'
    for name in ('own', 'plain'):
        sys.modules.pop(name, None)
    DefaultScope._instance_dict.clear()


def neck_of(config: str, backbone: dict) -> tuple[Config, list[int]]:
    swapped = swap_backbone(load_config(config), backbone)
    return swapped, list(swapped.model.neck.in_channels)


def test_mmpretrains() -> None:
    swapped, channels = neck_of(MASK_RCNN, CONVNEXT)
    assert swapped.model.backbone == {**CONVNEXT, 'out_indices': (0, 1, 2, 3)}
    assert channels == [40, 80, 160, 320]
    stock = load_config(MASK_RCNN)
    assert swapped.optim_wrapper == stock.optim_wrapper
    assert swapped.model.data_preprocessor == stock.model.data_preprocessor


@pytest.mark.parametrize(
    ('config', 'name', 'found', 'channels'),
    [
        (MASK_RCNN, 'Halves', (1, 2, 3, 4), [16, 24, 32, 40]),
        (RETINANET, 'Halves', (2, 3, 4), [24, 32, 40]),
        (MASK_RCNN, 'Fixed', None, [16, 24, 32, 40]),
        (RETINANET, 'Fixed', None, [16, 24, 32, 40]),
    ],
)
def test_own(own: Path, config: str, name: str, found: tuple | None, channels: list) -> None:
    swapped, in_channels = neck_of(config, dict(type=import_class(f'{own}:{name}')))
    assert swapped.model.backbone.get('out_indices') == found
    assert in_channels == channels


@pytest.mark.parametrize(
    ('name', 'options', 'reason'),
    [
        (
            'Halves',
            dict(out_indices=(0, 1, 2, 3)),
            r'\[4, 8, .*its maps have strides \[2, 4, 8, 16\]',
        ),
        ('Flat', {}, 'gives no maps of the strides .* does not return feature maps'),
    ],
)
def test_refuses_other_maps(own: Path, name: str, options: dict, reason: str) -> None:
    with pytest.raises(CannotAdapt, match=reason):
        neck_of(MASK_RCNN, dict(type=import_class(f'{own}:{name}'), **options))


def test_needs_a_type() -> None:
    with pytest.raises(ValueError, match=r"needs its type, got \{'arch': 'tiny'\}"):
        swap_backbone(load_config(MASK_RCNN), dict(arch='tiny'))


def test_the_example_of_the_docs_trains_in_a_stock_config(tmp_path: Path) -> None:
    page = (ROOT / 'docs' / 'add_backbone.md').read_text()
    (example,) = re.findall(r'```python\n(import torch\n.*?)```', page, re.DOTALL)
    (tmp_path / 'plain.py').write_text(example)
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    cfg = config_of(parser.parse_args([RETINANET, '--backbone', f'{tmp_path}/plain.py:Plain']))
    assert cfg.model.backbone == dict(type='plain.Plain', out_indices=(1, 2, 3))
    assert cfg.model.neck.in_channels == [64, 128, 256]
    run_model(cfg)


@pytest.mark.parametrize(
    ('text', 'error', 'message'),
    [
        ('{own}:Missing', ValueError, "has no class 'Missing': it has Halves, Fixed, Flat$"),
        ('no.py:Halves', FileNotFoundError, "'no.py' of 'no.py:Halves' does not exist"),
        ('{folder}/json.py:Halves', ValueError, 'has the name of another module, .*json'),
        ('{folder}/my-own.py:Halves', ValueError, 'cannot be imported: give the file a name'),
    ],
)
def test_wrong_files(own: Path, text: str, error: type[Exception], message: str) -> None:
    for name in ('json', 'my-own'):
        (own.parent / f'{name}.py').write_text(OWN)
    with pytest.raises(error, match=message):
        import_class(text.format(own=own, folder=own.parent))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('x = 1\ndef (', r"bad\.py' cannot be imported: SyntaxError: .*bad\.py, line 2"),
        ('x = 1\nimport none_such', r"bad\.py' .* No module named 'none_such' \(line 2\)"),
        ('from torch import none_such', r"bad\.py' .*: ImportError: cannot import .*\(line 1\)"),
        ('none_such', r"bad\.py' .*: NameError: name 'none_such' .*\(line 1\)"),
        ('x = 1', "has no class 'Bad': it has none$"),
    ],
)
def test_files_that_cannot_be_imported(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / 'bad.py').write_text(content)
    with pytest.raises(ValueError, match=message):
        import_class(f'{tmp_path}/bad.py:Bad')
    sys.modules.pop('bad', None)
