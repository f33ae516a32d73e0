"""Checks of image files: that they can be read, and have the size that annotations are for."""

import os
import warnings
from collections.abc import Iterator

import cv2
from PIL import Image, ImageOps, UnidentifiedImageError

from mmlocalattn.data.findings import Finding

ORIENTATION = 0x0112  # EXIF's tag; from 5 on, width and height change places
# How mmcv reads a picture; its backends cv2 and pillow obey the camera's rotation flag by default.
RAW_COLOR_TYPES = ('unchanged', 'color_ignore_orientation', 'grayscale_ignore_orientation')
RAW_BACKENDS = ('turbojpeg', 'tifffile')

Size = tuple[int, int]  # width and height


def picture_sizes(path: str, whole: bool) -> tuple[Size, Size]:
    """The size of a picture as it is stored and as its rotation flag turns it.

    Args:
        path: Of the file.
        whole: Decode all of it, which finds truncated files, instead of its header.

    Raises:
        OSError: If the file cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # large pictures, odd EXIF data
            with Image.open(path) as image:
                stored = image.size
                turned = image.getexif().get(ORIENTATION, 1) >= 5
                if whole:
                    ImageOps.exif_transpose(image).load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        array = cv2.imread(path, cv2.IMREAD_UNCHANGED) if _is_unknown(error) else None
        if array is None:
            raise OSError(str(error)) from error
        stored, turned = array.shape[1::-1], False
    return stored, stored[::-1] if turned else stored


def _is_unknown(error: Exception) -> bool:
    """Whether the file is of a kind that OpenCV may know and Pillow does not, or is too large."""
    return isinstance(error, (UnidentifiedImageError, Image.DecompressionBombError))


def unreadable(path: str, reason: object, what: str = 'image') -> Finding:
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
        f'this {what} cannot be read ({str(reason).partition(" <")[0].strip(".")})',
        'Copy it again, or take it out of the data set',
    )


def ignores_orientation(color_type: str, backend: str) -> bool:
    """Whether mmcv reads a picture as it is stored, whatever its rotation flag says."""
    return color_type in RAW_COLOR_TYPES or backend in RAW_BACKENDS


def check_size(
    ann_file: str, path: str, written: Size, raw: bool, whole: bool = True
) -> Iterator[Finding]:
    """Compare the size that an annotation file gives a picture with the picture.

    Args:
        ann_file: The annotation file.
        path: Of the picture.
        written: Its size in the file.
        raw: Whether the loader ignores the rotation flag of pictures.
        whole: As for :func:`picture_sizes`.
    """
    try:
        stored, turned = picture_sizes(path, whole)
    except OSError as error:
        yield unreadable(path, error)
        return
    read, other = (stored, turned) if raw else (turned, stored)
    if written == read:
        return
    fix = 'Write the width and height of the pictures into the file, and see that its boxes fit'
    problem = f'{_text(written)} in the file, but the picture is {_text(read)}'
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


def _text(size: Size) -> str:
    return f'{size[0]}x{size[1]} (width x height)'
