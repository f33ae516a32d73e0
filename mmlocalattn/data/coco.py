"""Checks of annotation files in COCO's format, as MMDetection and pycocotools read them."""

import json
import math
import mmap
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmlocalattn.data.boxes import check_annotation, check_boxes, check_crowds
from mmlocalattn.data.classes import check_categories
from mmlocalattn.data.findings import Budget, Finding, Severity
from mmlocalattn.data.picture_files import check_size
from mmlocalattn.data.text_files import check_numbers, parse_json

KINDS: dict[str, Any] = {
    'width': (int, float),
    'height': (int, float),
    'file_name': str,
}  # of values; ids and names may be texts
FIRST_BYTES = 16_000_000  # of a list of a large file, which are looked at


@dataclass(frozen=True)
class CocoData:
    """A data set in COCO's format, as a data loader reads it.

    Attributes:
        loader: Its name, as ``'train_dataloader'``.
        ann_file: Path of the annotations.
        images: Path of the folder of its pictures.
        classes: ``metainfo.classes``.
        masks: Whether a mask is needed for each object.
        raw: Whether the rotation flag of pictures is ignored.
        training: Whether a model is trained on it.
        filter_empty: Whether images without objects are left out.
        min_size: Images with a shorter side are left out, pixels.
    """

    loader: str
    ann_file: str
    images: str
    classes: Sequence[str]
    masks: bool = False
    raw: bool = False
    training: bool = True
    filter_empty: bool = False
    min_size: int = 0


@dataclass
class CocoReader:
    """Reads each annotation file once, and one that a budget has no room or time for not at all."""

    budget: Budget
    contents: dict[str, dict | None] = field(default_factory=dict)

    def read(self, path: str) -> dict | None:
        """The content of a file, or None if it is too large or the time is over.

        Raises:
            ValueError: If it is no annotation file in COCO's format; says why.
        """
        if path not in self.contents:
            size = os.path.getsize(path)
            if not self.budget.is_over() and self.budget.takes(size):
                self.contents[path] = _read(path)
            else:
                self.contents[path] = None
                self.budget.skipped.append(f'the objects of {path} ({size / 1e6:.0f} MB)')
        return self.contents[path]


def _read(path: str) -> dict:
    text = Path(path).read_bytes()
    if (encoding := json.detect_encoding(text)) != 'utf-8':  # which pycocotools does not read
        raise ValueError(f'it is written in {encoding}: save it as UTF-8 without byte-order mark')
    check_numbers(text)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ValueError(f'it is no JSON file: {error}') from error
    if not isinstance(content, dict):
        raise ValueError(f'it holds a {type(content).__name__}, not a dict with images')
    for key, needed in (
        ('images', ('id', 'file_name', 'width', 'height')),
        ('categories', ('id', 'name')),
        ('annotations', ('id', 'image_id', 'category_id')),
    ):
        entries = content.setdefault(key, []) if key == 'annotations' else content.get(key)
        if not isinstance(entries, list):
            raise ValueError(f'it has no list of {key}')
        for i, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise ValueError(f'entry {i} of its {key} is no dict')
            for name in needed:
                if name not in entry:
                    raise ValueError(f'entry {i} of its {key} has no {name}')
                kind = KINDS.get(name, (int, str))
                if not isinstance(entry[name], kind):
                    raise ValueError(f'{name} of entry {i} of its {key} is {entry[name]!r}')
    return content


def read_first(path: str, key: str, number: int) -> list[dict]:
    """The first entries of a list of a file, without reading a large file as JSON.

    Args:
        path: Of the file.
        key: ``'images'``, ``'categories'`` or ``'annotations'``.
        number: Of entries.
    """
    if not os.path.getsize(path):
        return []
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = re.search(rf'"{key}"\s*:\s*\[\s*'.encode(), content)
        begin = start.end() if start else len(content)
        text = content[begin : begin + FIRST_BYTES].decode(errors='replace')
    entries: list[dict] = []
    decoder, position = json.JSONDecoder(), 0
    between = re.compile(r'\s*,\s*')
    while len(entries) < number:
        try:
            entry, position = decoder.raw_decode(text, position)
        except ValueError:  # the end of the list
            break
        entries.append(entry)
        comma = between.match(text, position)
        position = comma.end() if comma else len(text)
    return entries


