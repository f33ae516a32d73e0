"""Classification: a folder of pictures for each class, perhaps in a folder for each split."""

import os
from pathlib import Path

from mmlocalattn.data.findings import Finding
from mmlocalattn.data.records import PictureRecord, Records
from mmlocalattn.data.tree import PICTURE_FOLDERS, SplitName, Tree, split_of

MAX_LEFT = 0.1  # of the pictures may be in no folder of a class


def read_class_folders(tree: Tree) -> Records | None:
    """Read a folder whose folders are classes: at least two, with pictures and nothing else.

    Pictures that have an annotation file of their name, or are in folders for the splits alone, are
    no classes.
    """
    found: list[tuple[str, str, SplitName | None]] = []
    for path in tree.pictures:
        parts = tree.relative(path).split(os.sep)
        split = split_of(parts[0] + os.sep) if len(parts) > 2 else None
        below = parts[1:] if split else parts
        if len(below) > 1:
            found.append((path, below[0], split))
    left = set(tree.pictures) - {path for path, _, _ in found}
    classes = sorted({name for _, name, _ in found})
    if (
        len(left) > MAX_LEFT * len(tree.pictures)
        or len(classes) < 2
        or any(name.lower() in PICTURE_FOLDERS for name in classes)  # a folder called images
        or all(split_of(name + os.sep) for name in classes)
        or any(Path(path).stem in tree.by_stem for path in tree.ending('.json', '.xml'))
    ):
        return None
    records = Records('class folders', 'classification', classes)
    labels = {name: label for label, name in enumerate(classes)}
    records.pictures = [
        PictureRecord(path, split=split, label=labels[name]) for path, name, split in found
    ]
    if left:
        problem = f'{len(left)} pictures, this one among them, are in no folder of a class'
        records.findings.append(Finding('note', 'images left out', min(left), '', problem))
    return records
