"""The same few pictures with the same objects in each format that people's folders come in."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw

from mmlocalattn.data.digit_cards import write_digit_cards
from mmlocalattn.data.folders import FolderData, read_folder

DIGITS = 2  # of coordinates in pixels

Polygons = Sequence[Sequence[tuple[int, list[float]]]]


@dataclass(frozen=True)
class Sample:
    """Pictures, and what is in them.

    Attributes:
        side: Of the pictures, pixels.
        classes: Names, in alphabetical order: not all formats have another one.
        names: Of the pictures.
        polygons: Label and corners x1, y1, x2, y2, ... of each object, for each picture.
        pictures: Folder that they are copied from; None to make some.
    """

    side: int
    classes: tuple[str, ...]
    names: tuple[str, ...]
    polygons: Polygons
    pictures: Path | None = None


# A side that is a power of two: shares of it are exact. Picture 2 has no object.
SIX = Sample(
    side=64,
    classes=('cat', 'dog'),
    names=tuple(f'{i}.png' for i in range(6)),
    polygons=[
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
    ],
)


def annotated(sample: Sample) -> list[tuple[int, str]]:
    """The pictures with objects: number, and name without its suffix."""
    return [(i, Path(name).stem) for i, name in enumerate(sample.names) if sample.polygons[i]]


def digit_cards(folder: Path, number: int) -> Sample:
    """The sample data set, written into a folder of its own, with so many pictures."""
    write_digit_cards(folder, number, num_val=1, size=96, digits=(0, 1))
    content = json.loads((folder / 'annotations' / 'instances_train.json').read_bytes())
    polygons: dict[int, list] = {image['id']: [] for image in content['images']}
    for entry in content['annotations']:
        corners = entry['segmentation'][0]
        polygons[entry['image_id']].append((entry['category_id'] - 1, corners))
    return Sample(
        96,
        tuple(category['name'] for category in content['categories']),
        tuple(image['file_name'] for image in content['images']),
        list(polygons.values()),
        folder / 'train',
    )


def box_of(polygon: Sequence[float]) -> list[float]:
    xs, ys = polygon[::2], polygon[1::2]
    sides = max(xs) - min(xs), max(ys) - min(ys)
    return [min(xs), min(ys), *(round(side, DIGITS) for side in sides)]


def area_of(polygon: Sequence[float]) -> float:
    xs, ys = polygon[::2], polygon[1::2]
    twice = abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs))))
    return round(twice / 2, DIGITS)


def write_pictures(
    folder: Path, numbers: Sequence[int] | None = None, sample: Sample = SIX
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(len(sample.names)) if numbers is None else numbers:
        path = folder / sample.names[i]
        if sample.pictures:
            shutil.copy(sample.pictures / path.name, path)
            continue
        shape = sample.side, sample.side, 3
        Image.fromarray(np.random.default_rng(i).integers(0, 255, shape, np.uint8)).save(path)


def coco_content(masks: bool, numbers: Sequence[int] | None = None, sample: Sample = SIX) -> dict:
    images, annotations = [], []
    wanted = range(len(sample.names)) if numbers is None else numbers
    for i, (name, objects) in enumerate(zip(sample.names, sample.polygons, strict=True)):
        for label, polygon in objects:
            x, y, width, height = box_of(polygon)
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=i + 1,
                    category_id=label + 1,
                    bbox=[x, y, width, height],
                    area=area_of(polygon) if masks else round(width * height, DIGITS),
                    iscrowd=0,
                    segmentation=[polygon] if masks else [],
                )
            )
        images.append(dict(id=i + 1, file_name=name, width=sample.side, height=sample.side))
    return dict(
        images=[image for image in images if image['id'] - 1 in wanted],
        annotations=[entry for entry in annotations if entry['image_id'] - 1 in wanted],
        categories=[dict(id=label + 1, name=name) for label, name in enumerate(sample.classes)],
    )


def write_coco(root: Path, masks: bool, sample: Sample = SIX) -> None:
    write_pictures(root / 'images', sample=sample)
    (root / 'annotations.json').write_text(json.dumps(coco_content(masks, sample=sample)))


def write_coco_splits(root: Path, masks: bool, sample: Sample = SIX) -> None:
    """Files for train and val: the split that is made of one file."""
    whole = root.parent / f'{root.name}_whole'
    whole.mkdir()
    write_coco(whole, masks, sample)
    data = read_folder(str(whole), str(root.parent / f'{root.name}_out'))
    for split, content in contents(data).items():
        numbers = [image['id'] - 1 for image in content['images']]
        write_pictures(root / split, numbers, sample)
        content = coco_content(masks, numbers, sample)
        (root / f'{split}.json').write_text(json.dumps(content))


def yolo_lines(i: int, masks: bool, sample: Sample = SIX) -> str:
    lines = []
    for label, polygon in sample.polygons[i]:
        x, y, width, height = box_of(polygon)
        box = [x + width / 2, y + height / 2, width, height]
        shares = [round(value / sample.side, 6) for value in (polygon if masks else box)]
        lines.append(' '.join(map(str, [label, *shares])))
    return '\n'.join(lines)


def write_yolo(root: Path, masks: bool, sample: Sample = SIX) -> None:
    write_pictures(root / 'images', sample=sample)
    (root / 'labels').mkdir()
    for i, stem in annotated(sample):
        (root / 'labels' / f'{stem}.txt').write_text(yolo_lines(i, masks, sample))
    names = yaml.safe_dump(dict(enumerate(sample.classes)), default_flow_style=True)
    (root / 'data.yaml').write_text(f'path: .\ntrain: images\nnames: {names}\n')


def voc_xml(i: int, size: tuple[int, int] | None = None, sample: Sample = SIX) -> str:
    objects = ''
    size = size or (sample.side, sample.side)
    for label, polygon in sample.polygons[i]:
        name = sample.classes[label]
        xs, ys = polygon[::2], polygon[1::2]
        objects += (
            f'<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{min(xs)}</xmin>'
            f'<ymin>{min(ys)}</ymin><xmax>{max(xs)}</xmax><ymax>{max(ys)}</ymax></bndbox></object>\n'
        )
    return (
        f'<annotation><filename>{sample.names[i]}</filename><size><width>{size[0]}</width>'
        f'<height>{size[1]}</height><depth>3</depth></size>{objects}</annotation>'
    )


def write_voc(root: Path, masks: bool, sample: Sample = SIX) -> None:
    assert not masks
    write_pictures(root, sample=sample)
    for i, stem in annotated(sample):
        (root / f'{stem}.xml').write_text(voc_xml(i, sample=sample))


def labelme_content(i: int, masks: bool, sample: Sample = SIX) -> dict:
    shapes = []
    for label, polygon in sample.polygons[i]:
        points = [polygon[j : j + 2] for j in range(0, len(polygon), 2)]
        xs, ys = polygon[::2], polygon[1::2]
        corners = [[max(xs), max(ys)], [min(xs), min(ys)]]
        shapes.append(
            dict(
                label=sample.classes[label],
                points=points if masks else corners,
                group_id=None,
                shape_type='polygon' if masks else 'rectangle',
                flags={},
            )
        )
    size = dict(imageHeight=sample.side, imageWidth=sample.side)
    return dict(shapes=shapes, imagePath=sample.names[i], imageData=None, **size)


def write_labelme(root: Path, masks: bool, sample: Sample = SIX) -> None:
    write_pictures(root, sample=sample)
    for i, stem in annotated(sample):
        (root / f'{stem}.json').write_text(json.dumps(labelme_content(i, masks, sample)))


WRITERS: dict[str, Callable[..., None]] = {
    'COCO': write_coco,
    'YOLO': write_yolo,
    'Pascal VOC': write_voc,
    'LabelMe': write_labelme,
}


def index_map(i: int, sample: Sample = SIX) -> Image.Image:
    """0 where nothing is, else 1 + the label."""
    image = Image.new('L', (sample.side, sample.side))
    for label, polygon in sample.polygons[i]:
        ImageDraw.Draw(image).polygon(
            [tuple(polygon[j : j + 2]) for j in range(0, len(polygon), 2)], label + 1
        )
    return image


def write_maps(
    root: Path, colours: Sequence[tuple[int, int, int] | int] = (), sample: Sample = SIX
) -> None:
    """Pictures and index maps, of other values perhaps, or colour masks."""
    write_pictures(root / 'images', sample=sample)
    (root / 'masks').mkdir()
    for i, name in enumerate(sample.names):
        labels = np.array(index_map(i, sample))
        array = np.array(colours, np.uint8)[labels] if colours else labels
        Image.fromarray(array).save((root / 'masks' / name).with_suffix('.png'))


def write_class_folders(root: Path) -> None:
    for label, name in enumerate(SIX.classes):
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