def check_coco(data: CocoData, reader: CocoReader) -> Iterator[Finding]:
    """Check one data set: its classes, its objects and its pictures.

    Args:
        data: The data set.
        reader: Of its file, with how much is looked at.
    """
    try:
        content = reader.read(data.ann_file)
    except ValueError as error:
        yield Finding(
            'error',
            'annotation file',
            data.ann_file,
            '',
            f'{data.loader} cannot read it: {error}',
            "Write it in COCO's format",
        )
        return
    if content is None:
        content = {
            'categories': read_first(data.ann_file, 'categories', 100_000),
            'images': read_first(data.ann_file, 'images', reader.budget.items or 0),
        }
        yield from _check_categories(data, content)
        yield from _check_pictures(data, content, reader.budget)
        return
    yield from _check_categories(data, content)
    yield from check_ids(data.ann_file, content)
    yield from _check_pictures(data, content, reader.budget)
    yield from _check_objects(data, content, reader.budget)
    if data.training:
        yield from _check_what_is_left(data, content)


def _check_categories(data: CocoData, content: dict) -> Iterator[Finding]:
    categories = [category['name'] for category in content['categories']]
    yield from check_categories(data.ann_file, categories, data.classes)


def check_ids(ann_file: str, content: dict) -> Iterator[Finding]:
    """Ids and file names that stand for two things, or for none."""

    def twice(key: str, name: str) -> list:
        counts = Counter(entry[name] for entry in content[key])
        return [value for value, number in counts.items() if number > 1]

    for key, what in (('images', 'image'), ('annotations', 'annotation')):
        for value in twice(key, 'id'):
            yield Finding(
                'error',
                'ids',
                ann_file,
                f'{what} {value}',
                f'two {key} have this id, so one of them would be lost',
                f'Number the {key} anew',
            )
    for value in twice('images', 'file_name'):
        yield Finding(
            'warning',
            'ids',
            ann_file,
            f'image {value!r}',
            'the file is in the images twice, each time with a part of its objects',
            'Give its annotations one image_id',
        )
    known = {image['id'] for image in content['images']}
    categories = {category['id'] for category in content['categories']}
    for annotation in content['annotations']:
        for key, ids, lost in (
            ('image_id', known, 'an image'),
            ('category_id', categories, 'a category'),
        ):
            if annotation[key] not in ids:
                yield Finding(
                    'warning',
                    'ids',
                    ann_file,
                    f'annotation {annotation["id"]}',
                    f'{key} {annotation[key]!r} is not that of {lost} of the file, '
                    'so it is not used',
                    f'Add {lost}, or take the annotation out',
                )


def _check_objects(data: CocoData, content: dict, budget: Budget) -> Iterator[Finding]:
    """Each annotation that the loader uses, and what they have in common."""
    images = {image['id']: image for image in content['images']}
    used = _used_categories(data, content)
    annotations = [
        annotation
        for annotation in content['annotations']
        if annotation['category_id'] in used
        and annotation['image_id'] in images
        and not annotation.get('ignore')
    ]
    boxes = []
    for annotation in budget.choose(annotations, f'annotations of {data.loader}', times=50):
        image = images[annotation['image_id']]
        size = image['width'], image['height']
        findings = list(check_annotation(data.ann_file, annotation, size, data.masks))
        if not any(finding.severity == 'error' for finding in findings):
            boxes.append((*annotation['bbox'], *size))
        yield from findings
    yield from check_boxes(data.ann_file, boxes)
    yield from check_crowds(data.ann_file, annotations)
    incomplete = [entry for entry in content['annotations'] if not is_complete(entry)]
    if incomplete:
        yield Finding(
            'note',
            'area and iscrowd',
            data.ann_file,
            f'annotation {incomplete[0]["id"]}',
            f'{len(incomplete)} of {len(content["annotations"])} annotations have no area or '
            'no iscrowd: width * height of the box and 0 are taken',
        )


def _used_categories(data: CocoData, content: dict) -> set:
    return {entry['id'] for entry in content['categories'] if entry['name'] in data.classes}


