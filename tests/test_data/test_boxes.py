"""Boxes and masks in COCO's format, which pycocotools writes."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mmlocalattn.data.boxes import box_problem, check_annotation, mask_problem
from mmlocalattn.data.geometry import decode_counts


@pytest.mark.parametrize('seed', range(8))
def test_runs_are_those_that_pycocotools_writes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((31, 47), np.uint8)
    for _ in range(seed):  # none: an empty mask
        y, x = rng.integers(0, 25, 2)
        mask[y : y + 9, x : x + 14] = rng.integers(0, 2, (len(mask[y : y + 9]), 14))
    encoded = coco_mask.encode(np.asfortranarray(mask))
    runs = decode_counts(encoded['counts'].decode())
    values = np.repeat(np.arange(len(runs)) % 2, runs)
    assert np.array_equal(values.reshape(47, 31).T, mask)
    encoded['counts'] = encoded['counts'].decode()
    empty = 'the mask of segmentation has no pixel'
    assert mask_problem(encoded, (47, 31)) == ('' if mask.any() else empty)


RLE = 'the run-length encoding of segmentation'


@pytest.mark.parametrize(
    ('mask', 'problem'),
    [
        (None, 'segmentation is missing or empty'),
        ({}, 'segmentation is missing or empty'),
        ('polygon', 'segmentation is a str, not polygons or a run-length encoding'),
        ([1, 2, 3, 4, 5, 6], 'segmentation is a list of numbers, not a list of such lists'),
        ([[[1, 2], [3, 4], [5, 6]]], 'segmentation has a polygon that is no list of numbers'),
        (
            [[1, 2, 3, 4, 5, 6, 7]],
            'segmentation has a polygon of 7 numbers: an even number, and at least 6, are three '
            'points',
        ),
        ([[1, 2, 3, 4, 5, float('inf')]], 'segmentation has a number that is not finite'),
        ([[1, 1, 2, 2, 3, 3]], 'the polygons of segmentation have no area'),
        ([[1, 1, 2, 2, 3, 3], [0, 0, 4, 0, 4, 4]], ''),
        (dict(counts=[3, 3]), f'{RLE} has no counts or no size'),
        (
            dict(size=[2, 3], counts=[3, 3]),
            f'{RLE} is of size [2, 3] (height, width), its picture of [3, 2]',
        ),
        (dict(size=[3, 2], counts=[3, 2]), f'{RLE} has 5 pixels, its size 6'),
        (dict(size=[3, 2], counts=[9, -3]), f'{RLE} has 6 pixels, its size 6'),
        (dict(size=[3, 2], counts=[6]), 'the mask of segmentation has no pixel'),
        (dict(size=[3, 2], counts='P'), f'{RLE} cannot be read (it ends too early)'),
        (dict(size=[3, 2], counts=[3, 3]), ''),
    ],
)
def test_masks(mask: object, problem: str) -> None:
    assert mask_problem(mask, (2, 3)) == problem


@pytest.mark.parametrize(
    ('box', 'problem'),
    [
        ([0, 0, 10, 10], ''),
        ([-1, -2, 12, 12], ''),  # rounding
        ([-2.5, 0, 10, 10], 'it reaches 2.5 pixels over the edge of its picture, 10x10'),
        (
            [10, 0, 5, 5],
            'it is outside of its picture, 10x10, so it is not trained on',
        ),
        (
            [5, 5, -3, 3],
            'it is less than a pixel wide or high, so it is not trained on and counts as missed',
        ),
    ],
)
def test_boxes(box: list[float], problem: str) -> None:
    assert box_problem(box, 1, (10, 10)) == problem


@pytest.mark.parametrize(
    'entries', [dict(bbox='1 2 3 4'), dict(bbox=[1, 2, 3]), dict(bbox=[1, 2, None, 4])]
)
def test_what_is_no_box(entries: dict) -> None:
    (found,) = check_annotation('a.json', dict(id=5, **entries), (9, 9), masks=False)
    assert found.message == (
        f'a.json, annotation 5: bbox is {entries["bbox"]!r}. Write it as [x, y, width, height] in '
        'pixels'
    )
    assert found.severity == 'error'


def test_masks_are_checked_where_they_are_needed() -> None:
    entry = dict(id=5, bbox=[1, 2, 3, 4])
    assert not list(check_annotation('a.json', entry, (9, 9), masks=False))
    assert len(list(check_annotation('a.json', entry, (9, 9), masks=True))) == 1
