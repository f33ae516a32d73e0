"""YOLO: a text file for each picture, lines of a class and a box or polygon in shares of it."""

import os
from collections.abc import Iterator
from pathlib import Path

from mmlocalattn.data.findings import Finding
from mmlocalattn.data.records import (
    ObjectRecord,
    PictureRecord,
    Records,
    check_class_number,
    task_of,
)
from mmlocalattn.data.text_files import parse_yaml
from mmlocalattn.data.tree import SPLITS, SplitName, Tree, read_lines, split_of

NO_LABELS = ('classes.txt', 'labels.txt', 'obj.names', 'readme.txt')


def read_yolo(tree: Tree) -> Records | None:
    """Read a folder with labels for YOLO: with a ``data.yaml``, or with ``classes.txt``.

    Raises:
        ValueError: If the yaml file cannot be read.
    """
    records = Records('YOLO', 'detection', [])
    config_path, config = _config(tree, records)
    labels = _Labels(tree)
    if not config and not labels.files:
        return None
    pictures = _pictures(tree, config_path, config, labels, records)
    if not config and not any(labels.of(path) for path in pictures):
        return None
    records.classes = _classes(tree, config_path, config, records)
    boxes_only = bool(config.get('kpt_shape'))
    if boxes_only:
        problem = 'it is of key points (kpt_shape), of which the boxes alone are read'
        records.findings.append(Finding('note', 'data set', config_path, '', problem))
    used = set()
    for path, split in pictures.items():
        picture = PictureRecord(path, split=split)
        label_file = labels.of(path)
        if label_file:
            used.add(label_file)
            picture.ann_file = label_file
            picture.objects = list(_objects(label_file, records, boxes_only))
        records.pictures.append(picture)
    records.findings += _without_picture(tree, labels.files - used, used)
    if not config and not records.classes:
        _number_classes(tree, records)
    records.task = task_of(records.pictures)
    return records


def _config(tree: Tree, records: Records) -> tuple[str, dict]:
    """The yaml file that names classes and splits, and its content; empty without one."""
    first: tuple[str, dict] = '', {}
    for path in tree.ending('.yaml', '.yml'):
        try:
            content = parse_yaml(Path(path).read_text(encoding='utf-8-sig'))
        except ValueError as error:
            raise ValueError(f'{path!r} is no YAML file: {error}') from error
        if isinstance(content, dict) and 'names' in content and {'train', 'val'} & set(content):
            if first[0]:
                problem = f'it is not read, as {tree.relative(first[0])!r} is there too'
                records.findings.append(Finding('warning', 'data set', path, '', problem))
            else:
                first = path, content
    return first


def _is_label_file(tree: Tree, path: str) -> bool:
    """Whether a text file is beside or below pictures and begins as labels do, or is empty."""
    if os.path.basename(path).lower() in NO_LABELS:
        return False
    with open(path, encoding='utf-8-sig', errors='replace') as file:
        line = file.readline()
    numbers = len(line.split()) >= 5 and _is_numbers(line)
    return numbers or (Path(path).stem in tree.by_stem and _might_be_labels(tree, path))


def _might_be_labels(tree: Tree, path: str) -> bool:
    """Whether a text file with the name of a picture lies where its labels would."""
    folder = os.path.dirname(path)
    return 'labels' in tree.relative(path).split(os.sep) or any(
        os.path.dirname(picture) == folder for picture in tree.by_stem[Path(path).stem]
    )


def _is_numbers(line: str) -> bool:
    try:
        return bool([float(word) for word in line.split()])
    except ValueError:
        return False


class _Labels:
    """The label files of a folder.

    Attributes:
        files: Their paths.
    """

    def __init__(self, tree: Tree) -> None:
        self.files = {path for path in tree.ending('.txt') if _is_label_file(tree, path)}
        self._tree = tree
        self._by_stem: dict[str, list[str]] = {}
        for path in sorted(self.files):
            self._by_stem.setdefault(Path(path).stem, []).append(path)

    def of(self, picture: str) -> str:
        """The file of a picture: in ``labels`` for ``images``, beside it, or the one of its name.

        Empty if there is none.
        """
        stem = os.path.splitext(picture)[0]
        before, images, after = stem.rpartition(f'{os.sep}images{os.sep}')
        places = [f'{before}{os.sep}labels{os.sep}{after}.txt'] if images else []
        for path in [*places, f'{stem}.txt']:
            if path in self.files:
                return path
        split = split_of(self._tree.relative(picture))
        same = [
            path
            for path in self._by_stem.get(os.path.basename(stem), [])
            if split_of(self._tree.relative(path)) == split
        ]
        pictures = self._tree.by_stem[os.path.basename(stem)]
        return same[0] if len(same) == len(pictures) == 1 else ''


def _pictures(
    tree: Tree, config_path: str, config: dict, labels: '_Labels', records: Records
) -> dict[str, SplitName | None]:
    """The pictures, and the split of each."""
    if not config:
        with_labels = [path for path in tree.pictures if labels.of(path)]
        folders = {os.path.dirname(path) for path in with_labels}
        return {
            path: split_of(tree.relative(path))
            for path in tree.pictures
            if os.path.dirname(path) in folders
        }
    pictures: dict[str, SplitName | None] = {}
    for split in SPLITS:
        entries = config.get(split) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            found = _resolve(tree, config_path, str(config.get('path') or ''), str(entry), records)
            if not found:
                problem = f'{entry!r} ' + ('does not exist' if found is None else 'has no picture')
                finding = Finding('error', 'data set', config_path, split, problem, 'Mend the path')
                records.findings.append(finding)
            both = 0
            for path in found or []:
                both += pictures.setdefault(path, split) != split
            if both:
                records.findings.append(_in_both(config_path, split, both))
    return pictures


