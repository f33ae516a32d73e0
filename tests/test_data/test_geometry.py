"""Boxes, polygons and masks as pycocotools has them."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mmlocalattn.data.geometry import box_of, encode_mask, polygon_area, rle_area


@pytest.mark.parametrize('corner', [(0, 0), (-1, 2), (3, -2), (5, 4)])
def test_encode_mask(corner: tuple[int, int]) -> None:
    part = np.random.default_rng(0).random((4, 5)) > 0.4
    rle, box = encode_mask(part, corner, (9, 7))
    packed = coco_mask.frPyObjects(rle, 7, 9)
    x, y = corner
    expected = np.zeros((20, 20), bool)
    expected[y + 5 : y + 9, x + 5 : x + 10] = part
    np.testing.assert_array_equal(coco_mask.decode(packed), expected[5:12, 5:14])
    assert coco_mask.toBbox(packed).tolist() == box
    assert (
        rle_area(rle)
        == coco_mask.area(packed)
        == rle_area({**packed, 'counts': packed['counts'].decode()})
    )


def test_masks_of_everything_and_of_nothing() -> None:
    rle, box = encode_mask(np.ones((2, 3), bool), (0, 0), (3, 2))
    assert (rle, box) == ({'size': [2, 3], 'counts': [0, 6]}, [0, 0, 3, 2])
    with pytest.raises(ValueError, match='no pixel in the picture'):
        encode_mask(np.ones((2, 3), bool), (9, 0), (3, 2))


def test_polygons() -> None:
    triangle = [0.0, 0.0, 4.0, 0.0, 4.0, 3.0]
    assert polygon_area(triangle) == polygon_area(triangle[2:] + triangle[:2]) == 6
    assert box_of([triangle, [5.0, 5.0, 6.0, 7.0]]) == [0, 0, 6, 7]
