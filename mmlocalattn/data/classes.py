"""Checks of class names and numbers of classes."""

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence

from mmlocalattn.data.findings import Finding, Severity


def check_names(loader: str, classes: object) -> Iterator[Finding]:
    """Check that ``metainfo.classes`` is a list of different names.

    Args:
        loader: Whose it is, as ``'train_dataloader'``.
        classes: Of the data set.
    """
    where = f'{loader}.dataset.metainfo.classes'
    if not classes:
        yield Finding(
            'error',
            'classes',
            where,
            '',
            'there are no names of classes, and the metrics need them',
            "Set metainfo=dict(classes=('background', ...))",
        )
    if isinstance(classes, str):
        yield Finding(
            'error',
            'classes',
            where,
            '',
            f'{classes!r} is a text, not a list of names',
            f'One class is written with a comma: classes=({classes!r},)',
        )
    elif isinstance(classes, Sequence):
        for name, number in Counter(classes).items():
            if number > 1:
                yield Finding(
                    'error',
                    'classes',
                    where,
                    '',
                    f'{name!r} is in it {number} times',
                    'Name each class once',
                )


def check_categories(
    ann_file: str, categories: Sequence[str], classes: Sequence[str]
) -> Iterator[Finding]:
    """Compare ``metainfo.classes`` with the categories of a COCO file.

    MMDetection gives label i to the i-th category of the *file* that ``classes`` names. Names in
    another order, or one that the file does not have, give objects the name of another class.

    Args:
        ann_file: The annotation file.
        categories: Names, in the order of the file.
        classes: Names, in the order of the config.
    """
    if isinstance(classes, str) or len(set(classes)) < len(classes):
        return  # wrong without the file, which check_names says
    known = [name for name in categories if name in classes]
    lists = f'classes={_names(classes)}, the file has {_names(categories)}'
    twice = [name for name, number in Counter(known).items() if number > 1]
    unknown = [name for name in classes if name not in categories]

    def error(problem: str, fix: str) -> Finding:
        return Finding('error', 'class names', ann_file, '', f'{problem}; {lists}', fix)

    if not known:
        yield error(
            'none of the names in metainfo.classes is a category of this file',
            f'Give every data set of the config metainfo=dict(classes={_names(categories)}), '
            f'and the model num_classes={len(categories)}',
        )
    elif unknown:
        near = difflib.get_close_matches(str(unknown[0]), map(str, categories), 1)
        guess = f' (is it {near[0]!r}?)' if near else ''
        yield error(
            f'{_names(unknown)} in metainfo.classes is no category of this file{guess}, '
            'and every later label would move up by one',
            'Write the names as the file does, or take it out of the classes and num_classes',
        )
    elif twice:
        yield error(
            f'two categories are called {twice[0]!r}, so later labels would move up by one',
            'Give each category of the file a name of its own',
        )
    elif list(classes) != known:
        first = next(name for name, other in zip(classes, known, strict=True) if name != other)
        yield error(
            f'metainfo.classes has another order than the file, from {first!r} on, so objects '
            'would be given the names of other classes',
            f"Write metainfo.classes in the file's order: classes={_names(known)}",
        )
    elif len(known) < len(categories):
        left_out = [name for name in categories if name not in classes]
        yield Finding(
            'note',
            'class names',
            ann_file,
            '',
            f'{len(known)} of {len(categories)} categories are used, without {_names(left_out)}',
        )


def check_num_classes(
    loader: str,
    classes: Sequence[str],
    heads: Sequence[tuple[str, int]],
    more_is: Severity = 'error',
) -> Iterator[Finding]:
    """Compare the heads of a model with the classes of a data set.

    Args:
        loader: Whose data set it is.
        classes: Of the data set.
        heads: The name of each setting, as ``'model.decode_head.num_classes'``, and its value.
        more_is: The severity of a head with more classes than the data.
    """
    for name, number in heads:
        if number == len(classes):
            continue
        more = number > len(classes)
        result = (
            'it would predict classes that have no name'
            if more
            else 'there is no output for the rest'
        )
        yield Finding(
            more_is if more else 'error',
            'num_classes',
            name,
            '',
            f'{number}, but the data of {loader} have {len(classes)} classes, {_names(classes)}: '
            f'{result}',
            f'Set {name}={len(classes)}, or the classes in metainfo',
        )


def _names(names: Sequence[str], most: int = 12) -> str:
    """Names as they are written in a config, the first ones of many."""
    if len(names) > most:
        return f'({", ".join(map(repr, names[:most]))}, ... {len(names)} in all)'
    return f'({", ".join(map(repr, names))}{"," if len(names) == 1 else ""})'
