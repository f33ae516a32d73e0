"""Sizes of pictures, as mmcv reads them."""

from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
from PIL import Image

from mmlocalattn.data.image_files import check_size, ignores_orientation, picture_sizes


@pytest.fixture
def turned(tmp_path: Path) -> str:
    """A picture of 60 x 40 pixels that a camera says to turn."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = str(tmp_path / 'turned.jpg')
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(path, exif=exif)
    return path


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
@pytest.mark.parametrize(
    'color_type',
    [
        'color',
        'grayscale',
        'unchanged',
        'color_ignore_orientation',
        'grayscale_ignore_orientation',
    ],
)
def test_sizes_are_those_that_mmcv_reads(turned: str, backend: str, color_type: str) -> None:
    stored, obeyed = picture_sizes(turned, whole=True)
    assert (stored, obeyed) == ((60, 40), (40, 60))
    raw = ignores_orientation(color_type, backend)
    read = mmcv.imread(turned, flag=color_type, backend=backend).shape[1::-1]
    assert read == (stored if raw else obeyed)
    assert not list(check_size('a.json', turned, read, raw))
    assert len(list(check_size('a.json', turned, read[::-1], raw))) == 1


def test_backends_that_know_no_orientation() -> None:
    assert ignores_orientation('color', 'turbojpeg')
    assert ignores_orientation('color', 'tifffile')


def test_what_only_opencv_reads(tmp_path: Path) -> None:
    path = str(tmp_path / 'a.pfm')
    cv2.imwrite(path, np.zeros((4, 6, 3), np.float32))
    with pytest.raises(OSError, match='cannot identify'):
        Image.open(path)
    assert picture_sizes(path, whole=True) == ((6, 4), (6, 4))


def test_truncated_files_are_found_where_opencv_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / 'a.jpg'
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    assert cv2.imread(str(path)) is not None
    assert picture_sizes(str(path), whole=False) == ((64, 64), (64, 64))
    with pytest.raises(OSError, match='truncated'):
        picture_sizes(str(path), whole=True)
