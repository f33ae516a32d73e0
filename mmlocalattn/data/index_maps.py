"""Checks of segmentation maps, images whose values are class indices."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmlocalattn.data.findings import Budget, Finding, Severity
from mmlocalattn.data.picture_files import SUFFIXES, check_shape, look_at, unreadable


@dataclass(frozen=True)
class MapData:
    """A data set of pictures and index maps, as a data loader reads it.

    Attributes:
        loader: Its name, as ``'train_dataloader'``.
        pairs: Paths of each picture and its map, None for pictures without one.
        classes: ``metainfo.classes``.
        reduce_zero_label: Whether label 0 is ignored and the others move down by one.
        ignore_index: The label that is not learned.
        label_map: From labels of the files to those of the classes, None for the same ones.
        backend: mmcv's, which reads the maps.
        raw: Whether the rotation flag of pictures is ignored.
        training: Whether a model is trained on it.
        folder: Of the pictures.
        suffix: That their names end with.
    """

    loader: str
    pairs: Sequence[tuple[str, str | None]]
    classes: Sequence[str]
    reduce_zero_label: bool = False
    ignore_index: int = 255
    label_map: Mapping[int, int] | None = None
    backend: str = 'pillow'
    raw: bool = False
    training: bool = True
    folder: str = ''
    suffix: str = ''


def check_index_maps(data: MapData, budget: Budget) -> Iterator[Finding]:
    """Check one data set: each map, and what occurs in all of them."""
    if not data.pairs:
        yield _no_images(data)
    pixels = np.zeros(256, np.int64)  # of each label, as the model sees them
    looked_at = broken = 0
    for picture, path in budget.choose(data.pairs, f'index maps of {data.loader}'):
        looked_at += 1
        findings = list(check_index_map(data, picture, path, pixels))
        broken += any(finding.severity == 'error' for finding in findings)
        yield from findings
    if data.training and looked_at and not broken:
        yield from _check_occurrence(data, pixels, looked_at)


def _no_images(data: MapData) -> Finding:
    suffixes = Counter(
        os.path.splitext(name)[1]
        for _, _, names in os.walk(data.folder)
        for name in names
        if name.lower().endswith(SUFFIXES)
    )
    setting = f'{data.loader}.dataset.img_suffix'
    seen, fix = 'there are no images', f'See {setting} and data_prefix'
    if suffixes:
        (suffix, number), *_ = suffixes.most_common(1)
        seen, fix = f'{number} end with {suffix!r}', f'Set {setting}={suffix!r}'
    return Finding(
        'error',
        'missing image',
        data.folder,
        '',
        f'no image of it ends with {data.suffix!r}, which {data.loader} asks for: {seen}',
        fix,
    )


def check_index_map(
    data: MapData, picture: str, path: str | None, pixels: NDArray[np.int64] | None = None
) -> Iterator[Finding]:
    """Check one map and its picture.

    Args:
        data: Where they are from.
        picture: Path of the picture.
        path: Of the map, or None.
        pixels: (256,) the number of pixels of each label is added to it.
    """
    facts = look_at(picture)
    if facts.error:
        yield unreadable(picture, facts.error)
    else:
        yield from check_shape(picture, facts.stored)
    if path is None:
        return
    try:
        labels, is_jpeg = read_map(path, data.backend)
    except OSError as reason:
        yield unreadable(path, str(reason), 'index map')
        return

    def error(kind: str, problem: str, fix: str) -> Finding:
        return Finding('error', kind, path, '', problem, fix)

    if labels.ndim != 2:
        yield error('colour map', _colours(labels), 'Write the index of its class for each pixel')
        return
    if is_jpeg:
        fix = 'Write maps as PNG files, from what they were made of'
        yield error('colour map', 'JPEG changes the indices where colours change', fix)
        return
    size = facts.stored if data.raw else facts.turned
    if not facts.error and size != labels.shape[::-1]:
        width, height = labels.shape[::-1]
        yield error(
            'map size',
            f'it is {width}x{height} (width x height), its picture {picture!r} {size[0]}x{size[1]}',
            'Make the maps of the size of their pictures, without interpolation'
            if size[::-1] != labels.shape[::-1]
            else 'One of them is turned: see the EXIF orientation of the picture',
        )
    values, numbers = np.unique(labels.astype(np.int64), return_counts=True)
    seen = seen_labels(data)
    wrong = [int(v) for v in values if not 0 <= v < 256 or seen[v] < 0]
    if wrong:
        yield error('labels', _out_of_range(data, wrong, values), _range_fix(data, wrong, values))
    elif pixels is not None:
        np.add.at(pixels, seen[values], numbers)


def read_map(path: str, backend: str) -> tuple[NDArray, bool]:
    """A map as mmcv reads it, and whether its file is a JPEG.

    Raises:
        OSError: If it cannot be read.
    """
    try:
        with Image.open(path) as image:
            is_jpeg = image.format == 'JPEG'
            labels = np.array(image)
    except Exception as error:  # whatever a decoder raises of a damaged file
        raise OSError(str(error)) from error
    if backend == 'cv2':  # makes colours of a palette
        labels = np.asarray(cv2.imread(path, cv2.IMREAD_UNCHANGED))
    one_channel = labels.ndim == 3 and labels.shape[2] == 1
    return labels[..., 0] if one_channel else labels, is_jpeg


def seen_labels(data: MapData) -> NDArray[np.int64]:
    """(256,) what the model sees for each label of a file; -1 where it is out of range."""
    seen = np.arange(256)
    if data.reduce_zero_label:
        seen = np.where(seen == 0, 255, seen - 1)
        seen[255] = 255
    if data.label_map is not None:
        seen = np.array([data.label_map.get(int(label), label) for label in seen])
    in_range = (seen < len(data.classes)) | (seen == data.ignore_index)
    return np.where(in_range, seen, -1)


def _colours(labels: NDArray) -> str:
    channels = labels.shape[2]
    colours = len(np.unique(labels.reshape(-1, channels), axis=0))
    equal = channels >= 3 and (labels[..., :3] == labels[..., :1]).all()
    detail = 'its channels are equal, so keep one' if equal else f'it has {colours} colours'
    return f'{channels} channels where one of class indices is meant ({detail})'


def _shown(values: Sequence[int] | NDArray) -> str:
    values = [int(value) for value in values]
    return ', '.join(map(str, values[:6])) + (f', ... {values[-1]}' if len(values) > 6 else '')


def _out_of_range(data: MapData, wrong: Sequence[int], values: NDArray) -> str:
    of = f'labels {_shown(values)}, of which ' if len(values) > len(wrong) else ''
    used = 'with reduce_zero_label ' if data.reduce_zero_label else ''
    return (
        f'{of}{_shown(wrong)} {"is" if len(wrong) == 1 else "are"} {used}of no class: there are '
        f'{len(data.classes)}, and {data.ignore_index} is ignored'
    )


def _range_fix(data: MapData, wrong: Sequence[int], values: NDArray) -> str:
    number = len(data.classes)
    if wrong == [number] and not data.reduce_zero_label and 0 not in values:
        return f'If labels count from 1, set reduce_zero_label=True; else write 0 to {number - 1}'
    low = 1 if data.reduce_zero_label else 0
    return f'Write {low} to {number - 1 + low}, or name the classes in metainfo and num_classes'


def _check_occurrence(
    data: MapData, pixels: NDArray[np.int64], looked_at: int
) -> Iterator[Finding]:
    """Classes that occur in no map."""
    everything = looked_at == len(data.pairs)
    present = [i for i in range(len(data.classes)) if pixels[i]]
    ignored = bool(pixels[data.ignore_index]) if 0 <= data.ignore_index < 256 else False
    folder = os.path.dirname(next((path for _, path in data.pairs if path), ''))
    if not folder:
        return
    source = f'all {looked_at} maps' if everything else f'{looked_at} maps that were looked at'
    shift = (
        ' (reduce_zero_label=True ignores label 0 and takes 1 for the first class)'
        if data.reduce_zero_label
        else ''
    )

    def finding(severity: Severity, problem: str, fix: str) -> Finding:
        return Finding(severity, 'class never occurs', folder, '', problem + shift, fix)

    if not present:
        yield finding(
            'error',
            f'only the ignored label occurs in {source}: the loss would be 0 and mIoU nan',
            f'Write the indices of the classes, 0 to {len(data.classes) - 1}, into the maps',
        )
    elif len(present) == 1 and len(data.classes) > 1 and (everything or ignored):
        also = f' besides the ignored {data.ignore_index}' if ignored else ''
        yield finding(
            'error',
            f'only {data.classes[present[0]]!r} occurs{also} in {source}: the model would learn to '
            'answer it everywhere',
            'Write the index of its class for each pixel: for two classes 0 and 1, not 0 and 255',
        )
    elif everything:
        for i in set(range(len(data.classes))) - set(present):
            yield finding(
                'warning',
                f'{data.classes[i]!r}, class {i}, occurs in none of {source}',
                'Draw it, or take it out of metainfo.classes and num_classes',
            )
