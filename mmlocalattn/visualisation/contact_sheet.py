"""A contact sheet: a few pictures of a folder with what is drawn on them, as it is read."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmlocalattn.data.boxes import mask_problem
from mmlocalattn.data.folders import FolderData

TILE = 320  # longer side of a picture, pixels
CAPTION = 22  # height of the line below it
COLUMNS = 4
FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True)
class Sample:
    """A picture to draw.

    Attributes:
        path: Of the picture.
        caption: Below it.
        objects: Label, box (x, y, width, height) and polygons of each.
        index_map: Path; empty without one.
    """

    path: str
    caption: str
    objects: Sequence[tuple[int, Sequence[float], Sequence[Sequence[float]]]] = ()
    index_map: str = ''


def draw_contact_sheet(data: FolderData, number: int = 12, seed: int = 0) -> NDArray[np.uint8]:
    """Draw some pictures of all splits.

    Args:
        data: Of a folder.
        number: Of pictures.
        seed: Same seed, same pictures.

    Returns:
        (H, W, 3) BGR.
    """
    samples = [sample for split in data.splits for sample in _samples(data, split)]
    chosen = Random(seed).sample(samples, min(number, len(samples)))
    tiles = [_draw(data, sample) for sample in chosen]
    rows = []
    while tiles:
        row, tiles = tiles[:COLUMNS], tiles[COLUMNS:]
        row += [np.zeros_like(row[0])] * (min(COLUMNS, len(chosen)) - len(row))
        rows.append(np.concatenate(row, axis=1))
    return np.concatenate(rows)


def _samples(data: FolderData, name: str) -> Iterator[Sample]:
    split = next(split for key, split in data.splits.items() if key == name)
    if data.task in ('semantic segmentation', 'classification'):
        for line in Path(split.annotations).read_text(encoding='utf-8').splitlines():
            if data.task == 'classification':
                file, _, number = line.rpartition(' ')
                caption = f'{name}: {data.classes[int(number)]}'
                yield Sample(os.path.join(split.images, file), caption)
            else:
                picture = os.path.join(split.images, line + data.img_suffix)
                index_map = os.path.join(split.maps, line + data.seg_map_suffix)
                yield Sample(picture, f'{name}: {os.path.basename(picture)}', (), index_map)
        return
    content = json.loads(Path(split.annotations).read_bytes())
    names = {entry['id']: entry['name'] for entry in content['categories']}
    objects: dict[object, list] = {image['id']: [] for image in content['images']}
    for entry in content['annotations']:
        if entry['image_id'] in objects and names.get(entry['category_id']) in data.classes:
            label = data.classes.index(names[entry['category_id']])
            polygons = entry.get('segmentation')
            if not isinstance(polygons, list) or mask_problem(polygons, (0, 0)):
                polygons = []  # a run-length encoding, or wrong where masks are not learned
            objects[entry['image_id']].append((label, entry['bbox'], polygons))
    for image in content['images']:
        file = image['file_name']
        caption = f'{name}: {os.path.basename(file)}'
        yield Sample(os.path.join(split.images, file), caption, objects[image['id']])


def _draw(data: FolderData, sample: Sample) -> NDArray[np.uint8]:
    """(TILE + CAPTION, TILE, 3) BGR."""
    flag = cv2.IMREAD_COLOR | (cv2.IMREAD_IGNORE_ORIENTATION if data.ignore_orientation else 0)
    tile = np.zeros((TILE + CAPTION, TILE, 3), np.uint8)
    picture = cv2.imread(sample.path, flag)
    caption = sample.caption
    if picture is None:
        caption += ' cannot be read'
    else:
        scale = TILE / max(picture.shape[:2])
        height, width = (max(round(side * scale), 1) for side in picture.shape[:2])
        small = np.asarray(cv2.resize(picture, (width, height)), np.uint8)
        if sample.index_map:
            small = _paint(data, small, sample.index_map)
        for label, box, polygons in sample.objects:
            _draw_object(small, data, label, scale, box, polygons)
        tile[: small.shape[0], : small.shape[1]] = small
    cv2.putText(tile, caption, (4, TILE + 15), FONT, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    return tile


def _draw_object(
    picture: NDArray[np.uint8],
    data: FolderData,
    label: int,
    scale: float,
    box: Sequence[float],
    polygons: Sequence[Sequence[float]],
) -> None:
    colour = data.palette[label][::-1]
    x, y, width, height = (round(value * scale) for value in box)
    for polygon in polygons:
        points = np.rint(np.reshape(polygon, (-1, 2)) * scale).astype(np.int32)
        cv2.polylines(picture, [points], True, colour, 1, cv2.LINE_AA)
    cv2.rectangle(picture, (x, y), (x + width, y + height), colour, 1)
    if len(data.classes) > 1:
        cv2.putText(
            picture, data.classes[label], (x + 2, y + 12), FONT, 0.4, colour, 1, cv2.LINE_AA
        )


def _paint(data: FolderData, picture: NDArray[np.uint8], index_map: str) -> NDArray[np.uint8]:
    """Mix the colours of the classes into a picture."""
    with Image.open(index_map) as image:
        labels = np.array(image).astype(np.int64)
    labels = labels - 1 if data.reduce_zero_label else labels
    size = picture.shape[1], picture.shape[0]
    small = cv2.resize(labels.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
    known = (small >= 0) & (small < len(data.classes))
    colours = np.array(data.palette, np.uint8)[np.where(known, small, 0).astype(int)][..., ::-1]
    mixed = np.rint(picture * 0.5 + colours * 0.5).astype(np.uint8)
    return np.where(known[..., None], mixed, picture)
