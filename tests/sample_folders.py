"""The same few pictures with the same objects in each format that people's folders come in."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mmlocalattn.data.folders import FolderData, read_folder

SIDE = 64  # a power of two: shares of it are exact
CLASSES = ('cat', 'dog')
NAMES = [f'{i}.png' for i in range(6)]
# Label and corners x1, y1, x2, y2, ... of each object; picture 2 has none.
POLYGONS: list[list[tuple[int, list[float]]]] = [
    [(0, [4, 4, 30, 4, 30, 20, 4, 20])],
    [(1, [10, 8, 40, 12, 20, 50]), (0, [2, 40.5, 12, 40.5, 7, 60])],
    [],
    [(1, [0, 0, 64, 0, 64, 10, 0, 10])],
    [
        (0, [33, 33, 60, 35, 50, 62, 31, 50]),
        (0, [5, 5, 15, 5, 10, 15]),
        (1, [40, 2, 60, 2, 50, 12]),
    ],
    [(1, [12.5, 12.5, 40, 12.5, 40, 40, 12.5, 40])],
]


def box_of(polygon: Sequence[float]) -> list[float]:
    xs, ys = polygon[::2], polygon[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def area_of(polygon: Sequence[float]) -> float:
    xs, ys = polygon[::2], polygon[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2


def write_pictures(folder: Path, numbers: Sequence[int] = range(6)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in numbers:
        pixels = np.random.default_rng(i).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / NAMES[i])


def coco_content(masks: bool, numbers: Sequence[int] = range(6)) -> dict:
    images, annotations = [], []
    for i in range(6):
        for label, polygon in POLYGONS[i]:
            x, y, width, height = box_of(polygon)
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=i + 1,
                    category_id=label + 1,
                    bbox=[x, y, width, height],
                    area=area_of(polygon) if masks else width * height,
                    iscrowd=0,
                    segmentation=[polygon] if masks else [],
                )
            )
        images.append(dict(id=i + 1, file_name=NAMES[i], width=SIDE, height=SIDE))
    return dict(
        images=[image for image in images if image['id'] - 1 in numbers],
        annotations=[entry for entry in annotations if entry['image_id'] - 1 in numbers],
        categories=[dict(id=label + 1, name=name) for label, name in enumerate(CLASSES)],
    )


def write_coco(root: Path, masks: bool) -> None:
    write_pictures(root / 'images')
    (root / 'annotations.json').write_text(json.dumps(coco_content(masks)))


def yolo_lines(i: int, masks: bool) -> str:
    lines = []
    for label, polygon in POLYGONS[i]:
        x, y, width, height = box_of(polygon)
        box = [x + width / 2, y + height / 2, width, height]
        values = [value / SIDE for value in (polygon if masks else box)]
        lines.append(' '.join(map(str, [label, *values])))
    return '\n'.join(lines)


def write_yolo(root: Path, masks: bool) -> None:
    write_pictures(root / 'images')
    (root / 'labels').mkdir()
    for i in range(6):
        if POLYGONS[i]:
            (root / 'labels' / f'{i}.txt').write_text(yolo_lines(i, masks))
    (root / 'data.yaml').write_text('path: .\ntrain: images\nnames: {0: cat, 1: dog}\n')


def voc_xml(i: int, size: tuple[int, int] = (SIDE, SIDE)) -> str:
    objects = ''
    for label, polygon in POLYGONS[i]:
        x, y, width, height = box_of(polygon)
        objects += (
            f'<object><name>{CLASSES[label]}</name><difficult>0</difficult><bndbox><xmin>{x}</xmin>'
            f'<ymin>{y}</ymin><xmax>{x + width}</xmax><ymax>{y + height}</ymax></bndbox></object>\n'
        )
    return (
        f'<annotation><filename>{NAMES[i]}</filename><size><width>{size[0]}</width>'
        f'<height>{size[1]}</height><depth>3</depth></size>{objects}</annotation>'
    )


def write_voc(root: Path, masks: bool) -> None:
    assert not masks
    write_pictures(root)
    for i in range(6):
        if POLYGONS[i]:
            (root / f'{i}.xml').write_text(voc_xml(i))


def labelme_content(i: int, masks: bool) -> dict:
    shapes = []
    for label, polygon in POLYGONS[i]:
        x, y, width, height = box_of(polygon)
        points = [polygon[j : j + 2] for j in range(0, len(polygon), 2)]
        corners = [[x + width, y + height], [x, y]]
        shapes.append(
            dict(
                label=CLASSES[label],
                points=points if masks else corners,
                group_id=None,
                shape_type='polygon' if masks else 'rectangle',
                flags={},
            )
        )
    return dict(
        shapes=shapes, imagePath=NAMES[i], imageData=None, imageHeight=SIDE, imageWidth=SIDE
    )


def write_labelme(root: Path, masks: bool) -> None:
    write_pictures(root)
    for i in range(6):
        if POLYGONS[i]:
            (root / f'{i}.json').write_text(json.dumps(labelme_content(i, masks)))


WRITERS: dict[str, Callable[[Path, bool], None]] = {
    'COCO': write_coco,
    'YOLO': write_yolo,
    'Pascal VOC': write_voc,
    'LabelMe': write_labelme,
}


def index_map(i: int) -> Image.Image:
    """0 where nothing is, else 1 + the label."""
    image = Image.new('L', (SIDE, SIDE))
    for label, polygon in POLYGONS[i]:
        ImageDraw.Draw(image).polygon(
            [tuple(polygon[j : j + 2]) for j in range(0, len(polygon), 2)], label + 1
        )
    return image


def write_maps(root: Path, colours: Sequence[tuple[int, int, int]] = ()) -> None:
    """Pictures and index maps, or colour masks."""
    write_pictures(root / 'images')
    (root / 'masks').mkdir()
    for i in range(6):
        labels = np.array(index_map(i))
        array = np.array(colours, np.uint8)[labels] if colours else labels
        Image.fromarray(array).save(root / 'masks' / NAMES[i])


def write_class_folders(root: Path) -> None:
    for label, name in enumerate(CLASSES):
        write_pictures(root / name, range(label * 3, label * 3 + 3))


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of every file of a folder."""
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def read(root: Path, **options: object) -> FolderData:
    """A folder, read for a run beside it."""
    return read_folder(str(root), str(root.parent / 'run' / 'data'), **options)


def contents(data: FolderData) -> dict[str, dict]:
    return {
        name: json.loads(Path(split.annotations).read_bytes())
        for name, split in data.splits.items()
    }


def picture_names(data: FolderData) -> dict[str, list[str]]:
    return {
        name: [image['file_name'] for image in content['images']]
        for name, content in contents(data).items()
    }


def merged(data: FolderData, key: str) -> list[dict]:
    """The entries of all splits; which picture is where depends on how Pillow packs it."""
    entries = [entry for content in contents(data).values() for entry in content[key]]
    return sorted(entries, key=lambda entry: entry['id'])
