"""Picture files: what a look at each says, and what is odd about it."""

import hashlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from mmlocalattn.data.findings import Finding
from mmlocalattn.data.image_files import ORIENTATION
from mmlocalattn.data.threads import in_threads

Size = tuple[int, int]  # width and height

BITS_PER_SAMPLE = 258  # TIFF's tag
FORMATS = {
    'BMP': ('.bmp',),
    'JPEG': ('.jpg', '.jpeg'),
    'MPO': ('.jpg', '.jpeg'),  # two JPEG pictures in one file, as some cameras write them
    'PNG': ('.png',),
    'TIFF': ('.tif', '.tiff'),
    'WEBP': ('.webp',),
}


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
                image.load()
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        return _look_with_opencv(content, digest, error)
    except (OSError, SyntaxError, ValueError) as error:
        reason = str(error).partition(' <')[0]
        return PictureFacts(digest=digest, error=reason or type(error).__name__)
    return facts


def _look_with_opencv(content: bytes, digest: str, error: Exception) -> PictureFacts:
    """The facts of a file of a kind, or of a size, that Pillow does not open and OpenCV may."""
    array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        return PictureFacts(digest=digest, error=str(error).partition(' <')[0])
    return PictureFacts(array.shape[1::-1], bits=8 * array.itemsize, digest=digest)


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


def check_file(path: str, facts: PictureFacts) -> Iterator[Finding]:
    """What is odd about a picture that can be read."""
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
