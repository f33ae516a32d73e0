"""Configs that are tested flipped and at several scales."""

import pytest
import torch
from mmengine.config import Config

from mmlocalattn.training.test_time import enable_test_time_augmentation

LOAD = dict(type='LoadImageFromFile')
RESIZE = dict(type='Resize', scale=(1333, 800), keep_ratio=True)
PACK = dict(type='PackDetInputs', meta_keys=('img_id', 'scale_factor'))
NMS = dict(type='nms', iou_threshold=0.6)
CASCADE = dict(type='CascadeRCNN', test_cfg=dict(rcnn=dict(nms=NMS)))


def augmented(scope: str, pipeline: list[dict], scales: tuple = (), **entries: object) -> Config:
    dataset = dict(type='RepeatDataset', dataset=dict(type='Toy', pipeline=pipeline))
    content = dict(default_scope=scope, model=CASCADE, test_dataloader=dict(dataset=dataset))
    cfg = Config(content | entries, filename=__file__)
    enable_test_time_augmentation(cfg, scales)
    return cfg


def views(cfg: Config) -> tuple[list, list[list[dict]]]:
    """What comes before the views, and the transforms of each of them."""
    *before, last = cfg.test_dataloader.dataset.dataset.pipeline
    assert last['type'] == 'TestTimeAug'
    views, (packer,) = last['transforms']
    assert {*packer.get('meta_keys', ('flip', 'flip_direction'))} >= {'flip', 'flip_direction'}
    assert all(view['type'] == 'Compose' for view in views)
    return [part['type'] for part in before], [view['transforms'] for view in views]


def flip(prob: float) -> dict:
    return dict(type='RandomFlip', prob=prob)


def test_detection_is_flipped_behind_the_resize() -> None:
    pad = dict(type='Pad', size=(640, 640))
    cfg = augmented('mmdet', [LOAD, RESIZE, pad, PACK], (1, 0.5))
    small, half = dict(RESIZE, scale=(666, 400)), dict(pad, size=(320, 320))
    assert views(cfg) == (
        ['LoadImageFromFile'],
        [
            [RESIZE, flip(0), pad],
            [RESIZE, flip(1), pad],
            [small, flip(0), half],
            [small, flip(1), half],
        ],
    )
    assert cfg.model.type == 'mmlocalattn.DetTTA'
    assert cfg.model.module == CASCADE
    assert cfg.model.tta_cfg == dict(nms=NMS, max_per_img=100)


def test_segmentation_without_a_resize() -> None:
    annotations, pack = dict(type='LoadAnnotations'), dict(type='PackSegInputs')
    cfg = augmented('mmseg', [LOAD, annotations, pack], (1, 1.5))
    resize = dict(type='Resize', scale_factor=1.5, keep_ratio=True)
    assert views(cfg) == (
        ['LoadImageFromFile'],
        [
            [flip(0), annotations],
            [flip(1), annotations],
            [resize, flip(0), annotations],
            [resize, flip(1), annotations],
        ],
    )
    assert cfg.model.type == 'SegTTAModel'


def test_classifiers_are_flipped_behind_the_crop() -> None:
    resize, crop = dict(type='ResizeEdge', scale=256), dict(type='CenterCrop', crop_size=224)
    cfg = augmented('mmpretrain', [LOAD, resize, crop, dict(type='PackInputs')], (1.125,))
    larger = dict(resize, scale=288)
    assert views(cfg)[1] == [[larger, crop, flip(0)], [larger, crop, flip(1)]]
    assert cfg.model.type == 'AverageClsScoreTTA'
    assert cfg.test_dataloader.collate_fn == dict(type='pseudo_collate')


def test_a_config_may_have_its_own() -> None:
    own = dict(tta_model=dict(type='Own'), tta_pipeline=[LOAD, dict(type='Other')])
    cfg = augmented('mmdet', [LOAD, RESIZE, PACK], **own)
    assert cfg.model.type == 'Own'
    assert cfg.test_dataloader.dataset.dataset.pipeline == own['tta_pipeline']
    cfg = augmented('mmdet', [LOAD, RESIZE, PACK], (2,), **own)
    assert cfg.model.type == 'mmlocalattn.DetTTA'


@pytest.mark.parametrize(
    ('scope', 'pipeline', 'entries', 'message'),
    [
        ('mmpose', [PACK], {}, r'is for mmdet, mmseg, mmpretrain: .*py is of mmpose$'),
        ('mmdet', [LOAD], {}, r'ends with PackDetInputs: that of the test of .* is LoadImageFro'),
        ('mmdet', [], {}, r'is empty$'),
        (
            'mmseg',
            [PACK],
            dict(model=dict(type='DepthEstimator')),
            r'merges no depth: .*py predicts it$',
        ),
        (
            'mmdet',
            [PACK],
            dict(model=dict(type='PanopticFPN', panoptic_fusion_head={})),
            r'merges no panoptic maps: .*py has them$',
        ),
        (
            'mmdet',
            [PACK],
            dict(model=dict(type='SOLO', mask_head={})),
            r'merges boxes: SOLO of .*py finds masks alone$',
        ),
    ],
)
def test_what_cannot_be_merged(scope: str, pipeline: list, entries: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augmented(scope, pipeline, **entries)


def test_wrong_scales() -> None:
    with pytest.raises(ValueError, match=r'are factors from 0\.1 to 10, got -1$'):
        augmented('mmdet', [LOAD, PACK], (1, -1))
    with pytest.raises(ValueError, match=r'to 10, got nan$'):
        augmented('mmdet', [LOAD, PACK], (float('nan'),))


def sample(boxes: list, scores: list, masks: torch.Tensor, flip: bool):
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    meta = dict(ori_shape=(8, 10), flip=flip, flip_direction='horizontal' if flip else None)
    found = InstanceData(
        bboxes=torch.tensor(boxes).reshape(-1, 4),
        scores=torch.tensor(scores),
        labels=torch.zeros(len(scores), dtype=torch.long),
        masks=masks,
    )
    return DetDataSample(metainfo=meta, pred_instances=found)


def test_masks_go_with_their_boxes() -> None:
    from mmlocalattn.registry import MODELS

    merger = MODELS.build(
        dict(
            type='mmlocalattn.DetTTA',
            module=_Module(),
            tta_cfg=Config(dict(nms=NMS, max_per_img=2)),
        )
    )
    masks = torch.zeros(2, 8, 10, dtype=torch.bool)
    masks[0, 1:5, 1:4] = masks[1, 4:8, 5:9] = True
    box, other = [1.0, 1.0, 4.0, 5.0], [5.0, 4.0, 9.0, 8.0]
    flipped = [[6.0, 1.0, 9.0, 5.0], [1.0, 4.0, 5.0, 8.0]]
    plain = sample([box, other], [0.9, 0.3], masks, False)
    mirrored = sample(flipped, [0.5, 0.7], masks.flip(-1), True)
    (merged,) = merger.merge_preds([(plain, mirrored)])
    found = merged.pred_instances
    torch.testing.assert_close(found.bboxes, torch.tensor([box, other]))
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.7]))
    assert torch.equal(found.masks, masks)  # the second from the flipped view
    nothing = sample([], [], masks[:0], False)
    (merged,) = merger.merge_preds([(nothing, nothing)])
    assert len(merged.pred_instances) == 0


class _Module(torch.nn.Module):
    def test_step(self, data: object) -> None:
        """As a model has it."""
