"""People's folders: what one holds, recognised by looking, as a data set that a config can name."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mmlocalattn.data.check_records import (
    check_box_format,
    check_objects,
    check_pictures,
    check_unread,
    choose_orientation,
)
from mmlocalattn.data.findings import Finding, first_of_each_kind
from mmlocalattn.data.formats import (
    read_class_folders,
    read_coco,
    read_labelme,
    read_maps,
    read_voc,
    read_yolo,
)
from mmlocalattn.data.geometry import Size
from mmlocalattn.data.palette import make_palette
from mmlocalattn.data.picture_files import look_at_all
from mmlocalattn.data.records import OBJECT_TASKS, Records, Task, check_class_number
from mmlocalattn.data.splits import check_duplicates, make_splits
from mmlocalattn.data.tree import SplitName, Tree, walk
from mmlocalattn.data.write_coco import annotation_of
from mmlocalattn.data.write_splits import Split, Written, write_splits
from mmlocalattn.files import whole_folder, write_json
from mmlocalattn.tables import markdown_table

READERS: dict[Callable[[Tree], Records | None], str] = {  # in the order that they are asked
    read_coco: 'COCO json',
    read_yolo: 'YOLO (data.yaml, or text files beside pictures)',
    read_voc: 'Pascal VOC XML',
    read_labelme: 'LabelMe json',
    read_maps: 'pictures and masks',
    read_class_folders: 'a folder of pictures for each class',
}
TASKS: dict[Callable[[Tree], Records | None], tuple[Task, ...]] = {
    read_maps: ('semantic segmentation',),
    read_class_folders: ('classification',),
}
DESCRIPTION, FINDINGS = 'dataset.json', 'findings.txt'
SHOWN = 3  # findings of each kind in an error and at the start of a training


class NotRecognised(ValueError):
    """A folder that holds nothing that is known, or nothing for the task."""


@dataclass(frozen=True)
class ClassCount:
    """How often a class occurs.

    Attributes:
        name: Of the class.
        train: Objects for training; for other tasks pictures it occurs in.
        val: The same for validation.
        small: Objects below 32 x 32 pixels, in all splits, as COCO counts them.
        medium: Below 96 x 96 pixels.
        large: All others.
    """

    name: str
    train: int
    val: int
    small: int = 0
    medium: int = 0
    large: int = 0


@dataclass(frozen=True)
class FolderData:
    """A data set: what a config has to know about it.

    Attributes:
        folder: Absolute path of the user's folder.
        source: Format that was recognised, as ``'YOLO'``.
        task: What it is for.
        classes: Names; label i is the i-th. For COCO files in the order of their categories.
        palette: (R, G, B) of each class, 0 to 255.
        splits: ``'train'`` and ``'val'``, and ``'test'`` if the folder has one.
        masks: Whether each object has a mask.
        img_suffix: Of pictures, of semantic segmentation.
        seg_map_suffix: Of index maps, of semantic segmentation.
        reduce_zero_label: Whether label 0 of index maps is ignored and the others move down by one;
            255 is ignored in any case.
        ignore_orientation: Whether pictures are to be read as they are stored, without obeying
            EXIF's orientation, as the annotations were drawn
            (``color_type='color_ignore_orientation'``).
        object_size: Median of the square root of the area of objects, pixels of the pictures as
            they are; 0 without objects.
        image_size: Median width and median height of the pictures, pixels.
        made_split: Whether the val split was made here.
        converted: What was written, in words; empty if everything is read as it stands.
        counts: Of each class.
        skipped: Pictures and objects that were left out.
        findings: What is wrong, or worth knowing.
        out: Absolute path of the folder that was written.
    """

    folder: str
    source: str
    task: Task
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    splits: dict[SplitName, Split]
    masks: bool = False
    img_suffix: str = '.jpg'
    seg_map_suffix: str = '.png'
    reduce_zero_label: bool = False
    ignore_orientation: bool = False
    object_size: float = 0.0
    image_size: Size = (0, 0)
    made_split: bool = False
    converted: str = ''
    counts: tuple[ClassCount, ...] = ()
    skipped: int = 0
    findings: tuple[Finding, ...] = ()
    out: str = ''

    @property
    def report(self) -> list[str]:
        """What was recognised and what is odd about it, in some lines; a file lists all."""
        lines = first_of_each_kind(self.findings, SHOWN, by_file=False)
        if self.skipped or len(lines) < len(self.findings):
            path = os.path.join(self.out, FINDINGS)
            lines.append(f'all that was found, and left out: {path}')
        return [self.summary, *lines]

    @property
    def summary(self) -> str:
        """What was recognised, in one line."""
        names = ', '.join(self.classes[:6]) + (', ...' if len(self.classes) > 6 else '')
        parts = ', '.join(f'{split.num_images} {name}' for name, split in self.splits.items())
        objects = sum(split.num_objects for split in self.splits.values())
        return ''.join(
            [
                f'{self.folder}: {self.source}, {self.task}; ',
                f'{len(self.classes)} class{"" if len(self.classes) == 1 else "es"} ({names}); ',
                f'pictures: {parts}' + (' (split made here)' if self.made_split else ''),
                f'; {objects} objects' if objects else '',
                f'; {self.skipped} bad entries left out' if self.skipped else '',
                f'; converted: {self.converted}' if self.converted else '; read as it stands',
            ]
        )


def read_folder(
    folder: str,
    out: str,
    val_fraction: float = 0.2,
    skip_bad: bool = False,
    task: Task | None = None,
) -> FolderData:
    """Recognise what a folder holds, check it, and write what the toolboxes cannot read.

    Args:
        folder: Of the user; nothing is written into it.
        out: Folder for what is converted and for lists of names, as ``work_dir/data``. It is
            written once, whole: a second call for the same data finds it. In a distributed run one
            process calls first.
        val_fraction: Share of the images of a split that is made; above 0 and below 1.
        skip_bad: Go on without pictures and objects that have an error; ``findings`` lists them.
        task: What to read it for, where it holds more than one thing; None for the first found.

    Raises:
        FileNotFoundError: If there is no such folder.
        NotRecognised: If nothing is recognised, or nothing for the task; says what was looked for.
        ValueError: If there is nothing to learn, or, without ``skip_bad``, something has an error;
            each in one line.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f'--val-fraction must be above 0 and below 1, got {val_fraction}')
    final = os.path.abspath(out)
    tree = walk(folder)
    if Path(final).is_relative_to(tree.root):
        raise ValueError(
            f'{out!r} is inside of {folder!r}, and nothing is written there: give another work dir'
        )
    fields = tuple(FolderData.__dataclass_fields__)  # a newer version has others
    key = _fingerprint(tree, final, val_fraction, skip_bad, task, fields)
    content = _description(Path(final))
    if content.get('fingerprint') == key:
        return _from_json(content['data'])
    if os.path.exists(final) and not content:
        raise ValueError(f'{out!r} exists and holds something else: remove it')
    data, write = _read(tree, final, val_fraction, skip_bad, task)
    with whole_folder(Path(final), replace=True) as new:
        written = write(new)
        data = FolderData(**{**_fields(data), **_fields(written)})
        lines = first_of_each_kind(data.findings, len(data.findings))
        (new / FINDINGS).write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8')
        write_json(new / DESCRIPTION, {'fingerprint': key, 'data': asdict(data)})
    return data


