"""Picture files: what a look at each says, and what is wrong with it or odd about it."""

import hashlib
import io
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from mmlocalattn.data.findings import Finding
from mmlocalattn.data.geometry import Size, size_text
from mmlocalattn.data.threads import in_threads

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
OTHER_SUFFIXES = ('.avif', '.gif', '.heic', '.heif', '.jfif', '.jp2', '.ppm')  # not read
BITS_PER_SAMPLE = 258  # TIFF's tag
ORIENTATION = 0x0112  # EXIF's tag
# How mmcv reads a picture; its backends cv2 and pillow obey the camera's rotation flag by default.
RAW_COLOR_TYPES = ('unchanged', 'color_ignore_orientation', 'grayscale_ignore_orientation')
RAW_BACKENDS = ('turbojpeg', 'tifffile')
FORMATS = {
    'BMP': ('.bmp',),
    'JPEG': ('.jpg', '.jpeg'),
    'MPO': ('.jpg', '.jpeg'),  # two JPEG pictures in one file, as some cameras write them
    'PNG': ('.png',),
    'TIFF': ('.tif', '.tiff'),
    'WEBP': ('.webp',),
}

MOST_PIXELS = 2**28
"""Of a picture: of three colours that is 768 MiB. A file of some kilobytes can say to have more."""

MOST_TIMES = 4096
"""That a side of an image may be as long as the other."""

USUAL_TIMES = 256
"""From where on a resizing that keeps the ratio may leave the shorter side without a pixel."""


@dataclass(frozen=True)
class PictureFacts:
    """What is known about a picture file.

    Attributes:
        stored: Its width and height, as it is stored.
        orientation: EXIF's, 1 to 8; from 5 on width and height change places when it is obeyed.
        format: As Pillow calls it.
        mode: As Pillow calls it.
        bits: Per channel.
        digest: Of its bytes.
        error: Why it cannot be read; empty if it can.
    """

    stored: Size = (0, 0)
    orientation: int = 1
    format: str = ''
    mode: str = ''
    bits: int = 8
    digest: str = ''
    error: str = ''

    @property
    def turned(self) -> Size:
        """Its width and height once its orientation is obeyed."""
        return self.stored[::-1] if self.orientation >= 5 else self.stored


def look_at(path: str) -> PictureFacts:
    """Read and decode a picture, which finds files that are cut off too."""
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe, a device: without end
        return PictureFacts(error='it is no file')
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        return PictureFacts(error=error.strerror or str(error))
    digest = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    if not content:
        return PictureFacts(digest=digest, error='the file is empty')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # large pictures, odd EXIF data
            with Image.open(io.BytesIO(content)) as image:
                orientation = image.getexif().get(ORIENTATION, 1)
                facts = PictureFacts(
                    image.size,
                    orientation if orientation in range(1, 9) else 1,
                    image.format or '',
                    image.mode,
                    _bits(image, content),
                    digest,
                )
                if reason := too_many(image.size):
                    return PictureFacts(digest=digest, error=reason)
                image.load()
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        return _look_with_opencv(content, digest, error)
    except Exception as error:  # whatever a decoder raises of a damaged file
        reason = str(error).partition(' <')[0]
        return PictureFacts(digest=digest, error=reason or type(error).__name__)
    return facts


def _look_with_opencv(content: bytes, digest: str, error: Exception) -> PictureFacts:
    """The facts of a file of a kind, or of a size, that Pillow does not open and OpenCV may."""
    if reason := _too_many_of(error):
        return PictureFacts(digest=digest, error=reason)
    array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        return PictureFacts(digest=digest, error=str(error).partition(' <')[0])
    return PictureFacts(array.shape[1::-1], bits=8 * array.itemsize, digest=digest)


def too_many(size: Size) -> str:
    """Why a picture of this width and height is not read; empty if it is."""
    pixels = size[0] * size[1]
    return f'it has {pixels} pixels, more than {MOST_PIXELS}' if pixels > MOST_PIXELS else ''


def _too_many_of(error: Exception) -> str:
    """The same for what Pillow says of a picture which it does not open because of its size."""
    found = re.search(r'\((\d+) pixels\)', str(error))
    return too_many((int(found[1]), 1)) if found else ''


