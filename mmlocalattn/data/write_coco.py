"""Writing COCO's annotation files."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmlocalattn.data.geometry import Size, box_of, polygon_area, rle_area
from mmlocalattn.data.records import ObjectRecord, PictureRecord, Records
from mmlocalattn.files import write_json

DIGITS = 2  # of coordinates in pixels, as COCO's own


def finish_object(item: ObjectRecord, size: Size) -> None:
    """Turn shares of the picture into pixels, round coordinates, and find the box of polygons.

    Args:
        item: Changed; one of a COCO file stays as it is.
        size: Of its picture.
    """
    if item.source is not None:
        return
    scale = size if item.shares else (1, 1)
    item.shares = False
    item.polygons = [
        [round(value * scale[i % 2], DIGITS) for i, value in enumerate(polygon)]
        for polygon in item.polygons
    ]
    if item.box is None and any(item.polygons):
        item.box = box_of([polygon for polygon in item.polygons if polygon])
    elif item.box is not None:
        item.box = [value * scale[i % 2] for i, value in enumerate(item.box)]
    if item.box is not None:
        item.box = [round(value, DIGITS) for value in item.box]


def annotation_of(item: ObjectRecord) -> dict[str, Any]:
    """An object as COCO has it; one of a COCO file as it is, with area and iscrowd added."""
    if item.source is not None:
        sides = item.box[2:] if isinstance(item.box, list) else []
        known = bool(sides) and all(isinstance(side, (int, float)) for side in sides)
        return {'area': math.prod(sides) if known else 0, 'iscrowd': 0, **item.source}
    box = item.box or []
    area = math.prod(box[2:]) if box else 0.0
    if item.rle:
        area = rle_area(item.rle)
    elif item.polygons:
        area = sum(map(polygon_area, item.polygons))
    return {
        'id': item.number,
        'bbox': box,
        'area': round(area, DIGITS),
        'iscrowd': int(item.crowd),
        'segmentation': item.segmentation,
    }


def write_coco(
    path: Path,
    records: Records,
    pictures: Sequence[PictureRecord],
    images: str,
    sizes: Mapping[str, Size],
) -> None:
    """Write the annotations of one split. Entries of a COCO file keep their ids and all they have.

    Args:
        path: Of the file.
        records: Whose classes it names.
        pictures: Of the split.
        images: Folder that file names are relative to.
        sizes: Width and height of each picture.
    """
    ids = records.category_ids or list(range(1, len(records.classes) + 1))
    content: dict[str, list[dict]] = {'images': [], 'annotations': []}
    for picture in pictures:
        width, height = sizes[picture.path]
        name = os.path.relpath(picture.path, images)
        image = picture.source or {'id': picture.number}
        content['images'].append({**image, 'file_name': name, 'width': width, 'height': height})
        for item in picture.objects:
            entry = {**annotation_of(item), 'category_id': ids[item.label]}
            entry['image_id'] = image['id']
            content['annotations'].append(entry)
    content['categories'] = [
        {'id': number, 'name': name} for number, name in zip(ids, records.classes, strict=True)
    ]
    write_json(path, content)
