"""Drawing data samples: which classes and colors, and which image."""

from pathlib import Path

import numpy as np
import pytest
import tiny_data
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from tiny_data import NUM_IMAGES, SIDE, data, quick  # noqa: F401

from mmlocalattn.training import load_config
from mmlocalattn.visualisation.pictures import (
    build_dataset,
    build_visualizer,
    dataset_meta,
    draw_item,
    draw_sample,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cfg() -> Config:
    meta = dict(classes=('sky', 'sea'), palette=[[10, 20, 30], [200, 100, 50]])
    dataset = dict(
        type='BaseSegDataset',
        data_root='no/such/folder',
        data_prefix=dict(img_path='images'),
        metainfo=meta,
    )
    init_default_scope('mmseg')
    yield Config(
        dict(
            test_dataloader=dict(dataset=dict(type='RepeatDataset', times=2, dataset=dataset)),
            visualizer=dict(
                type='SegLocalVisualizer',
                name='visualizer',
                alpha=1.0,
                vis_backends=[dict(type='LocalVisBackend')],
            ),
        )
    )
    DefaultScope._instance_dict.clear()


def test_meta_is_that_of_the_data_in_its_wrappers(cfg: Config) -> None:
    meta = dataset_meta(cfg)
    assert meta['classes'] == ('sky', 'sea')
    assert meta['palette'] == [[10, 20, 30], [200, 100, 50]]


@pytest.mark.parametrize(
    ('config', 'number', 'last'),
    [
        ('maskrcnn_ssvit_t_1x_coco', 80, 'toothbrush'),
        ('semfpn_ssvit_t_80k_ade20k', 150, 'flag'),
        ('ssvit_t_300e_imagenet', 1000, 'toilet tissue, toilet paper, bathroom tissue'),
    ],
)
def test_meta_needs_no_files(config: str, number: int, last: str) -> None:
    cfg = load_config(f'{ROOT}/configs/{config}.py')
    init_default_scope(cfg.default_scope)
    classes = dataset_meta(cfg)['classes']
    DefaultScope._instance_dict.clear()
    assert (len(classes), classes[-1]) == (number, last)


@pytest.mark.parametrize('step', [1, -1], ids=['contiguous', 'view'])
def test_draws_colors_on_the_image(cfg: Config, step: int) -> None:
    visualizer = build_visualizer(cfg, dataset_meta(cfg))
    prediction = torch.tensor([[[0, 0, 255], [0, 1, 1]]])
    sample = SegDataSample(pred_sem_seg=PixelData(data=prediction))
    image = np.full((2, 3, 3), 70, np.uint8)[..., ::step]
    picture = draw_sample(visualizer, image, sample, draw_gt=False)
    assert picture[0, 0].tolist() == [50, 45, 40]  # BGR, half of it the photograph
    assert picture[1, 1].tolist() == [60, 85, 135]
    assert picture[0, 2].tolist() == [70, 70, 70]  # a label without a class


def test_a_second_visualizer_has_its_own_classes(cfg: Config) -> None:
    first = build_visualizer(cfg, dict(classes=['a'], palette=[[0, 0, 0]]))
    second = build_visualizer(cfg, dict(classes=['b'], palette=[[0, 0, 0]]))
    assert first.dataset_meta['classes'] == ['a']
    assert second.dataset_meta['classes'] == ['b']


@pytest.mark.usefixtures('quick')
@pytest.mark.parametrize('task', ['DETECTION', 'SEGMENTATION', 'CLASSIFICATION'])
def test_items_of_a_data_set(tmp_path: Path, data: Path, task: str) -> None:  # noqa: F811
    cfg = load_config(tiny_data.write_config(tmp_path / 'c.py', getattr(tiny_data, task), data))
    dataset = build_dataset(cfg, 'train')
    assert len(dataset) == NUM_IMAGES
    item = dataset[0]
    picture = draw_item(build_visualizer(cfg, dataset.metainfo), item)
    assert picture.shape[1:] == (SIDE, 3)
    plain = item['inputs'].permute(1, 2, 0).numpy()
    picture = picture[:SIDE]  # a legend of index maps stands below
    assert np.abs(picture.astype(int) - plain).max() > 30  # a tint of half
    cfg.val_dataloader = None
    with pytest.raises(ValueError, match=r'c\.py.* has no val_dataloader'):
        build_dataset(cfg, 'val')