def recognise(tree: Tree, task: Task | None = None) -> Records:
    """Read a folder with the first reader that knows its format.

    Args:
        tree: The folder.
        task: That it has to be for; None for any.

    Raises:
        NotRecognised: If none does; says what was looked for.
        ValueError: Of :func:`~mmlocalattn.data.records.check_class_number`.
    """
    wanted = set(OBJECT_TASKS if task in OBJECT_TASKS else (task,))
    readers = [it for it in READERS if task is None or wanted & {*TASKS.get(it, OBJECT_TASKS)}]
    for reader in readers:
        if (records := reader(tree)) is not None:
            check_class_number(tree.root, len(records.classes))
            return records
    known = '; '.join(READERS[reader] for reader in readers)
    what = f' for {task}' if task else ''
    raise NotRecognised(
        f'{tree.root!r} holds {len(tree.files)} files, {len(tree.pictures)} of them pictures, and '
        f'no data set{what} that is known: {known}. See docs/your_data.md'
    )


def _read(
    tree: Tree, final: str, val_fraction: float, skip_bad: bool, task: Task | None
) -> tuple[FolderData, Callable[[Path], Written]]:
    """Everything but the writing, and what does that."""
    records = recognise(tree, task)
    if records.source != 'COCO':
        records.pictures.sort(key=lambda picture: picture.path)
    facts = look_at_all(sorted({picture.path for picture in records.pictures}))
    check_box_format(records, facts)
    raw, oriented = choose_orientation(records, facts)
    findings = [*records.findings, *check_unread(tree, records), *oriented]
    findings += check_pictures(records, facts, raw)
    findings += check_objects(records, facts, raw)
    if not skip_bad:
        _refuse(tree.root, findings)
    skipped = _drop_bad(records) if skip_bad else 0
    if records.task == 'semantic segmentation':
        records.pictures = [picture for picture in records.pictures if picture.index_map]
    if records.task in OBJECT_TASKS and not any(picture.objects for picture in records.pictures):
        raise ValueError(f'{tree.root!r} ({records.source}) has no object that can be used')
    made = make_splits(records, facts, val_fraction)
    findings += check_duplicates(records, facts)
    skipped += _drop_bad(records) if skip_bad else 0
    if not any(picture.split == 'train' for picture in records.pictures):
        raise ValueError(f'{tree.root!r}: every picture for training is one for validation too')
    counts = count_classes(records)
    sizes = {path: known.stored if raw else known.turned for path, known in facts.items()}
    data = FolderData(
        tree.root,
        records.source,
        records.task,
        tuple(records.classes),
        tuple(records.palette or make_palette(len(records.classes))),
        {},
        masks=records.task == 'instance segmentation',
        ignore_orientation=raw,
        object_size=_object_size(records),
        image_size=_median_size([sizes[picture.path] for picture in records.pictures]),
        made_split=made,
        counts=counts,
        skipped=skipped,
        findings=(*findings, *_check_counts(tree.root, counts)),
        out=final,
    )
    if skipped:
        records.native = {}
    elif made:
        records.native = {split: file for split, file in records.native.items() if split == 'test'}
    return data, lambda new: write_splits(records, new, final, sizes)


