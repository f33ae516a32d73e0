"""The table of backbones against the configs that the package brings."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mmlocalattn.adapt import BACKBONES
from mmlocalattn.training import load_config

CONFIGS = Path(__file__).parents[2] / 'configs'
DEFAULTS = {'drop_path_rate': 0.0, 'dilations': 'imagenet', 'window_size': 7}
"""Of the backbones' constructors, for options that a config leaves out."""

SEMANTIC_FPN = 'Semantic FPN has its own optimizer; the table follows UPerNet'
CASCADE = 'the released Cascade Mask R-CNN drops more paths; the table follows Mask R-CNN'
LONG = 'the 3x schedule of SSViT-B halves the rate; the table follows 1x'
RETINANET_SSVIT = 'RetinaNet has its own weight decay; the table follows Mask R-CNN'
RETINANET_PVT = 'RetinaNet learns at half the rate; the table follows Mask R-CNN'
HOST = 'the recipe is that of mmdet; the table follows Mask R-CNN'
MASK2FORMER = "Mask2Former's own recipe; the table follows Mask R-CNN and UPerNet"
DINAT_MASK2FORMER = 'Mask2Former with DiNAT-L was released with windows of 11 and their dilations'
RATES = {'lr', 'weight_decay'}
RELEASED_DETAILS = {'lr', 'drop_path_rate', 'dilations'}
EXCEPTIONS = {
    **{f'semfpn_ssvit_{s}_80k_ade20k': ({'lr', 'weight_decay'}, SEMANTIC_FPN) for s in 'tsbl'},
    **{f'semfpn_qna_vit_{s}_80k_ade20k': ({'lr', 'weight_decay'}, SEMANTIC_FPN) for s in 'ts'},
    **{f'cascade_maskrcnn_nat_{s}_3x_coco': ({'drop_path_rate'}, CASCADE) for s in 'ts'},
    **{f'cascade_maskrcnn_dinat_{s}_3x_coco': ({'drop_path_rate'}, CASCADE) for s in 'ts'},
    'maskrcnn_ssvit_b_3x_coco': ({'lr'}, LONG),
    'cascade_maskrcnn_ssvit_b_3x_coco': ({'lr'}, LONG),
    **{f'retinanet_ssvit_{s}_1x_coco': ({'weight_decay'}, RETINANET_SSVIT) for s in 'tsbl'},
    **{f'retinanet_slide_pvt_{s}_1x_coco': ({'lr'}, RETINANET_PVT) for s in 'ts'},
    **{
        f'{head}_{name}_{length}_coco': (keys, HOST)
        for head, length in (('dino', '1x'), ('deformable_detr', '50e'))
        for name, keys in (
            ('ssvit_t', RATES),
            ('ssvit_s', RATES),
            ('dinat_l', RATES),
            ('slide_swin_t', {'weight_decay'}),
        )
    },
    **{
        f'rtmdet_ins_{name}_100e_coco': ({'lr'}, HOST)
        for name in ('ssvit_t', 'ssvit_s', 'dinat_l', 'slide_swin_t')
    },
    **{
        f'mask2former_{name}_50e_{data}': (keys, MASK2FORMER)
        for data in ('coco', 'coco_panoptic')
        for name, keys in (
            ('ssvit_t', {'lr'}),
            ('ssvit_s', {'lr'}),
            ('slide_swin_t', {'drop_path_rate'}),
        )
    },
    **{
        f'mask2former_{name}_160k_ade20k': (RATES, MASK2FORMER)
        for name in ('ssvit_t', 'ssvit_s', 'slide_swin_t')
    },
    **{
        f'mask2former_dinat_l_{data}': (RATES | {'dilations'}, DINAT_MASK2FORMER)
        for data in ('160k_ade20k', '90k_cityscapes')
    },
    **{
        f'mask2former_dinat_l_{data}': (RELEASED_DETAILS, DINAT_MASK2FORMER)
        for data in (
            '100e_coco',
            '100e_coco_panoptic',
            '160k_ade20k_instance',
            '160k_ade20k_panoptic',
            '90k_cityscapes_instance',
            '90k_cityscapes_panoptic',
        )
    },
    'detr_qna_vit_t_150e_coco': ({'weight_decay'}, "DETR's own; the table follows Mask R-CNN"),
}
"""What a config has otherwise than the table, and why."""

WITHOUT_CONFIG = {
    'mmdet': {'slide_cswin_', 'slide_nat_', 'slide_pvtv2_b3', 'slide_pvtv2_b4', 'slide_pvtv2_b5',
              'qna_vit_t_7x7', 'sasa_r26', 'sasa_r38'},
    'mmseg': {'slide_cswin_', 'slide_nat_', 'slide_pvtv2_', 'slide_pvt_m', 'slide_swin_b',
              'qna_vit_t_7x7', 'qna_vit_b', 'sasa_r26', 'sasa_r38'},
    'mmpretrain': {'dinat_l'},
}  # fmt: skip
"""Beginnings of the names for which the table says whose value it has."""


def name_of(backbone: dict) -> str | None:
    """The name of a config's backbone in the table; None for one with a size of its own."""
    size = backbone.get('arch', backbone.get('depth'))
    for name, entry in BACKBONES.items():
        if (backbone['type'], size) == (f'mmlocalattn.{entry.name}', entry.arch):
            return name
    return None


@pytest.fixture(scope='module')
def configs() -> list[tuple[str, str, Config]]:
    """Every config of a backbone in the table: its file, the backbone's name, the config."""
    found = []
    for file in sorted(CONFIGS.glob('*.py')):
        cfg = load_config(str(file))
        if name := name_of(cfg.model.backbone):
            found.append((file.stem, name, cfg))
        else:
            assert file.stem.startswith('quickstart_')
    return found


def differences(name: str, cfg: Config) -> set[str]:
    """The keys in which a config and the table differ."""
    batch_size = cfg.auto_scale_lr.base_batch_size
    expected = BACKBONES[name].backbone(cfg.default_scope)
    actual = {**DEFAULTS, **cfg.model.backbone}
    optimizer = BACKBONES[name].optimizer(cfg.default_scope, batch_size)
    if optimizer is None:
        assert cfg.optim_wrapper.optimizer.type == 'SGD'
    else:
        expected |= {key: optimizer[key] for key in ('lr', 'weight_decay')}
        actual |= {'lr': cfg.optim_wrapper.optimizer.lr}
        actual |= {'weight_decay': cfg.optim_wrapper.optimizer.weight_decay}
    return {key for key, value in expected.items() if actual[key] != value}


def test_configs_agree_with_the_table(configs: list[tuple[str, str, Config]]) -> None:
    found = {stem: differences(name, cfg) for stem, name, cfg in configs}
    assert len(found) > 100
    differing = {stem: keys for stem, keys in found.items() if keys}
    assert differing == {stem: keys for stem, (keys, _) in EXCEPTIONS.items()}


def test_the_table_tells_what_has_no_config(configs: list[tuple[str, str, Config]]) -> None:
    seen = {(cfg.default_scope, name) for _, name, cfg in configs}
    for scope, beginnings in WITHOUT_CONFIG.items():
        without = {name for name in BACKBONES if (scope, name) not in seen}
        assert without == {name for name in BACKBONES if name.startswith(tuple(beginnings))}


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
@pytest.mark.parametrize('name', BACKBONES)
def test_every_entry_builds(name: str, scope: str) -> None:
    with torch.device('meta'):
        model = MODELS.build(BACKBONES[name].backbone(scope))
    assert len(model.out_channels) == 4
