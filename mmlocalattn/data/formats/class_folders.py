"""Classification: a folder of pictures for each class, perhaps in a folder for each split."""

import os

from mmlocalattn.data.records import PictureRecord, Records
from mmlocalattn.data.tree import SplitName, Tree, split_of


def read_class_folders(tree: Tree) -> Records | None:
    """Read a folder whose folders are classes: at least two, with pictures and nothing else."""
    found: list[tuple[str, str, SplitName | None]] = []
    for path in tree.pictures:
        parts = tree.relative(path).split(os.sep)
        split = split_of(parts[0] + os.sep) if len(parts) > 2 else None
        below = parts[1:] if split else parts
        if len(below) < 2:
            return None  # a picture in no folder of a class
        found.append((path, below[0], split))
    classes = sorted({name for _, name, _ in found})
    if len(classes) < 2:
        return None
    records = Records('class folders', 'classification', classes)
    labels = {name: label for label, name in enumerate(classes)}
    records.pictures = [
        PictureRecord(path, split=split, label=labels[name]) for path, name, split in found
    ]
    return records
