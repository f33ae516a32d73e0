"""Folders of pictures and annotations as somebody might send them."""

import base64
import io
import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sample_folders
from PIL import Image

Change = Callable[[Path], object]

LAUGHS = 'a: &a [x, x, x, x, x, x, x, x, x, x]\n' + ''.join(
    f'{name}: &{name} [{", ".join([f"*{before}"] * 10)}]\n'
    for before, name in zip('abcdefgh', 'bcdefghi')
)
XML_LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "ha">'
    + ''.join(
        f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in zip('abcdefgh', 'bcdefghi')
    )
    + ']><annotation><filename>&i;</filename></annotation>'
)


def png(width: int, height: int) -> bytes:
    """A black picture of one bit for each pixel, however large, in some kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        sum_ = zlib.crc32(kind + content).to_bytes(4, 'big')
        return len(content).to_bytes(4, 'big') + kind + content + sum_

    head = width.to_bytes(4, 'big') + height.to_bytes(4, 'big') + bytes([1, 0, 0, 0, 0])
    packer, line = zlib.compressobj(), bytes(1 + (width + 7) // 8)
    rows = b''.join(packer.compress(line) for _ in range(height)) + packer.flush()
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(file, 'JPEG')
    return file.getvalue()


PICTURES: dict[str, Callable[[], bytes]] = {
    'no bytes': lambda: b'',
    'text': lambda: b'hello',
    'zeros': lambda: bytes(5000),
    'cut': lambda: jpeg()[:500],
    '900 million pixels': lambda: png(30000, 30000),
    '30000 x 2': lambda: png(30000, 2),
    'no width': lambda: png(0, 64),
    'a web page': lambda: b'<html><body>not found</body></html>',
}


def coco(**changes: Any) -> Change:
    """A folder in COCO's format, with other entries."""

    def write(root: Path) -> None:
        sample_folders.write_coco(root, masks=True)
        path = next(root.rglob('*.json'))
        content = json.loads(path.read_text())
        for key, change in changes.items():
            content[key] = change(content[key])
        path.write_text(json.dumps(content))

    return write


def first(**entries: Any) -> Callable[[list], list]:
    """The list with other entries in its first item."""
    return lambda items: [{**items[0], **entries}, *items[1:]]


def coco_text(text: str) -> Change:
    def write(root: Path) -> None:
        sample_folders.write_coco(root, masks=True)
        next(root.rglob('*.json')).write_text(text)

    return write


def yolo(text: str | None = None, label: str | None = None) -> Change:
    """A folder for YOLO, with another data.yaml, or another first line of a label file."""

    def write(root: Path) -> None:
        sample_folders.write_yolo(root, masks=False)
        if text is not None:
            (root / 'data.yaml').write_text(text)
        if label is not None:
            next(path for path in sorted(root.rglob('*.txt')) if path.stem == '0').write_text(label)

    return write


def bare_yolo(root: Path) -> None:
    yolo(label='1000000000000 0.5 0.5 0.1 0.1')(root)
    (root / 'data.yaml').unlink()


def voc(text: str) -> Change:
    def write(root: Path) -> None:
        sample_folders.write_voc(root, masks=False)
        next(iter(sorted(root.rglob('*.xml')))).write_text(text)

    return write


def labelme(**entries: Any) -> Change:
    def write(root: Path) -> None:
        sample_folders.write_labelme(root, masks=True)
        path = next(iter(sorted(root.rglob('*.json'))))
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))

    return write


def shape(**entries: Any) -> Mapping[str, Any]:
    return dict(shapes=[dict(label='cat', points=[[1, 1], [9, 9]], group_id=None, **entries)])


def with_pipe(root: Path) -> None:
    """Pipes that nobody writes to, and a device without end, as links, in the place of files."""
    sample_folders.write_coco(root, masks=True)
    os.mkfifo(root / 'pipe.json')
    os.mkfifo(root / 'pipe.png')
    (root / 'zero.png').symlink_to('/dev/zero')
    (root / 'zero.json').symlink_to('/dev/zero')
    (root / 'up').symlink_to('..')


MASK = base64.b64encode(png(30000, 30000)).decode()
ENDLESS = {'size': [64, 64], 'counts': 'o' * 3_000_000}
MANY = [{'id': number, 'name': f'class {number}'} for number in range(1_000_000)]

FOLDERS: dict[str, Change] = {
    'box of NaN': coco(annotations=first(bbox=[float('nan'), 1, 2, 3])),
    'box of infinity': coco(annotations=first(bbox=[1, 1, float('inf'), 3])),
    'box of text': coco(annotations=first(bbox=['1', '1', '2', '3'])),
    'box of lists': coco(annotations=first(bbox=[[1], [1], [2], [3]])),
    'ids are text': coco(annotations=first(id='1', image_id='1', category_id='1')),
    'ids are lists': coco(annotations=first(image_id=[1])),
    'size of 10^300': coco(images=first(width=1e300, height=1e300)),
    'size of NaN': coco(images=first(width=float('nan'))),
    'a million categories': coco(categories=lambda items: MANY),
    'file name of a device': coco(images=first(file_name='../../../../../../dev/zero')),
    'file name elsewhere': coco(images=first(file_name='../../../../../../etc/passwd')),
    'mask of 10^18 pixels': coco(
        annotations=first(segmentation={'size': [10**9, 10**9], 'counts': [10**18]})
    ),
    'mask without end': coco(annotations=first(segmentation=ENDLESS)),
    'polygon of NaN': coco(annotations=first(segmentation=[[float('nan')] * 6])),
    'nested json': coco_text('{"images":"annotations" "categories"' + '[' * 500_000),
    'nested shapes': coco_text('{"shapes":' + '[' * 500_000),
    'cut json': coco_text('{"images": [], "annotations": [], "categories": [{"id'),
    'number of 10^5 digits': coco_text(
        '{"images": [], "annotations": [], "categories": [' + '9' * 100_000 + ']}'
    ),
    'yaml that repeats itself': yolo(LAUGHS + 'names: *i\ntrain: images\nval: images\n'),
    'yaml that contains itself': yolo('names: &a [x, *a]\ntrain: images\nval: images\n'),
    'yaml with a command': yolo(
        'names: !!python/object/apply:os.system ["touch executed"]\ntrain: a\nval: a\n'
    ),
    'yaml with a download': yolo(
        'names: [cat, dog]\ntrain: images\nval: images\ndownload: touch executed\n'
    ),
    'yaml with a path': yolo('names: [cat]\npath: /etc\ntrain: ../../../etc\nval: /dev\n'),
    'label of 10^12': yolo(label='1000000000000 0.5 0.5 0.1 0.1'),
    'label of 10^12 without names': bare_yolo,
    'label of NaN': yolo(label='0 nan nan 1e999 0.1'),
    'xml that repeats itself': voc(XML_LAUGHS),
    'xml that reads a file': voc(
        '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
        '<annotation><filename>&a;</filename></annotation>'
    ),
    'xml nested': voc('<annotation>' * 100_000),
    'mask that unpacks': labelme(**shape(shape_type='mask', mask=MASK)),
    'mask in 10^18 pixels': labelme(
        imageWidth=10**9, imageHeight=10**9, **shape(shape_type='mask', mask=MASK[:900])
    ),
    'circle of 10^300': labelme(
        **{'shapes': [dict(label='cat', points=[[0, 0], [1e300, 1e300]], shape_type='circle')]}
    ),
    'pipes and devices': with_pipe,
}
