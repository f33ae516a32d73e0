"""LabelMe: a JSON file for each picture, with shapes drawn by hand."""

import base64
import io
import math
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmlocalattn.data.findings import Finding
from mmlocalattn.data.geometry import encode_mask
from mmlocalattn.data.picture_files import too_many, too_many_pixels
from mmlocalattn.data.records import ObjectRecord, PictureRecord, Records, task_of
from mmlocalattn.data.text_files import parse_json
from mmlocalattn.data.tree import Tree, nearest, split_of

LOOKED_AT = 20  # JSON files, to see whether they are LabelMe's
CIRCLE_POINTS = 32
AREAS = ('polygon', 'rectangle', 'circle', 'mask')
NO_AREAS = ('point', 'points', 'line', 'linestrip')
NO_CLASSES = ('__ignore__', '_background_')  # first lines of LabelMe's labels.txt


def read_labelme(tree: Tree) -> Records | None:
    """Read a folder with annotations of LabelMe.

    Polygons of one label and one ``group_id`` are one object. Rectangles are boxes, and have a mask
    too where other shapes have one. Points and lines have no area and are left out.
    """
    paths = tree.ending('.json')
    if not any(isinstance(_read(path), dict) for path in islice(paths, LOOKED_AT)):
        return None
    records = Records('LabelMe', 'detection', [])
    contents: dict[str, dict] = {}
    for path in paths:
        content = _read(path)
        if isinstance(content, dict):
            contents[path] = {**content, 'imageData': None}
        elif content or Path(path).stem in tree.by_stem:
            problem = content or 'it has no list of shapes'
            fix = 'Mend it, or remove it with its picture'
            records.findings.append(Finding('error', 'annotation file', path, '', problem, fix))
    records.classes = _classes(tree, list(contents.values()))
    masks = any(
        shape.get('shape_type', 'polygon') in ('polygon', 'circle', 'mask')
        for content in contents.values()
        for shape in content['shapes']
    )
    for path, content in contents.items():
        records.pictures.append(_picture(tree, path, content, masks, records))
    _add_negatives(tree, records)
    records.task = task_of(records.pictures)
    return records


def _read(path: str) -> dict[str, Any] | str:
    """The content of a file; what is wrong with it; or nothing if it is not LabelMe's."""
    try:
        content = parse_json(Path(path).read_bytes())
    except ValueError as error:
        return f'it is no JSON file ({error})'
    shapes = content.get('shapes') if isinstance(content, dict) else None
    is_labelme = isinstance(shapes, list) and all(isinstance(shape, dict) for shape in shapes)
    return content if is_labelme else ''


def _classes(tree: Tree, contents: list[dict]) -> list[str]:
    """Those of labels.txt or classes.txt, else all that occur, in alphabetical order."""
    listed = tree.class_names('labels.txt', 'classes.txt')[1]
    found = {
        str(shape.get('label'))
        for content in contents
        for shape in content['shapes']
        if shape.get('shape_type', 'polygon') in AREAS and shape.get('label')
    }
    return [name for name in listed or sorted(found) if name not in NO_CLASSES]


def _picture(tree: Tree, path: str, content: dict, masks: bool, records: Records) -> PictureRecord:
    split = split_of(tree.relative(path))
    name = str(content.get('imagePath') or '')
    found = tree.find(name, path, split) if name else None
    found = found or nearest(tree.by_stem.get(Path(path).stem, []), name, path)
    picture = PictureRecord(
        found or os.path.join(os.path.dirname(path), name or f'{Path(path).stem}.jpg'), path, split
    )
    width, height = content.get('imageWidth'), content.get('imageHeight')
    if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0:
        picture.written_size = width, height
    picture.objects = list(_objects(picture, content['shapes'], masks, records))
    return picture


def _objects(
    picture: PictureRecord, shapes: list[dict], masks: bool, records: Records
) -> Iterator[ObjectRecord]:
    """The objects that shapes draw; what cannot be read becomes a finding."""
    labels = {name: label for label, name in enumerate(records.classes)}
    groups: dict[tuple[str, str], ObjectRecord] = {}
    for number, shape in enumerate(shapes, 1):
        kind = shape.get('shape_type', 'polygon')
        name = str(shape.get('label'))
        if name in NO_CLASSES:
            continue
        entry = f'shape {number}' + ('' if name in labels else f' ({name!r})')
        try:
            item = _object(picture, shape, labels.get(name, -1), entry, masks)
        except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
            problem, fix = f'its {kind} cannot be read ({error})', 'Draw it anew, or remove it'
            finding = Finding('error', 'annotation file', picture.ann_file, entry, problem, fix)
            records.findings.append(finding)
            continue
        if item is None:
            entry = f'shape {number}'
            problem = f'a {kind} has no area, so it is not read'
            finding = Finding('note', 'boxes', picture.ann_file, entry, problem)
            records.findings.append(finding)
            continue
        group = repr(shape.get('group_id'))
        first = groups.get((name, group)) if group != 'None' else None
        if first and item.polygons and first.polygons:
            first.polygons += item.polygons
            first.box = None
            continue
        groups[name, group] = item
        yield item


def _object(
    picture: PictureRecord, shape: dict, label: int, entry: str, masks: bool
) -> ObjectRecord | None:
    """The object of one shape, or None if that has no area.

    Raises:
        KeyError, TypeError, ValueError, OverflowError, OSError: If the shape is malformed.
    """
    kind = shape.get('shape_type', 'polygon')
    if kind in NO_AREAS:
        return None
    if kind not in AREAS:
        raise ValueError(f'known are {", ".join(AREAS)}')
    points = [[float(x), float(y)] for x, y in shape['points']]
    if kind == 'polygon':
        return ObjectRecord(label, entry, polygons=[[value for point in points for value in point]])
    (x1, y1), (x2, y2) = points
    if kind == 'circle':
        return ObjectRecord(label, entry, polygons=[_circle(x1, y1, math.hypot(x2 - x1, y2 - y1))])
    left, top, right, bottom = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
    if kind == 'rectangle':
        polygon = [left, top, right, top, right, bottom, left, bottom]
        box = [left, top, right - left, bottom - top]
        return ObjectRecord(label, entry, box, [polygon] if masks else [])
    if picture.written_size is None:
        raise ValueError('imageWidth and imageHeight are missing')
    content = base64.b64decode(shape['mask'])
    if reason := too_many_pixels(io.BytesIO(content)) or too_many(picture.written_size):
        raise ValueError(reason)
    mask = np.array(Image.open(io.BytesIO(content))) > 0
    rle, box = encode_mask(mask, (round(left), round(top)), picture.written_size)
    return ObjectRecord(label, entry, box, rle=rle)


def _circle(x: float, y: float, radius: float) -> list[float]:
    angles = [2 * math.pi * i / CIRCLE_POINTS for i in range(CIRCLE_POINTS)]
    points = ((x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles)
    return [value for point in points for value in point]


def _add_negatives(tree: Tree, records: Records) -> None:
    """Add the pictures beside those with a JSON file that have none."""
    known = {picture.path for picture in records.pictures}
    folders = {os.path.dirname(path) for path in known}
    broken = {Path(finding.file).stem for finding in records.findings if not finding.entry}
    records.pictures += [
        PictureRecord(path, split=split_of(tree.relative(path)))
        for path in tree.pictures
        if path not in known and os.path.dirname(path) in folders and Path(path).stem not in broken
    ]
