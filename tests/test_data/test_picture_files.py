"""What is known about picture files: sizes as mmcv reads them, and faults."""

import struct
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from mmlocalattn.data import picture_files
from mmlocalattn.data.findings import Budget
from mmlocalattn.data.images import read_image
from mmlocalattn.data.index_maps import MapData, check_index_map, read_map
from mmlocalattn.data.labelled_images import LabelData, check_labelled_images
from mmlocalattn.data.map_files import look_at_map
from mmlocalattn.data.picture_files import (
    check_file,
    check_shape,
    check_size,
    ignores_orientation,
    look_at,
    too_many_pixels,
)


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
    facts = look_at(turned)
    stored, obeyed = facts.stored, facts.turned
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
    facts = look_at(path)
    assert (facts.stored, facts.turned, facts.bits, facts.error) == ((6, 4), (6, 4), 32, '')


def test_truncated_files_are_found_where_opencv_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / 'a.jpg'
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    assert cv2.imread(str(path)) is not None
    assert 'truncated' in look_at(str(path)).error


def test_usual_shapes() -> None:
    for size in ((1, 1), (256, 1), (3, 700), (4000, 3000)):
        assert not list(check_shape('a.png', size))


@pytest.mark.parametrize(
    ('size', 'severity', 'times'),
    [((1, 2000), 'warning', 256), ((2000, 1), 'warning', 256), ((1, 5000), 'error', 4096)],
)
def test_pictures_too_long_and_thin_to_resize(
    tmp_path: Path, size: tuple[int, int], severity: str, times: int
) -> None:
    """Each check of pictures names them; OpenCV would, as `!dsize.empty()` of a worker."""
    path, labels = str(tmp_path / 'thin.png'), str(tmp_path / 'map.png')
    cv2.imwrite(path, np.zeros((*size[::-1], 3), np.uint8))
    cv2.imwrite(labels, np.zeros(size[::-1], np.uint8))
    (finding,) = check_shape(path, size)
    assert (finding.severity, finding.kind) == (severity, 'image shape')
    assert finding.message == (
        f'{path}: it has {size[0]}x{size[1]} (width x height): one side is more than {times} times '
        'the other, and a resizing may leave the shorter one without a pixel. Cut it into pieces, '
        'or take it out of the data set'
    )
    assert [*check_size('a.json', path, size, raw=False)] == [finding]
    data = MapData('train_dataloader', [(path, labels)], ('a', 'b'))
    assert [*check_index_map(data, path, labels)] == [finding]
    data = LabelData('train_dataloader', [(path, 0)], ('a',))
    assert [*check_labelled_images(data, Budget())] == [finding]
    assert [*check_file(path, look_at(path))] == [finding]


def test_whatever_a_decoder_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As struct.error of a TIFF file that is damaged."""
    path = str(tmp_path / 'a.png')
    Image.new('RGB', (4, 6)).save(path)

    def fail(image: Image.Image) -> None:
        raise struct.error('unpack requires a buffer of 4 bytes')

    monkeypatch.setattr(PngImageFile, 'load', fail)
    assert look_at(path).error == 'unpack requires a buffer of 4 bytes'
    assert look_at_map(path).error == 'unpack requires a buffer of 4 bytes'
    with pytest.raises(OSError, match='unpack requires a buffer of 4 bytes'):
        read_map(path, 'pillow')


def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known by the head of the file, whether Pillow opens it or not; nothing is decoded."""
    path = str(tmp_path / 'a.png')
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(path)
    assert too_many_pixels(path) == ''
    monkeypatch.setattr(picture_files, 'MOST_PIXELS', 2399)
    for most_of_pillow in (10**6, 1000):
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', most_of_pillow)
        reason = 'it has 2400 pixels, more than 2399'
        assert look_at(path).error == too_many_pixels(path) == reason
        with pytest.raises(ValueError, match=f'a.png. is not read: {reason}; cut it'):
            read_image(path)
