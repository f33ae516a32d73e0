"""Classification: a folder of pictures for each class, perhaps in a folder for each split."""

import os

from mmlocalattn.data.records import PictureRecord, Records
from mmlocalattn.data.tree import PICTURE_FOLDERS, SplitName, Tree, split_of

MAX_LEFT = 0.1  # of the pictures may be in no folder of a class


def read_class_folders(tree: Tree) -> Records | None:
    """Read a folder whose folders are classes: at least two, with pictures and nothing else.

    Where some are in folders of splits, the others are not read.
    """
    found: list[tuple[str, str, SplitName | None]] = []
    for path in tree.pictures:
        parts = tree.relative(path).split(os.sep)
        split = split_of(parts[0] + os.sep) if len(parts) > 2 else None
        below = parts[1:] if split else parts
        if len(below) > 1:
            found.append((path, below[0], split))
    if any(split for _, _, split in found):
        found = [entry for entry in found if entry[2]]
    left = set(tree.pictures) - {path for path, _, _ in found}
    classes = sorted({name for _, name, _ in found})
    if (
        len(left) > MAX_LEFT * len(tree.pictures)
        or len(classes) < 2
        or any(name.lower() in PICTURE_FOLDERS for name in classes)
        or all(split_of(name + os.sep) for name in classes)
    ):
        return None  # a folder called images is no class, nor are train and val
    records = Records('class folders', 'classification', classes)
    labels = {name: label for label, name in enumerate(classes)}
    records.pictures = [
        PictureRecord(path, split=split, label=labels[name]) for path, name, split in found
    ]
    return records
