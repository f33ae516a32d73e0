"""Checks of pictures with one label each."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmlocalattn.data.findings import Budget, Finding
from mmlocalattn.data.picture_files import check_shape, look_at, unreadable


@dataclass(frozen=True)
class LabelData:
    """A data set for classification, as a data loader reads it.

    Attributes:
        loader: Its name, as ``'train_dataloader'``.
        samples: Path of each picture and its label, an index into the classes.
        classes: ``metainfo.classes``, or the names of the folders.
        training: Whether a model is trained on it.
    """

    loader: str
    samples: Sequence[tuple[str, int]]
    classes: Sequence[str]
    training: bool = True


def check_labelled_images(data: LabelData, budget: Budget) -> Iterator[Finding]:
    """Check one data set: its labels and its pictures."""
    for path, label in data.samples:
        if not 0 <= label < len(data.classes):
            yield Finding(
                'error',
                'labels',
                path,
                '',
                f'its label in {data.loader} is {label}, and there are {len(data.classes)} classes',
                f'Write 0 to {len(data.classes) - 1}, or name the classes in metainfo',
            )
    if data.training:
        numbers = Counter(label for _, label in data.samples)
        folder = os.path.commonpath([path for path, _ in data.samples] or [''])
        for label, name in enumerate(data.classes):
            if data.samples and not numbers[label]:
                yield Finding(
                    'warning',
                    'class never occurs',
                    folder,
                    f'class {label}, {name!r}',
                    f'no image of {data.loader} is of it',
                    'Add some, or take it out of the classes and num_classes',
                )
    for path, _ in budget.choose(data.samples, f'images of {data.loader}'):
        facts = look_at(path)
        if facts.error:
            yield unreadable(path, facts.error)
        else:
            yield from check_shape(path, facts.stored)