def _refuse(root: str, findings: list[Finding]) -> None:
    errors = [finding for finding in findings if finding.severity == 'error']
    if errors:
        lines = '\n'.join(first_of_each_kind(errors, SHOWN, by_file=False))
        raise ValueError(
            f'{len(errors)} entries of {root!r} cannot be used; --skip-bad goes on without them, '
            f'`python tools/analysis/check_data.py {root}` lists all:\n{lines}'
        )


def _drop_bad(records: Records) -> int:
    """Remove what cannot be used, and count it."""
    number = 0
    for picture in records.pictures:
        number += picture.bad or sum(item.bad for item in picture.objects)
        picture.objects = [item for item in picture.objects if not item.bad]
    records.pictures = [picture for picture in records.pictures if not picture.bad]
    return number


def _areas(records: Records) -> list[tuple[int, str | None, float]]:
    """Label, split and area of each object that is not a crowd."""
    return [
        (item.label, picture.split, float(annotation_of(item)['area']))
        for picture in records.pictures
        for item in picture.objects
        if not item.crowd
    ]


def _object_size(records: Records) -> float:
    sizes = [math.sqrt(max(area, 0)) for _, _, area in _areas(records)]
    return round(median(sizes), 1) if sizes else 0.0


def _median_size(sizes: list[Size]) -> Size:
    if not sizes:
        return 0, 0
    return round(median(width for width, _ in sizes)), round(median(height for _, height in sizes))


def count_classes(records: Records) -> tuple[ClassCount, ...]:
    """How often each class occurs, once each picture has a split."""
    areas = _areas(records)
    if records.task not in OBJECT_TASKS:
        areas = [
            (label, picture.split, -1.0)
            for picture in records.pictures
            for label in picture.values or {picture.label}
        ]
    counts = []
    for label, name in enumerate(records.classes):
        of_class = [(split, area) for other, split, area in areas if other == label]
        small, medium = (sum(0 <= area < side**2 for _, area in of_class) for side in (32, 96))
        large = sum(area >= 96**2 for _, area in of_class)
        train, val = (sum(split == wanted for split, _ in of_class) for wanted in ('train', 'val'))
        counts.append(ClassCount(name, train, val, small, medium - small, large))
    return tuple(counts)


def _check_counts(root: str, counts: tuple[ClassCount, ...]) -> Iterator[Finding]:
    """Find classes that there is nothing to learn about, or to measure."""
    for count in counts:
        for number, split, lost in (
            (count.train, 'train', 'nothing is learned about it'),
            (count.val, 'val', 'nothing is measured about it'),
        ):
            if not number:
                entry, problem = f'class {count.name!r}', f'it does not occur in {split}: {lost}'
                fix = 'Add some, or take the class out'
                yield Finding('warning', 'class never occurs', root, entry, problem, fix)


def count_table(data: FolderData) -> str:
    """The counts of a data set as a table."""
    if data.task not in OBJECT_TASKS:
        rows = [[count.name, str(count.train), str(count.val)] for count in data.counts]
        return markdown_table(['pictures of class', 'train', 'val'], rows)
    rows = [[str(value) for value in asdict(count).values()] for count in data.counts]
    sizes = ['small (< 32²)', 'medium (< 96²)', 'large']
    return markdown_table(['objects of class', 'train', 'val', *sizes], rows)


def _fingerprint(tree: Tree, *settings: object) -> str:
    """A digest of the names, sizes and times of all files, and of how they are read."""
    digest = hashlib.sha1(repr(settings).encode(), usedforsecurity=False)
    for path in tree.files:
        status = os.stat(path) if os.path.exists(path) else os.lstat(path)  # a link to nothing
        digest.update(f'{path} {status.st_size} {status.st_mtime_ns}\n'.encode())
    return digest.hexdigest()


def _description(folder: Path) -> dict[str, Any]:
    """The description of what was read before; empty if a folder has none, or not one of ours."""
    try:
        content = json.loads((folder / DESCRIPTION).read_bytes())
    except (OSError, ValueError):
        return {}
    ours = isinstance(content, dict) and set(content) == {'fingerprint', 'data'}
    return content if ours else {}


def _fields(instance: Any) -> dict[str, Any]:
    return {name: getattr(instance, name) for name in instance.__dataclass_fields__}


def _from_json(content: Mapping[str, Any]) -> FolderData:
    data = dict(content)
    data['classes'] = tuple(data['classes'])
    data['palette'] = tuple((red, green, blue) for red, green, blue in data['palette'])
    data['image_size'] = tuple(data['image_size'])
    data['splits'] = {name: Split(**split) for name, split in data['splits'].items()}
    data['counts'] = tuple(ClassCount(**count) for count in data['counts'])
    data['findings'] = tuple(Finding(**finding) for finding in data['findings'])
    return FolderData(**data)
