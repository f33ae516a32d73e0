"""A detector that takes milliseconds, and its pictures."""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

CONFIG = """
default_scope = 'mmdet'
pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape'))]
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CocoDataset', data_root='.', ann_file='coco.json',
                 data_prefix=dict(img=''), metainfo=dict(classes=('a', 'b')), pipeline=pipeline))
norm_cfg = dict(type='SyncBN')
model = dict(
    type='FCOS',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[128.0] * 3, std=[64.0] * 3, pad_size_divisor=8),
    backbone=dict(
        type='mmlocalattn.SSViT', out_indices=(0, 1), norm_cfg=norm_cfg,
        arch=dict(embed_dims=[8, 8], depths=[1, 1], num_heads=[1, 1], mlp_ratios=[2, 2])),
    neck=dict(type='FPN', in_channels=[8, 8], out_channels=8, num_outs=2),
    bbox_head=dict(
        type='FCOSHead', num_classes=2, in_channels=8, feat_channels=8, stacked_convs=1,
        strides=[4, 8], regress_ranges=((-1, 16), (16, 1e8)), norm_cfg=norm_cfg))
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05))
randomness = dict(seed=0)
"""


def write_data(folder: Path, sides: Sequence[int]) -> None:
    """Square pictures of these sides, of which every second one is empty, as ``coco.json``."""
    chance = np.random.default_rng(0)
    images, annotations = [], []
    for number, side in enumerate(sides):
        name = f'{number}.png'
        picture = chance.integers(0, 256, (side, side, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / name), picture)
        images.append(dict(id=number, file_name=name, width=side, height=side))
        if number % 2 == 0:
            box = [4 + number % 8, 6, 10 + number % 8, 16]
            entry = dict(id=number + 1, image_id=number, category_id=number // 2 % 2, bbox=box)
            annotations.append({**entry, 'area': box[2] * box[3], 'iscrowd': 0})
    categories = [dict(id=0, name='a'), dict(id=1, name='b')]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / 'coco.json').write_text(json.dumps(content))
