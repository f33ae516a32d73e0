"""Classification: a folder of pictures for each class, perhaps in a folder for each split."""

import os
from pathlib import Path

from mmlocalattn.data.records import PictureRecord, Records
from mmlocalattn.data.tree import PICTURE_FOLDERS, SplitName, Tree, split_of

MAX_LEFT = 0.1  # of the pictures may be in no folder of a class


def read_class_folders(tree: Tree) -> Records | None:
    """Read a folder whose folders are classes: at least two, with pictures and nothing else.

    Splits are folders above the classes, where those beside them are not read, or below.
    Pictures that have an annotation file of their name are in no class.
    """
    found: list[tuple[str, str, SplitName | None]] = []
    in_splits: list[tuple[str, str, SplitName | None]] = []
    for path in tree.pictures:
        first, *below = tree.relative(path).split(os.sep)
        above = split_of(first + os.sep)
        if above and len(below) > 1:
            in_splits.append((path, below[0], above))
        elif below:
            found.append((path, first, split_of(os.sep.join(below))))
    found = in_splits or found
    left = set(tree.pictures) - {path for path, _, _ in found}
    classes = sorted({name for _, name, _ in found})
    if (
        len(left) > MAX_LEFT * len(tree.pictures)
        or len(classes) < 2
        or any(name.lower() in PICTURE_FOLDERS for name in classes)
        or all(split_of(name + os.sep) for name in classes)
        or any(Path(path).stem in tree.by_stem for path in tree.ending('.json', '.xml'))
    ):
        return None  # a folder called images is no class, nor are train and val
    records = Records('class folders', 'classification', classes)
    labels = {name: label for label, name in enumerate(classes)}
    records.pictures = [
        PictureRecord(path, split=split, label=labels[name]) for path, name, split in found
    ]
    return records
