"""Pictures of index maps: what is painted, what is not, and the legend."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import PixelData

from mmlocalattn.training import load_config
from mmlocalattn.visualisation.pictures import build_visualizer, draw_sample
from mmlocalattn.visualisation.segmentation import LEGEND_ROWS, draw_maps

CLASSES = ('Background', 'tree', 'river')
PALETTE = [(10, 10, 10), (200, 0, 0), (0, 0, 200)]
HEIGHT, WIDTH = 40, 120


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)


@pytest.fixture
def labels() -> np.ndarray:
    """A third background, a third trees, a third ignored."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:, 40:80] = 1
    labels[:, 80:] = 255
    return labels


def test_photograph_stays_where_nothing_is_to_be_seen(
    image: np.ndarray, labels: np.ndarray
) -> None:
    picture = draw_maps(image, [labels], CLASSES, PALETTE)
    np.testing.assert_array_equal(picture[:HEIGHT, :40], image[:, :40])
    np.testing.assert_array_equal(picture[:HEIGHT, 80:], image[:, 80:])


def test_regions_are_tinted(image: np.ndarray, labels: np.ndarray) -> None:
    inside = np.s_[:HEIGHT, 40:80]
    for alpha, share in ((0.2, 0.2), (0.5, 0.5), (0.8, 0.5)):
        picture = draw_maps(image, [labels], CLASSES, PALETTE, alpha)
        expected = np.rint((1 - share) * image[inside] + share * np.array([0, 0, 200]))
        np.testing.assert_array_equal(picture[inside], expected)


def test_the_legend_stands_once(image: np.ndarray, labels: np.ndarray) -> None:
    truth = np.where(labels == 1, 2, labels)
    one = draw_maps(image, [labels], CLASSES, PALETTE)
    two = draw_maps(image, [truth, labels], CLASSES, PALETTE)
    assert one.shape[1] == WIDTH
    assert two.shape[1] == 2 * WIDTH
    legend = two[HEIGHT:]
    swatches = {tuple(pixel) for pixel in legend.reshape(-1, 3).tolist()}
    assert {(0, 0, 200), (200, 0, 0)} <= swatches  # BGR of tree and river
    assert not (one[HEIGHT:] == (10, 10, 10)).all(-1)[4:14, 6:16].any()  # where one would be
    assert (one[HEIGHT + 8, 8] == (0, 0, 200)).all()
    red = (legend == (0, 0, 200)).all(-1).astype(np.uint8)
    assert cv2.connectedComponents(red)[0] - 1 == 1
    assert (one[HEIGHT:] == 255).all(-1).mean() > 0.5


def test_all_frames_have_one_size(image: np.ndarray) -> None:
    classes = [f'class number {i}' for i in range(150)]
    palette = [(i, 255 - i, 100) for i in range(150)]
    shapes = {
        draw_maps(image, [np.full((HEIGHT, WIDTH), label)], classes, palette).shape
        for label in (0, 7, 149, 255)
    }
    assert len(shapes) == 1
    assert shapes.pop()[0] <= HEIGHT + LEGEND_ROWS * 18


def test_mmseg_samples_are_drawn_so(image: np.ndarray, labels: np.ndarray) -> None:
    from mmengine.registry import init_default_scope
    from mmseg.structures import SegDataSample

    cfg = load_config('mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py')
    init_default_scope('mmseg')
    visualizer = build_visualizer(cfg, dict(classes=CLASSES, palette=PALETTE))
    data = PixelData(data=torch.tensor(labels.astype(np.int64))[None])
    sample = SegDataSample(gt_sem_seg=data, pred_sem_seg=data.clone())
    picture = draw_sample(visualizer, image, sample)
    np.testing.assert_array_equal(picture, draw_maps(image, [labels] * 2, CLASSES, PALETTE))
    alone = draw_sample(visualizer, image, sample, draw_gt=False)
    np.testing.assert_array_equal(alone, draw_maps(image, [labels], CLASSES, PALETTE))
