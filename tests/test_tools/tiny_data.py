"""Data sets and configs small enough to train in seconds, for the tests of the tools."""

import functools
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import cv2
import mmengine.config.config
import mmengine.config.utils
import numpy as np
import pytest
import torch
import yapf.yapflib.yapf_api
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.utils import ManagerMixin

from mmlocalattn.training import adapt_to_device, load_config

ROOT = Path(__file__).parents[2]
SIDE = 64
NUM_IMAGES = 6


def make_data(root: Path) -> None:
    """Write six pictures of one bright square as COCO, index-map and class-folder data sets.

    Args:
        root: Folder to fill: ``images/``, ``maps/``, ``classes/{dark,light}/``, ``coco.json``.
    """
    rng = np.random.default_rng(0)
    for folder in ('images', 'maps', 'classes/dark', 'classes/light'):
        (root / folder).mkdir(parents=True)
    images, annotations = [], []
    for i in range(NUM_IMAGES):
        x, y, side = (int(value) for value in (*rng.integers(4, 28, 2), rng.integers(20, 32)))
        label = i % 2
        picture = rng.integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8)
        picture[y : y + side, x : x + side] += np.uint8(80 + 80 * label)
        index_map = np.zeros((SIDE, SIDE), np.uint8)
        index_map[y : y + side, x : x + side] = 1 + label
        name = f'{i}.png'
        cv2.imwrite(str(root / 'images' / name), picture)
        cv2.imwrite(str(root / 'classes' / ('dark', 'light')[label] / name), picture)
        cv2.imwrite(str(root / 'maps' / name), index_map)
        images.append(dict(id=i, file_name=name, width=SIDE, height=SIDE))
        corners = [x, y, x + side, y, x + side, y + side, x, y + side]
        annotations.append(
            dict(
                id=i + 1,  # pycocotools takes a match with 0 for none
                image_id=i,
                category_id=label,
                bbox=[x, y, side, side],
                area=side * side,
                segmentation=[corners],
                iscrowd=0,
            )
        )
    categories = [dict(id=0, name='dark'), dict(id=1, name='light')]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / 'coco.json').write_text(json.dumps(content))


BACKBONE = """dict(
        arch=dict(_delete_=True, embed_dims=[8, 16, 24, 32], depths=[1, 1, 2, 1],
                  num_heads=[1, 2, 3, 4], mlp_ratios=[2, 2, 2, 2]),
        drop_path_rate=0.2)"""

DETECTION = """
_base_ = '{configs}/maskrcnn_ssvit_t_1x_coco.py'
model = dict(
    backbone={backbone},
    neck=dict(in_channels=[8, 16, 24, 32], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=16, num_classes=2),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16, num_classes=2)),
    train_cfg=dict(rpn=dict(sampler=dict(num=16)), rpn_proposal=dict(nms_pre=20, max_per_img=20),
                   rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(rpn=dict(nms_pre=20, max_per_img=20), rcnn=dict(max_per_img=5, score_thr=0.0)))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(64, 64)),
    dict(type='PackDetInputs',
         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
data = dict(
    data_root='{data}', ann_file='coco.json', data_prefix=dict(img='images/'),
    metainfo=dict(classes=('dark', 'light')), pipeline=pipeline)
loader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=data)
train_dataloader = loader
val_dataloader = loader
test_dataloader = loader
val_evaluator = dict(ann_file='{data}/coco.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=3, val_interval=3)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, begin=0, end=3, milestones=[1, 2])]
default_hooks = dict(logger=dict(interval=1))
"""