def _in_both(config_path: str, split: str, number: int) -> Finding:
    return Finding(
        'note',
        'train and val',
        config_path,
        split,
        f'{number} of its pictures are those of another split too, and stay there alone',
    )


def _resolve(
    tree: Tree, config_path: str, root: str, entry: str, records: Records
) -> list[str] | None:
    """The pictures that an entry of the yaml file means: a folder, or a file that lists them."""
    beside = os.path.dirname(config_path)
    tail = entry.replace('\\', '/')
    while tail.startswith(('../', './')):
        tail = tail.partition('/')[2]
    for path in (
        os.path.join(beside, root, entry),
        os.path.join(beside, entry),
        os.path.join(beside, tail),
        os.path.join(tree.root, tail),
    ):
        path = os.path.normpath(path)
        if os.path.isdir(path):
            inside = path + os.sep
            return [picture for picture in tree.pictures if picture.startswith(inside)]
        if os.path.isfile(path) and path.endswith('.txt'):
            return list(_listed(tree, path, records))
    return None


def _listed(tree: Tree, path: str, records: Records) -> Iterator[str]:
    """The pictures that a file lists; those that are not there become findings."""
    for number, name in enumerate(read_lines(path), 1):
        found = tree.find(name, path)
        if found:
            yield found
        else:
            problem, fix = f'there is no picture {name!r}', 'Put it there, or remove the line'
            finding = Finding('error', 'missing image', path, f'entry {number}', problem, fix)
            records.findings.append(finding)


def _classes(tree: Tree, config_path: str, config: dict, records: Records) -> list[str]:
    names = config.get('names')
    if isinstance(names, dict):
        found = {str(number): str(name) for number, name in names.items()}
        numbers = [str(i) for i in range(len(found))]
        if set(found) != set(numbers):
            problem = f'names has the numbers {", ".join(found)}, not 0 to {len(found) - 1}'
            records.findings.append(Finding('error', 'classes', config_path, 'names', problem))
        return [found.get(number, number) for number in numbers]
    if isinstance(names, list):
        return [str(name) for name in names]
    if names is not None:
        problem, fix = f'names is {names!r}', 'Write a list of them'
        records.findings.append(Finding('error', 'classes', config_path, 'names', problem, fix))
    return tree.class_names('classes.txt', 'obj.names', 'labels.txt')[1]


def _number_classes(tree: Tree, records: Records) -> None:
    """Call classes by their numbers where no file names them."""
    objects = [item for picture in records.pictures for item in picture.objects]
    number = 1 + max((item.label for item in objects), default=-1)
    check_class_number(tree.root, number)
    records.classes = [str(i) for i in range(number)]
    problem = f'there is no classes.txt or data.yaml: the classes are called 0 to {number - 1}'
    records.findings.append(Finding('note', 'classes', tree.root, '', problem))


def _objects(path: str, records: Records, boxes_only: bool) -> Iterator[ObjectRecord]:
    """The objects in one label file; what cannot be read becomes a finding."""
    text = Path(path).read_text(encoding='utf-8-sig', errors='replace')
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        entry = f'line {number}'
        words = line.split()
        try:
            label, values = int(words[0]), [float(word) for word in words[1:]]
        except ValueError:
            records.findings.append(_malformed(path, entry, line))
            continue
        if len(values) in (4, 5) or (boxes_only and len(values) > 4):  # the fifth is a confidence
            item = ObjectRecord(label, entry, _corner(values[:4]), shares=True)
        elif len(values) >= 6:
            even = values[: len(values) // 2 * 2]
            item = ObjectRecord(label, entry, polygons=[even], shares=True)
        else:
            records.findings.append(_malformed(path, entry, line))
            continue
        yield item


def _corner(box: list[float]) -> list[float]:
    """Centre and size to corner and size."""
    x, y, width, height = box
    return [x - width / 2, y - height / 2, width, height]


def _malformed(path: str, entry: str, line: str) -> Finding:
    return Finding(
        'error',
        'annotation file',
        path,
        entry,
        f'{line[:60]!r} is no class with a box (4 numbers) or a polygon (6 and more)',
        'Mend or remove it',
    )


def _without_picture(tree: Tree, unused: set[str], used: set[str]) -> Iterator[Finding]:
    """Label files that are not read: an error beside those that are, without any picture."""
    folders = {os.path.dirname(path) for path in used}
    left = []
    for path in sorted(unused):
        if os.path.dirname(path) in folders and Path(path).stem not in tree.by_stem:
            problem = 'there is no picture of this name'
            yield Finding('error', 'missing image', path, '', problem, 'Add it, or remove the file')
        else:
            left.append(path)
    if left:
        problem = f'{len(left)} label files, this one among them, belong to no picture that is read'
        yield Finding('note', 'data set', left[0], '', problem)
