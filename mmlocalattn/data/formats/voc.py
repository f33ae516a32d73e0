"""Pascal VOC: an XML file for each picture, in one folder or with ImageSets."""

import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from mmlocalattn.data.findings import Finding
from mmlocalattn.data.geometry import Size
from mmlocalattn.data.records import ObjectRecord, PictureRecord, Records, task_of
from mmlocalattn.data.tree import SplitName, Tree, nearest, read_lines, split_of

Element = ElementTree.Element


def read_voc(tree: Tree) -> Records | None:
    """Read a folder with annotations as Pascal VOC has them.

    Objects marked ``difficult`` become crowds, which neither training nor AP counts. The corners of
    the challenge's own data count pixels from 1 and are moved; other programs count from 0.
    """
    paths = tree.ending('.xml')
    records = Records('Pascal VOC', 'detection', [])
    roots = dict(_parse(paths, records))
    if not roots:
        return None
    sets = _image_sets(tree, records)
    records.classes = _classes(tree, list(roots.values()))
    labels = {name: label for label, name in enumerate(records.classes)}
    for path, root in roots.items():
        stem = Path(path).stem
        if sets and stem not in sets:
            continue
        split = sets[stem] if sets else split_of(tree.relative(path))
        found = _picture(tree, path, root, split)
        picture = PictureRecord(found, path, split, written_size=_size(root))
        picture.objects = list(_objects(path, root, labels, records))
        records.pictures.append(picture)
    _add_negatives(tree, records, sets)
    records.findings += _listed_without(tree, records, sets)
    records.task = task_of(records.pictures)
    crowds = sum(item.crowd for picture in records.pictures for item in picture.objects)
    if crowds:
        problem = f'{crowds} objects are called difficult: they count neither in training nor in AP'
        records.findings.append(Finding('note', 'data set', tree.root, '', problem))
    return records


def _parse(paths: list[str], records: Records) -> Iterator[tuple[str, Element]]:
    for path in paths:
        try:
            root = ElementTree.parse(path).getroot()
        except ElementTree.ParseError as error:
            problem, fix = f'it is no XML file ({error})', 'Mend it, or remove it with its picture'
            records.findings.append(Finding('error', 'annotation file', path, '', problem, fix))
            continue
        if root.tag == 'annotation':
            yield path, root


def _image_sets(tree: Tree, records: Records) -> dict[str, SplitName | None]:
    """The split of each name in the lists of ImageSets; without train and val there are none."""
    sets: dict[str, SplitName | None] = {}
    for path in tree.ending('.txt'):
        relative = tree.relative(path)
        name = Path(path).stem
        if 'ImageSets' in relative and name in ('train', 'val', 'test', 'trainval'):
            split = split_of(relative, file_name=True) if name != 'trainval' else None
            both = 0
            for line in read_lines(path):
                stem = line.split()[0]
                both += bool(split) and sets.get(stem) not in (None, split)
                sets[stem] = split or sets.get(stem)
            if both:
                problem = f'{both} of its names are in another list too, and are in {split} alone'
                records.findings.append(Finding('note', 'train and val', path, '', problem))
    return sets


def _listed_without(
    tree: Tree, records: Records, sets: dict[str, SplitName | None]
) -> Iterator[Finding]:
    """Find names in lists that neither a picture nor an XML file has."""
    there = {Path(picture.ann_file or picture.path).stem for picture in records.pictures}
    there |= {Path(finding.file).stem for finding in records.findings}  # those that are broken
    gone = sorted(set(sets) - there)
    if gone:
        problem = f'{len(gone)} names of ImageSets, {gone[0]!r} among them, are of no picture'
        fix = 'Put them there, or take the names out'
        yield Finding('error', 'missing image', tree.root, '', problem, fix)


def _classes(tree: Tree, roots: list[Element]) -> list[str]:
    """Those of a list of names if there is one, else all that occur, in alphabetical order."""
    listed = tree.class_names('classes.txt', 'labels.txt', 'predefined_classes.txt')[1]
    found = {_text(item, 'name') for root in roots for item in root.iter('object')}
    return listed or sorted(found - {''})


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or '').strip()


def _picture(tree: Tree, path: str, root: Element, split: SplitName | None) -> str:
    """The picture of an XML file: that of its own name, or that which it names."""
    name = os.path.basename(_text(root, 'filename').replace('\\', '/'))
    same = tree.by_stem.get(Path(path).stem, [])
    same = [one for one in same if os.path.basename(one) == name] or same
    pictures = [one for one in same if not _is_map(tree, one)]
    of_split = [one for one in pictures if split_of(tree.relative(one)) == split]
    found = nearest(of_split or pictures, name, path) or (name and tree.find(name, path, split))
    return found or os.path.join(os.path.dirname(path), name or f'{Path(path).stem}.jpg')


def _is_map(tree: Tree, path: str) -> bool:
    return 'Segmentation' in tree.relative(path)


def _size(root: Element) -> Size | None:
    """Width and height as the file gives them; some programs write zeros."""
    try:
        size = int(float(_text(root, 'size/width'))), int(float(_text(root, 'size/height')))
    except (ValueError, OverflowError):  # no numbers, or infinite ones
        return None
    return size if min(size) > 0 else None


def _objects(
    path: str, root: Element, labels: dict[str, int], records: Records
) -> Iterator[ObjectRecord]:
    shift = 1 if 'VOC' in _text(root, 'source/database') else 0
    for number, element in enumerate(root.findall('object'), 1):
        entry = f'object {number}'
        try:
            left, top, right, bottom = (
                float(_text(element, f'bndbox/{name}')) for name in ('xmin', 'ymin', 'xmax', 'ymax')
            )
            polygon = _polygon(element, shift)
        except ValueError:
            problem, fix = 'its bndbox is no four numbers', 'Mend or remove it'
            records.findings.append(Finding('error', 'annotation file', path, entry, problem, fix))
            continue
        left, top = left - shift, top - shift
        name = _text(element, 'name')
        yield ObjectRecord(
            labels.get(name, -1),
            f'{entry} ({name!r})' if name not in labels else entry,
            [left, top, right - left, bottom - top],
            [polygon] if polygon else [],
            crowd=_text(element, 'difficult') == '1',
        )


def _polygon(element: Element, shift: int) -> list[float]:
    """The polygon that some programs add: x1, y1, x2, y2, ... as elements of their own."""
    points = element.find('polygon')
    values: list[float] = []
    number = 1
    while points is not None and points.find(f'x{number}') is not None:
        values += [float(_text(points, f'{axis}{number}')) - shift for axis in 'xy']
        number += 1
    return values


def _add_negatives(tree: Tree, records: Records, sets: dict[str, SplitName | None]) -> None:
    """Add the pictures beside those with an XML file that have none."""
    known = {picture.path for picture in records.pictures}
    folders = {os.path.dirname(path) for path in known}
    annotated = {Path(path).stem for path in tree.ending('.xml')}
    for path in tree.pictures:
        stem = Path(path).stem
        if path in known or stem in annotated or os.path.dirname(path) not in folders:
            continue
        if not sets or stem in sets:
            split = sets[stem] if sets else split_of(tree.relative(path))
            records.pictures.append(PictureRecord(path, split=split))
