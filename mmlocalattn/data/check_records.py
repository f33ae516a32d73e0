"""Checks of the pictures and objects of a folder, before anything is written."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mmlocalattn.data.boxes import box_problem, check_annotation, check_boxes
from mmlocalattn.data.findings import Finding
from mmlocalattn.data.geometry import Size, size_text
from mmlocalattn.data.picture_files import OTHER_SUFFIXES, PictureFacts, check_file, unreadable
from mmlocalattn.data.records import OBJECT_TASKS, ObjectRecord, PictureRecord, Records
from mmlocalattn.data.tree import SplitName, Tree
from mmlocalattn.data.write_coco import annotation_of, finish_object

Facts = Mapping[str, PictureFacts]


def check_pictures(records: Records, facts: Facts, raw: bool) -> Iterator[Finding]:
    """Check the files and sizes of the pictures; those that cannot be used become bad.

    Args:
        records: Whose pictures are checked.
        facts: Of each.
        raw: Whether they are read as they are stored, without obeying EXIF's orientation.
    """
    meant: dict[tuple[str, SplitName | None], PictureRecord] = {}
    for picture in records.pictures:
        known = facts[picture.path]
        if known.error:
            picture.bad = True
            yield _unreadable(picture, known.error)
            continue
        first = meant.setdefault((picture.path, picture.split), picture)
        if _name_of(first) != _name_of(picture):
            first.bad = picture.bad = True
            yield _meant_twice(first, picture)
            continue
        yield from check_file(picture.path, known)
        for finding in _check_size(picture, known, raw):
            picture.bad = True
            yield finding
    if records.task in OBJECT_TASKS:
        yield from _count_negatives(records)
    if records.task == 'semantic segmentation':
        yield from _count_without_map(records)


def _name_of(picture: PictureRecord) -> str:
    """What means a picture: its name in a file of many, or the file."""
    if picture.source is None:
        return picture.ann_file
    return os.path.normpath(picture.source['file_name'].replace('\\', '/'))


def _meant_twice(first: PictureRecord, picture: PictureRecord) -> Finding:
    """The finding of two pictures of which only one is there, and nothing says which."""
    return Finding(
        'error',
        'missing image',
        picture.ann_file,
        f'image {_name_of(picture)!r}' if picture.source else '',
        f'{picture.path!r} is the only picture it can mean, and {_name_of(first)!r} means it too',
        'Put the other one there, or remove its annotations',
    )


def check_unread(tree: Tree, records: Records) -> Iterator[Finding]:
    """Find pictures of the folder that are not read, and that nothing else is said about."""
    used = {path for picture in records.pictures for path in (picture.path, picture.index_map)}
    wrong = {Path(it.file).stem for it in records.findings if it.severity == 'error'}
    left = [path for path in tree.pictures if path not in used and Path(path).stem not in wrong]
    if left:
        problem = f'{len(left)} pictures, this one among them, belong to no annotation, class or '
        problem += 'split, and are not read'
        yield Finding('note', 'images left out', left[0], '', problem)
    others = [path for path in tree.ending(*OTHER_SUFFIXES) if path not in used]
    if others:
        problem = f'{len(others)} files, this one among them, are pictures of formats that are not '
        problem += 'read'
        yield Finding('warning', 'picture format', others[0], '', problem, 'Save them as JPEG')


def _unreadable(picture: PictureRecord, reason: str) -> Finding:
    if os.path.exists(picture.path) or not picture.ann_file:
        return unreadable(picture.path, reason)
    name = picture.source['file_name'] if picture.source else os.path.basename(picture.path)
    return Finding(
        'error',
        'missing image',
        picture.ann_file,
        f'image {name!r}',
        'there is no such picture in the folder',
        'Put it there, or remove its annotations',
    )


def _check_size(picture: PictureRecord, facts: PictureFacts, raw: bool) -> Iterator[Finding]:
    size = facts.stored if raw else facts.turned
    other = facts.turned if raw else facts.stored
    file, entry = picture.ann_file, f'image {picture.path!r}'
    written = picture.written_size
    if picture.index_map and picture.map_size != (0, 0):
        file, entry, written = picture.index_map, '', picture.map_size
    if written in (None, size):
        return
    assert written is not None
    problem = f'{size_text(written)} there, but the picture is {size_text(size)}'
    fix = 'Write the size of the pictures, and see that what is drawn fits'
    if written == other:
        problem += f' with its EXIF orientation {"ignored" if raw else "obeyed"}, as others need it'
        fix = 'Turn this picture, or annotate it anew'
    kind = 'map size' if picture.index_map else 'image size'
    yield Finding('error', kind, file, entry, problem, fix)


def choose_orientation(records: Records, facts: Facts) -> tuple[bool, list[Finding]]:
    """Whether annotations are drawn on the pictures as they are stored, and what is said about it.

    A picture that its EXIF orientation puts on its side has two sizes, and its annotation file, or
    its map, gives one of them. Formats without sizes are taken to obey it, as their programs do.
    """
    raw: list[PictureRecord] = []
    obeyed: list[PictureRecord] = []
    undecided: list[PictureRecord] = []
    for picture in records.pictures:
        known = facts[picture.path]
        if known.error or known.orientation == 1:
            continue
        size = picture.map_size if picture.index_map else picture.written_size
        if known.stored != known.turned and size in (known.stored, known.turned):
            (raw if size == known.stored else obeyed).append(picture)
        else:
            undecided.append(picture)
    ignore = len(raw) > len(obeyed)
    findings = []
    if raw or obeyed:
        decided = raw if ignore else obeyed
        way = 'as it is stored: EXIF is ignored for all' if ignore else 'as its EXIF turns it'
        problem = f'{len(decided)} pictures, this one among them, are annotated {way}'
        findings.append(Finding('note', 'orientation', decided[0].path, '', problem))
    if undecided:
        problem = (
            f'{len(undecided)} pictures, this one among them, have an EXIF orientation, and '
            'nothing says whether they are annotated with it; it is '
            + ('ignored' if ignore else 'obeyed')
        )
        fix = 'Look at them in the contact sheet'
        findings.append(Finding('warning', 'orientation', undecided[0].path, '', problem, fix))
    return ignore, findings


def _count_negatives(records: Records) -> Iterator[Finding]:
    empty = [picture for picture in records.pictures if not picture.objects and not picture.bad]
    if empty:
        problem = (
            f'{len(empty)} of {len(records.pictures)} pictures, this one among them, have no '
            'object: they are kept, and show what is none'
        )
        yield Finding('note', 'images without objects', empty[0].path, '', problem)


def _count_without_map(records: Records) -> Iterator[Finding]:
    without = [picture for picture in records.pictures if not picture.index_map]
    if without:
        problem = f'{len(without)} pictures, this one among them, have no map and are left out'
        yield Finding('warning', 'missing index map', without[0].path, '', problem)


def check_objects(records: Records, facts: Facts, raw: bool) -> Iterator[Finding]:
    """Check the objects; those that cannot be used become bad. Shares become pixels here."""
    masks = records.task == 'instance segmentation'
    for picture in records.pictures:
        known = facts[picture.path]
        if picture.bad:
            continue
        size = known.stored if raw else known.turned
        for item in picture.objects:
            findings = list(_check_object(picture, item, size, masks, records.classes))
            errors = [finding for finding in findings if finding.severity == 'error']
            item.bad = bool(errors) or is_lost(item, size)
            yield from errors[:1] or findings


def check_box_format(records: Records, facts: Facts) -> None:
    """Recognise a COCO file whose boxes are all corners, or shares of the picture.

    Raises:
        ValueError: If one is so: no box of it can be used.
    """
    boxes: dict[str, list[list[float]]] = {}
    for picture in records.pictures:
        for item in picture.objects:
            if item.source is not None and is_box(item.box) and not facts[picture.path].error:
                size = facts[picture.path].turned
                boxes.setdefault(picture.ann_file, []).append([*(item.box or []), *size])
    for path, of_file in boxes.items():
        for finding in check_boxes(path, of_file):
            raise ValueError(finding.message)


def is_box(box: object) -> bool:
    """Whether it is four finite numbers."""
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(value, (int, float)) and math.isfinite(value) for value in box)
    )


def _check_object(
    picture: PictureRecord, item: ObjectRecord, size: Size, masks: bool, classes: Sequence[str]
) -> Iterator[Finding]:
    if not 0 <= item.label < len(classes):
        problem = 'its class is none of the ' + f'{len(classes)} that are named'
        if item.label >= 0:
            problem = f'class {item.label} is not one of the {len(classes)} that are named'
        fix = 'Name it, or remove the object'
        yield Finding('error', 'unknown class', picture.ann_file, item.entry, problem, fix)
        return
    finish_object(item, size)
    annotation = annotation_of(item)
    masks = masks and (not item.crowd or bool(item.segmentation))
    for finding in check_annotation(picture.ann_file, annotation, size, masks):
        yield replace(finding, entry=item.entry)


def is_lost(item: ObjectRecord, size: Size) -> bool:
    """Whether nothing of an object's box is inside its picture."""
    if item.box is None:
        return True
    x, y, width, height = item.box
    left, top = max(x, 0), max(y, 0)
    inside = [left, top, min(x + width, size[0]) - left, min(y + height, size[1]) - top]
    return bool(box_problem(inside, 1, size))
