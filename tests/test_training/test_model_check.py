"""What the model of a config needs of its data."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mmlocalattn.training.model_check import (
    check_batch,
    check_class_weights,
    class_settings,
    num_processes,
)


def config(model: dict, scope: str = 'mmdet', **entries: object) -> Config:
    return Config(dict(default_scope=scope, model=model, **entries))


@pytest.mark.parametrize(
    ('model', 'expected'),
    [
        (
            dict(
                backbone=dict(num_classes=1000),
                rpn_head=dict(num_classes=1),
                roi_head=dict(
                    bbox_head=[dict(type='Shared2FCBBoxHead'), dict(num_classes=3)],
                    mask_head=dict(type='FCNMaskHead', num_classes=80, class_agnostic=True),
                    semantic_head=dict(type='FusedSemanticHead', num_classes=183),
                ),
            ),
            [('roi_head.bbox_head.0.num_classes', 80), ('roi_head.bbox_head.1.num_classes', 3)],
        ),
        (
            dict(panoptic_head=dict(num_things_classes=8, num_stuff_classes=5)),
            [('panoptic_head.num_things_classes', 8)],
        ),
        (
            dict(bbox_head=dict(num_classes=4, loss_cls=dict(type='SeesawLoss', num_classes=80))),
            [('bbox_head.num_classes', 4), ('bbox_head.loss_cls.num_classes', 80)],
        ),
        (
            dict(detector=dict(bbox_head=dict(num_classes=4))),
            [('detector.bbox_head.num_classes', 4)],
        ),
        (dict(language_model=dict(type='BertModel'), bbox_head=dict(num_classes=256)), []),
    ],
)
def test_class_settings(model: dict, expected: list[tuple[str, int]]) -> None:
    found = class_settings(config(model))
    assert found == [(f'model.{name}', number) for name, number in expected]


def test_class_setting_of_the_preprocessor() -> None:
    preprocessor = dict(num_classes=1000, to_onehot=True)
    cfg = config(dict(head=dict(num_classes=2)), 'mmpretrain', data_preprocessor=preprocessor)
    assert class_settings(cfg) == [
        ('model.head.num_classes', 2),
        ('data_preprocessor.num_classes', 1000),
    ]
    preprocessor['to_onehot'] = False  # then nothing reads the number
    cfg = config(dict(head=dict(num_classes=2)), 'mmpretrain', data_preprocessor=preprocessor)
    assert class_settings(cfg) == [('model.head.num_classes', 2)]


@pytest.mark.parametrize(
    ('head', 'wrong'),
    [
        (dict(num_classes=2, loss_cls=dict(class_weight=[1.0] * 3)), 0),
        (dict(num_classes=2, loss_cls=dict(class_weight=[1.0] * 81)), 1),
        (dict(num_things_classes=2, loss_cls=dict(class_weight=[1.0] * 134)), 1),
        (dict(num_classes=2, loss_cls=dict(class_weight=1.0)), 0),
        (dict(num_classes=2, loss_decode=dict(class_weight=[1.0] * 2)), 0),
        (dict(num_classes=2, loss_decode=[{}, dict(class_weight=[1.0] * 3)]), 1),
    ],
)
def test_class_weights(head: dict, wrong: int) -> None:
    assert len(list(check_class_weights(config(dict(head=head))))) == wrong


@pytest.mark.parametrize(
    ('head', 'loader', 'images', 'expected'),
    [
        (dict(type='PSPHead', norm_cfg=dict(type='SyncBN')), dict(batch_size=1), 8, 'SyncBN'),
        (dict(type='PSPHead', norm_cfg=dict(type='BN')), dict(batch_size=2), 8, ''),
        (dict(type='PSPHead', norm_cfg=dict(type='GN')), dict(batch_size=1), 8, ''),
        (dict(type='PSPHead'), dict(batch_size=1), 8, ''),
        (
            dict(type='UPerHead', pool_scales=(2, 3), norm_cfg=dict(type='BN')),
            dict(batch_size=1),
            8,
            '',
        ),
        (dict(type='mmseg.ASPPHead', norm_cfg=dict(type='BN')), dict(batch_size=1), 8, 'BN'),
        (dict(type='FCNHead', norm_cfg=dict(type='BN')), dict(batch_size=1), 8, ''),
        (dict(type='ICNet'), dict(batch_size=1), 8, 'SyncBN'),
        (dict(type='LinearNeck'), dict(batch_size=4), 9, 'BN1d'),
        (dict(type='LinearNeck'), dict(batch_size=4, drop_last=True), 9, ''),
        (dict(type='LinearNeck'), dict(batch_size=4), 8, ''),
        (dict(type='LinearNeck'), dict(batch_size=4), None, ''),
    ],
)
def test_batches_for_batch_norms(
    head: dict, loader: dict, images: int | None, expected: str
) -> None:
    cfg = config(dict(head=head), train_dataloader=loader, train_cfg=dict(max_epochs=1))
    found = [finding.message for finding in check_batch(cfg, images)]
    if not expected:
        assert found == []
        return
    (line,) = found
    name = head['type'].rpartition('.')[2]
    why = (
        'train_dataloader.batch_size is 1'
        if loader['batch_size'] == 1
        else '9 images in batches of 4 leave a last one of 1'
    )
    assert line == (
        f'{name}: its {expected} sees one value for each channel and image, and {why}, where a '
        'batch norm needs two. Set train_dataloader.batch_size=2 or more, and '
        'train_dataloader.drop_last=True'
    )


def test_last_batch_of_iterations_is_whole() -> None:
    cfg = config(
        dict(neck=dict(type='LinearNeck')),
        train_dataloader=dict(batch_size=4),
        train_cfg=dict(max_iters=10),
    )
    assert not list(check_batch(cfg, 9))


def test_batches_of_all_processes_count_for_sync_bn(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(
        dict(head=dict(type='PSPHead', norm_cfg=dict(type='SyncBN'))),
        train_dataloader=dict(batch_size=1),
        launcher='pytorch',
    )
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert num_processes(cfg) == 2
    for norm in ('SyncBN', 'mmlocalattn.CPUSyncBN'):
        cfg.model.head.norm_cfg.type = norm
        assert not list(check_batch(cfg, None))
    cfg.model.head.norm_cfg.type = 'BN'
    assert len(list(check_batch(cfg, None))) == 1
    cfg.model.head.norm_cfg.type = 'SyncBN'
    cfg.launcher = 'none'
    assert num_processes(cfg) == 1
    assert len(list(check_batch(cfg, None))) == 1


def test_learning_rate_of_another_batch_size() -> None:
    cfg = config({}, train_dataloader=dict(batch_size=2), auto_scale_lr=dict(base_batch_size=16))
    (found,) = check_batch(cfg, None)
    assert (found.severity, found.kind) == ('note', 'learning rate')
    cfg.auto_scale_lr.enable = True
    assert not list(check_batch(cfg, None))
    cfg.auto_scale_lr = dict(base_batch_size=4)
    assert not list(check_batch(cfg, None))


HEAD = dict(in_channels=8, channels=8, num_classes=2, norm_cfg=dict(type='BN'))
MANY = {**HEAD, 'in_channels': [8, 8], 'in_index': [0, 1]}


@pytest.mark.parametrize(
    'part',
    [
        dict(type='mmseg.PSPHead', in_index=0, **HEAD),
        dict(type='mmseg.APCHead', in_index=0, **HEAD),
        dict(type='mmseg.ASPPHead', in_index=0, **HEAD),
        dict(
            type='mmseg.DepthwiseSeparableASPPHead',
            in_index=0,
            c1_in_channels=0,
            c1_channels=0,
            **HEAD,
        ),
        dict(type='mmseg.UPerHead', **MANY),
        dict(type='mmseg.FastSCNN'),
        dict(type='mmpretrain.LinearNeck', in_channels=8, out_channels=8),
    ],
    ids=lambda part: part['type'],
)
def test_parts_that_need_two_images(part: dict) -> None:
    """The parts that are refused with one image are those that PyTorch refuses."""
    assert len(list(check_batch(config(part, train_dataloader=dict(batch_size=1)), None))) == 1
    assert not list(check_batch(config(part, train_dataloader=dict(batch_size=2)), None))
    module = MODELS.build(part).train()
    maps = tuple(torch.ones(2, 8, side, side) for side in (8, 4))
    one = tuple(map_[:1] for map_ in maps)
    if part['type'] == 'mmpretrain.LinearNeck':
        maps, one = (torch.ones(2, 8),), (torch.ones(1, 8),)
    if part['type'] == 'mmseg.FastSCNN':
        maps, one = torch.ones(2, 3, 64, 64), torch.ones(1, 3, 64, 64)
    module(maps)
    with pytest.raises(ValueError, match='Expected more than 1 value per channel'):
        module(one)
