"""Semantic segmentation: pictures, and a map of indices or colours for each."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmlocalattn.data.findings import Finding
from mmlocalattn.data.map_files import IGNORED, Colour, MapContent, look_at_map
from mmlocalattn.data.picture_files import unreadable
from mmlocalattn.data.records import PictureRecord, Records
from mmlocalattn.data.threads import in_threads
from mmlocalattn.data.tree import PICTURE_FOLDERS, Tree, nearest, split_of

MAX_CLASSES = 64  # found in maps; more values than that are those of a photograph
LOOKED_AT = 5  # maps, to see whether they are photographs
_MAP_FOLDER = re.compile(
    r'mask|label|annot|segment|(^|[^a-z])(gt|seg|ann|maps?|semantic)($|[^a-z])'
)
_MAP_END = re.compile(r'[-_.](masks?|labels?|labelids|annotation|gt|seg|l)$', re.IGNORECASE)
_PICTURE_END = re.compile(r'[-_.](image|img|rgb|sat|photo)$', re.IGNORECASE)


def read_maps(tree: Tree) -> Records | None:
    """Read a folder with pictures and maps.

    A map is a picture whose folder, or the end of whose name, says so: masks, labels, annotations,
    gt, seg, ... It belongs to the picture of the same name. Classes are those of ``classes.txt``
    (a name a line, with three numbers if maps have colours), CVAT's ``labelmap.txt`` or
    ``class_dict.csv``, else the values or colours that occur.
    """
    pairs, number = _pairs(tree)
    with_map = {picture: path for picture, path in pairs.items() if path}
    if not with_map or 2 * len(with_map) < number:
        return None
    paths = sorted(set(with_map.values()))
    if not _in_picture_folders(tree, with_map) and _are_photographs(paths):
        return None
    contents = {content.path: content for content in in_threads(look_at_map, paths, 'maps')}
    records = Records('pictures and index maps', 'semantic segmentation', [])
    for picture, path in pairs.items():
        split = split_of(tree.relative(picture))
        records.pictures.append(PictureRecord(picture, path, split, index_map=path))
    _choose_classes(tree, records, list(contents.values()))
    records.convert_maps |= not all(content.is_plain for content in contents.values())
    known = {*records.map_labels, IGNORED}
    for record in records.pictures:
        if record.index_map:
            findings = list(_check_map(contents[record.index_map], records, known))
            record.map_size = contents[record.index_map].size
            record.bad = any(finding.severity == 'error' for finding in findings)
            record.values = _labels(contents[record.index_map], records)
            records.findings += findings
    return records


def _pairs(tree: Tree) -> tuple[dict[str, str], int]:
    """For each picture the map that belongs to it, or nothing; and the number of maps."""
    maps: dict[str, list[str]] = {}
    stems = set()
    pictures = []
    for path in tree.pictures:
        folders = tree.relative(path).lower().split(os.sep)[:-1]
        stem = Path(path).stem
        in_maps = any(_MAP_FOLDER.search(folder) for folder in folders)
        if in_maps or (_MAP_END.search(stem) and not set(folders) & set(PICTURE_FOLDERS)):
            stems.add(_MAP_END.sub('', stem))
            maps.setdefault(_MAP_END.sub('', stem), []).append(path)
            maps.setdefault(stem, []).append(path)
        else:
            pictures.append(path)
    pairs = {}
    for path in pictures:
        stem = Path(path).stem
        several = maps.get(stem) or maps.get(_PICTURE_END.sub('', stem)) or []
        same = [
            one for one in several if split_of(tree.relative(one)) == split_of(tree.relative(path))
        ]
        pairs[path] = nearest(same or several, os.path.basename(path), path) or ''
    return pairs, len(stems)


def _in_picture_folders(tree: Tree, pictures: Iterable[str]) -> bool:
    return all(
        any(part in PICTURE_FOLDERS for part in tree.relative(path).lower().split(os.sep)[:-1])
        for path in pictures
    )


def _are_photographs(paths: Sequence[str]) -> bool:
    """Whether what would be maps has more values than maps have."""
    step = max(len(paths) // LOOKED_AT, 1)
    contents = [look_at_map(path) for path in paths[::step]]
    many = [len(one.values) > MAX_CLASSES or len(one.colours) > MAX_CLASSES for one in contents]
    return 2 * sum(many) > len(many)


def _choose_classes(tree: Tree, records: Records, contents: list[MapContent]) -> None:
    """Set classes, palette and the labels of the values or colours that occur."""
    path, names, colours = _named_classes(tree)
    whole = [content for content in contents if not content.error]
    shown: dict[int, set[Colour]] = {}
    for content in whole:
        for value, colour in content.palette.items():
            shown.setdefault(value, set()).add(colour)
    found = {colour for content in whole for colour in content.colours}
    if found or any(len(several) > 1 for several in shown.values()):
        found = found.union(*shown.values())
        found |= {
            (value,) * 3 for content in whole if not content.palette for value in content.values
        }
        records.source = 'pictures and colour masks'
        _colour_classes(tree, records, found, names, colours)
        return
    values = {value for content in whole for value in content.values}
    _value_classes(records, values, names, path or tree.root)
    if all(content.palette for content in whole) and set(records.map_labels) <= set(shown):
        palette = {label: min(shown[value]) for value, label in records.map_labels.items()}
        if len(set(palette.values())) == len(records.classes):
            records.palette = [palette[label] for label in range(len(records.classes))]


def _named_classes(tree: Tree) -> tuple[str, list[str], list[Colour]]:
    """The file that names classes, the names and their colours; empty without."""
    path, lines = tree.class_names('classes.txt', 'labelmap.txt', 'class_dict.csv', 'labels.txt')
    names, colours = [], []
    for line in lines:
        if line.startswith('#') or line.lower().startswith('name,'):
            continue
        found = re.fullmatch(r'(.+?)[\s,:;]+(\d+)[\s,;]+(\d+)[\s,;]+(\d+)[\s:,;]*', line)
        names.append(found[1] if found else line.split(':')[0] if '::' in line else line)
        if found:
            colours.append((int(found[2]), int(found[3]), int(found[4])))
    return path, names, colours if len(colours) == len(names) else []


def _colour_classes(
    tree: Tree, records: Records, found: set[Colour], names: list[str], colours: list[Colour]
) -> None:
    if not colours:
        colours = sorted(found)
        if names and len(names) == len(colours) - 1 and (0, 0, 0) in found:
            names = ['background', *names]
        if len(colours) > MAX_CLASSES or (names and len(names) != len(colours)):
            problem = f'the masks have {len(colours)} colours' + (
                f', and there are {len(names)} names' if names else ''
            )
            fix = 'Name each class with its colour in classes.txt, as `tree 0 128 0`'
            records.findings.append(Finding('error', 'colour map', tree.root, '', problem, fix))
            colours = colours[:MAX_CLASSES]
            names = names if len(names) == len(colours) else []
    records.classes = names or ['#{:02x}{:02x}{:02x}'.format(*colour) for colour in colours]
    records.palette = list(colours)
    records.map_labels = {colour: label for label, colour in enumerate(colours)}
    records.convert_maps = True


def _value_classes(records: Records, values: set[int], names: list[str], path: str) -> None:
    """Classes of maps of indices; see docs/your_data.md for the rules."""
    meant = sorted(values - {IGNORED})
    if values == {0, IGNORED} and len(names) <= 2:
        two = names or ['foreground']
        records.classes = two if len(two) == 2 else ['background', *two]
        records.map_labels = {0: 0, IGNORED: 1}
        records.convert_maps = True
        return
    if names:
        if meant and meant[-1] == len(names):
            if 0 not in values:
                records.reduce_zero_label = True
                records.map_labels = {value: value - 1 for value in range(1, len(names) + 1)}
                records.classes = names
                return
            names = ['background', *names]
            problem = 'label 0 of the maps is not among the names: it is a class, background'
            records.findings.append(Finding('note', 'classes', path, '', problem))
        records.classes = names
        records.map_labels = {value: value for value in range(len(names))}
        return
    meant = meant[:MAX_CLASSES]
    records.classes = [str(value) for value in meant]
    records.map_labels = {value: label for label, value in enumerate(meant)}
    records.reduce_zero_label = bool(meant) and meant == list(range(1, len(meant) + 1))
    gaps = meant != list(range(len(meant)))
    records.convert_maps = gaps and not records.reduce_zero_label
    problem = f'no classes.txt names the classes: they are called after the labels, {meant}'
    records.findings.append(Finding('note', 'classes', path, '', problem))


def _check_map(content: MapContent, records: Records, known: set[Any]) -> Iterator[Finding]:
    """What is wrong with one map."""
    if content.error:
        yield unreadable(content.path, content.error, 'index map')
        return
    wrong = sorted(_keys(content, records) - known)
    if wrong and content.is_jpeg:
        problem = 'JPEG changes the values where they change'
        fix = 'Write maps as PNG files, from what they were made of'
        yield Finding('error', 'colour map', content.path, '', problem, fix)
    elif wrong:
        what = ', '.join(map(str, wrong[:4])) + (', ...' if len(wrong) > 4 else '')
        problem = f'{len(wrong)} of its values, {what}, are of no class'
        fix = 'Mend the map, or name the class in classes.txt'
        yield Finding('error', 'labels', content.path, '', problem, fix)


def _labels(content: MapContent, records: Records) -> frozenset[int]:
    """The labels of the classes that occur in a map."""
    keys = _keys(content, records)
    return frozenset(label for key, label in records.map_labels.items() if key in keys)


def _keys(content: MapContent, records: Records) -> set[Any]:
    """What occurs in a map: values, or colours if it is read by colour."""
    if not any(isinstance(key, tuple) for key in records.map_labels):
        return set(content.values)
    shown = {content.palette.get(value, (value,) * 3) for value in content.values}
    return shown | content.colours