def too_many_pixels(file: str | Path | IO[bytes]) -> str:
    """Why a picture file is not decoded, by the size in its head; empty if it can be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with Image.open(file) as image:
                return too_many(image.size)
    except Image.DecompressionBombError as error:
        return _too_many_of(error)
    except Exception:  # of what Pillow does not know, or cannot read
        return ''


def _bits(image: Image.Image, content: bytes) -> int:
    """Bits per channel, which Pillow's modes do not always tell."""
    if image.format == 'PNG':
        return max(content[24], 8)
    if image.format == 'TIFF':
        bits = image.tag_v2.get(BITS_PER_SAMPLE, 8)  # type: ignore[attr-defined]  # of TIFF's class
        return max(bits) if isinstance(bits, tuple) else int(bits)
    return 32 if image.mode in ('I', 'F') else 8


def look_at_all(paths: Sequence[str]) -> dict[str, PictureFacts]:
    """What is known about each of some files."""
    return dict(zip(paths, in_threads(look_at, paths, 'pictures'), strict=True))


def unreadable(path: str, reason: str, what: str = 'image') -> Finding:
    """The finding of a picture or map that is not there or cannot be read."""
    if not os.path.exists(path):
        return Finding(
            'error',
            f'missing {what}',
            path,
            '',
            f'this {what} does not exist',
            'Put it there, or take it out of the data set',
        )
    return Finding(
        'error',
        f'unreadable {what}',
        path,
        '',
        f'this {what} cannot be read ({reason.strip(".")})',
        'Copy it again, or take it out of the data set',
    )


def ignores_orientation(color_type: str, backend: str) -> bool:
    """Whether mmcv reads a picture as it is stored, whatever its rotation flag says."""
    return color_type in RAW_COLOR_TYPES or backend in RAW_BACKENDS


def is_too_thin(size: Size) -> bool:
    """Whether no resizing would keep what is in a picture."""
    return max(size) > MOST_TIMES * min(size)


def check_shape(path: str, size: Size) -> Iterator[Finding]:
    """Find pictures that a pipeline may not be able to resize.

    Args:
        path: Of the picture.
        size: Its width and height, in either order.
    """
    if max(size) > USUAL_TIMES * min(size):
        too_thin = is_too_thin(size)
        times = MOST_TIMES if too_thin else USUAL_TIMES
        yield Finding(
            'error' if too_thin else 'warning',
            'image shape',
            path,
            '',
            f'it has {size_text(size)}: one side is more than {times} times the other, and a '
            'resizing may leave the shorter one without a pixel',
            'Cut it into pieces, or take it out of the data set',
        )


def check_size(ann_file: str, path: str, written: Size, raw: bool) -> Iterator[Finding]:
    """Compare the size that an annotation file gives a picture with the picture; check that too.

    Args:
        ann_file: The annotation file.
        path: Of the picture.
        written: Its size in the file.
        raw: Whether the loader ignores the rotation flag of pictures.
    """
    facts = look_at(path)
    if facts.error:
        yield unreadable(path, facts.error)
        return
    yield from check_shape(path, facts.stored)
    read, other = (facts.stored, facts.turned) if raw else (facts.turned, facts.stored)
    if written == read:
        return
    fix = 'Write the width and height of the pictures into the file, and see that its boxes fit'
    problem = f'{size_text(written)} in the file, but the picture is {size_text(read)}'
    if written == other and raw:
        problem += ' as it is stored, and turned by its EXIF orientation only for who obeys it'
        fix = "Obey it: dict(type='LoadImageFromFile', color_type='color') in every pipeline"
    elif written == other:
        problem += ' once its EXIF orientation is obeyed'
        fix = (
            "If it was annotated as it is stored, dict(type='LoadImageFromFile', "
            "color_type='color_ignore_orientation') in every pipeline; else mend the file"
        )
    yield Finding('error', 'image size', ann_file, f'image {path!r}', problem, fix)


def check_file(path: str, facts: PictureFacts) -> Iterator[Finding]:
    """What is odd about a picture that can be read."""
    yield from check_shape(path, facts.stored)
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in FORMATS.get(facts.format, (suffix,)):
        yield Finding(
            'note',
            'picture format',
            path,
            '',
            f'it is called {suffix} and is a {facts.format} file',
        )
    if facts.bits > 8:
        yield Finding(
            'warning',
            'picture format',
            path,
            '',
            f'it has {facts.bits} bits per channel, of which the upper 8 are read: a picture that '
            'does not use them is black',
            'Scale it to 8 bits',
        )
    if facts.mode == 'CMYK':
        yield Finding(
            'warning',
            'picture format',
            path,
            '',
            'its colours are CMYK, which programs turn into RGB each in its own way',
            'Save it as RGB',
        )
