"""Which pictures are for training and which for validation."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from mmlocalattn.data.findings import Finding
from mmlocalattn.data.picture_files import PictureFacts
from mmlocalattn.data.records import PictureRecord, Records
from mmlocalattn.data.tree import SPLITS


def make_splits(records: Records, facts: Mapping[str, PictureFacts], val_fraction: float) -> bool:
    """Give each picture a split, and make those that are missing.

    Pictures are taken in the order of a digest of their content, so names do not matter, and a
    picture that is there twice is on one side. No class is taken out of training altogether. Of
    classification each class is split by itself.

    Args:
        records: Whose pictures get a split.
        facts: Of each picture.
        val_fraction: Share of the pictures for validation, where the folder says nothing.

    Returns:
        Whether a val split was made.

    Raises:
        ValueError: If there are fewer than two different pictures to split, of classification
            in each class.
    """
    present = {picture.split for picture in records.pictures}
    if 'val' in present and present & {'train', None}:
        for picture in records.pictures:
            picture.split = picture.split or 'train'
        return False
    pool = [picture for picture in records.pictures if picture.split != 'test']
    if not pool:
        pool = records.pictures
    groups: dict[int, dict[str, list[PictureRecord]]] = defaultdict(lambda: defaultdict(list))
    for picture in pool:
        digest = facts[picture.path].digest or os.path.basename(picture.path)
        groups[picture.label][digest].append(picture)
    if sum(len(by_digest) for by_digest in groups.values()) < 2:
        raise ValueError(
            f'there are {len(pool)} pictures, and a split needs two different ones: add pictures'
        )
    for by_digest in groups.values():
        chosen = _choose_val(by_digest, val_fraction)
        for digest, pictures in by_digest.items():
            for picture in pictures:
                picture.split = 'val' if digest in chosen else 'train'
    if not any(picture.split == 'val' for picture in pool):
        raise ValueError(
            f'no class has two different pictures, one of the {len(pool)} for validation: add some'
        )
    return True


def _choose_val(by_digest: Mapping[str, list[PictureRecord]], val_fraction: float) -> set[str]:
    """The digests for validation: the first ones without which each class is still in train."""
    wanted = min(max(round(val_fraction * len(by_digest)), 1), len(by_digest) - 1)
    labels = {digest: _labels(pictures) for digest, pictures in by_digest.items()}
    left = Counter(label for several in labels.values() for label in several)
    chosen: set[str] = set()
    for digest in sorted(by_digest):
        if len(chosen) < wanted and all(left[label] > 1 for label in labels[digest]):
            chosen.add(digest)
            left.subtract(labels[digest])
    return chosen or set(sorted(by_digest)[:wanted])


def _labels(pictures: list[PictureRecord]) -> set[int]:
    """The labels that occur in pictures."""
    labels = {item.label for picture in pictures for item in picture.objects}
    return labels.union(*(picture.values for picture in pictures))


def check_duplicates(records: Records, facts: Mapping[str, PictureFacts]) -> Iterator[Finding]:
    """Find pictures that are in two splits, perhaps under two names; that for training is bad."""
    first: dict[str, PictureRecord] = {}
    for split in reversed(SPLITS):  # what is measured on stays
        for picture in records.pictures:
            digest = facts[picture.path].digest
            if picture.split != split or not digest or picture.bad:
                continue
            other = first.setdefault(digest, picture)
            if other.split != split:
                picture.bad = True
                yield Finding(
                    'warning',
                    'train and val',
                    picture.path,
                    '',
                    f'the same picture as {other.path!r}, which is in {other.split}, this one in '
                    f'{split}: what is measured on it is no test',
                    'Remove one of them',
                )