SEGMENTATION = """
_base_ = '{configs}/semfpn_ssvit_t_80k_ade20k.py'
norm_cfg = dict(_delete_=True, type='GN', num_groups=4)
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone={backbone},
    neck=dict(in_channels=[8, 16, 24, 32], out_channels=16),
    decode_head=dict(in_channels=[16] * 4, channels=16, num_classes=3, norm_cfg=norm_cfg))
pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
data = dict(
    _delete_=True, type='BaseSegDataset', data_root='{data}', pipeline=pipeline,
    img_suffix='.png', data_prefix=dict(img_path='images', seg_map_path='maps'),
    metainfo=dict(classes=('background', 'dark', 'light'),
                  palette=[[0, 0, 0], [90, 90, 90], [250, 250, 250]]))
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=data)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=data)
test_dataloader = val_dataloader
train_cfg = dict(max_iters=8, val_interval=4)
param_scheduler = [dict(type='PolyLR', by_epoch=False, begin=0, end=8)]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=3))
"""

CLASSIFICATION = """
_base_ = '{configs}/ssvit_t_300e_imagenet.py'
model = dict(
    backbone={backbone},
    neck=dict(in_channels=32, out_channels=16),
    head=dict(in_channels=16, num_classes=2, topk=(1,)))
data_preprocessor = dict(num_classes=2)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
data = dict(
    _delete_=True, type='CustomDataset', data_root='{data}/classes', with_label=True,
    pipeline=pipeline)
loader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=data)
train_dataloader = loader
val_dataloader = loader
test_dataloader = loader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
param_scheduler = [dict(type='ConstantLR', factor=1.0)]
default_hooks = dict(logger=dict(interval=1))
"""


SSVIT_ARCH = {  # of the golden SSViT
    'embed_dims': [16, 32, 64, 96],
    'depths': [2, 2, 2, 2],
    'num_heads': [1, 2, 2, 3],
    'mlp_ratios': [4, 4, 3, 3],
    'layer_scale': [None, None, 1e-6, 1e-6],
}


def released_ssvit(golden: Callable[[str], dict]) -> dict[str, torch.Tensor]:
    """The weights of a released SSViT classifier, of the names and the arch of the golden one."""
    arrays = golden('ssvit_small_224x256')
    return {
        name[6:]: torch.from_numpy(arrays[name]) for name in arrays if name.startswith('param/')
    }


def write_config(path: Path, text: str, data: Path, extra: str = '') -> str:
    """Write one of the configs above, with ``extra`` at its end, and return its path."""
    filled = text.format(configs=ROOT / 'configs', backbone=BACKBONE, data=data)
    path.write_text(filled + extra)
    return str(path)


def write_model(folder: Path, data: Path, task: str, extra: str = '') -> tuple[str, Path]:
    """A config, by the name of one above, and a checkpoint with random weights."""
    config = write_config(folder / 'c.py', globals()[task], data, extra)
    cfg = load_config(config)
    adapt_to_device(cfg)
    init_default_scope(cfg.default_scope)
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    checkpoint = folder / 'model.pth'
    torch.manual_seed(0)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), checkpoint)
    return config, checkpoint


def load_tool(name: str) -> ModuleType:
    """tools/<name>.py as a module, so that a test need not start another Python."""
    spec = importlib.util.spec_from_file_location(f'tools_{name}', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(tool: ModuleType, *argv: object) -> None:
    """Run a tool as a new process would: without the globals MMEngine keeps of an earlier run."""
    classes = [ManagerMixin]
    for cls in classes:
        cls._instance_dict.clear()
        classes.extend(cls.__subclasses__())
    tool.main([str(arg) for arg in argv])


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('data')
    make_data(root)
    return root


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave out what costs MMEngine seconds in a run of seconds, and clean up after it.

    That is: formatting the config at every checkpoint, parsing every YAML file of a package at
    every ``package::`` base, and threads that do not pay on tiny models.
    """
    load = functools.lru_cache(mmengine.config.utils.load)
    monkeypatch.setattr(mmengine.config.utils, 'load', load)
    for module in (mmengine.config.config, yapf.yapflib.yapf_api):  # the latter for onedl's
        monkeypatch.setattr(module, 'FormatCode', lambda text, **_: (text, True), raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    DefaultScope._instance_dict.clear()