def _check_what_is_left(data: CocoData, content: dict) -> Iterator[Finding]:
    """What the loader trains on after it has left out what it leaves out."""
    names = {entry['id']: entry['name'] for entry in content['categories']}
    objects = Counter(names.get(entry['category_id']) for entry in content['annotations'])
    absent = [name for name in data.classes if name in names.values() and not objects[name]]
    with_objects = {
        entry['image_id']
        for entry in content['annotations']
        if names.get(entry['category_id']) in data.classes
    }
    left = [
        image
        for image in content['images']
        if (image['id'] in with_objects or not data.filter_empty)
        and min(image['width'], image['height']) >= data.min_size
    ]
    if not left or not with_objects:
        yield Finding(
            'error',
            'nothing to learn',
            data.ann_file,
            '',
            f'of its {len(content["images"])} images and {len(content["annotations"])} annotations '
            f'nothing is left for {data.loader}: objects of the classes are in '
            f'{len(with_objects)} images, and filter_cfg leaves {len(left)}',
            'See metainfo.classes, the ids of the categories, and filter_cfg.min_size',
        )
        return
    for name in absent:
        yield Finding(
            'warning',
            'class never occurs',
            data.ann_file,
            f'category {name!r}',
            'it has no annotation, so nothing is learned about it',
            'Annotate it, or take it out of metainfo.classes and num_classes',
        )
    if len(left) < len(content['images']):
        yield Finding(
            'note',
            'images left out',
            data.ann_file,
            '',
            f'{data.loader} trains on {len(left)} of its {len(content["images"])} images: '
            'filter_cfg leaves out those that are without objects or too small',
        )


def _check_pictures(data: CocoData, content: dict, budget: Budget) -> Iterator[Finding]:
    for image in budget.choose(content['images'], f'images of {data.loader}'):
        path = os.path.join(data.images, image['file_name'])
        yield from check_size(data.ann_file, path, (image['width'], image['height']), data.raw)


def _boxes(content: dict) -> dict[Any, list[str]]:
    """The boxes of each image, in an order of their own."""
    boxes: dict[Any, list[str]] = {}
    for annotation in content['annotations']:
        boxes.setdefault(annotation['image_id'], []).append(str(annotation.get('bbox')))
    return {image: sorted(texts) for image, texts in boxes.items()}


def is_complete(annotation: dict) -> bool:
    """Whether an annotation has what MMDetection and pycocotools ask for without saying so."""
    return 'area' in annotation and 'iscrowd' in annotation


def completed(content: dict) -> dict | None:
    """The content of a file with the area and iscrowd that annotations lack, or None if none does.

    Args:
        content: Not changed. The area of a box without one is its width * height.
    """
    annotations = content['annotations']
    if all(map(is_complete, annotations)):
        return None
    whole = [
        {'area': math.prod((annotation.get('bbox') or [0, 0])[-2:]), 'iscrowd': 0, **annotation}
        for annotation in annotations
    ]
    return {**content, 'annotations': whole}


def check_same_images(loader: CocoData, evaluator: str, reader: CocoReader) -> Iterator[Finding]:
    """Compare the annotation file of an evaluator with that of its loader.

    Args:
        loader: What the model sees.
        evaluator: The file that its predictions are compared with.
        reader: Of both.
    """
    if os.path.realpath(loader.ann_file) == os.path.realpath(evaluator):
        return
    try:
        contents: list[Any] = [reader.read(loader.ann_file), reader.read(evaluator)]
    except ValueError as error:
        yield Finding('error', 'evaluator', evaluator, '', f'the evaluator cannot read it: {error}')
        return
    if None in contents:
        return
    yield from _compare_images(loader, evaluator, contents)
    yield from check_categories(
        evaluator, [entry['name'] for entry in contents[1]['categories']], loader.classes
    )


def _compare_images(loader: CocoData, evaluator: str, contents: list[dict]) -> Iterator[Finding]:
    """Compare the images and boxes of a loader's file with those of an evaluator's."""
    name = loader.loader.replace('dataloader', 'evaluator')

    def finding(severity: Severity, entry: str, problem: str) -> Finding:
        fix = f'Give {name} the ann_file of {loader.loader}'
        return Finding(severity, 'evaluator', evaluator, entry, f'{name} {problem}', fix)

    seen, expected = (
        {image['id']: os.path.basename(image['file_name']) for image in content['images']}
        for content in contents
    )
    other = [key for key in seen if expected.get(key) != seen[key]]
    boxes, expected_boxes = map(_boxes, contents)
    moved = [key for key in boxes if key in seen and boxes[key] != expected_boxes.get(key)]
    if other:
        yield finding(
            'error',
            f'image {other[0]}',
            f'compares with another data set than {loader.loader} reads: there the image is '
            f'{seen[other[0]]!r} of {loader.ann_file}, here {expected.get(other[0])!r}',
        )
    elif len(moved) > len(boxes) / 2:
        yield finding(
            'error',
            f'image {moved[0]}',
            f'compares with other objects than {loader.loader} reads for it from '
            f'{loader.ann_file}: they are two data sets',
        )
    elif len(expected) > len(seen):
        yield finding(
            'warning',
            '',
            f'expects {len(expected)} images and {loader.loader} reads {len(seen)}: every object '
            'in the others counts as missed',
        )
