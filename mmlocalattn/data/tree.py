"""The files of a folder, walked once, and what their names say."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmlocalattn.data.picture_files import SUFFIXES

SplitName = Literal['train', 'val', 'test']
SPLITS: tuple[SplitName, ...] = ('train', 'val', 'test')
TEXT_SUFFIXES = ('.txt', '.json', '.xml', '.yaml', '.yml')  # of annotation files
PICTURE_FOLDERS = ('images', 'image', 'imgs', 'img', 'img_dir', 'jpegimages', 'photos')

_SPLIT = re.compile(
    r'(?:^|[^a-z])(train|val|test)(?:ing|id|idation)?'
    r'(?:[^a-z]|annot|images?$|labels?$|masks?$|$)'
)


@dataclass(frozen=True)
class Tree:
    """A folder and all files in it, hidden ones left out.

    Attributes:
        root: Absolute path of the folder.
        files: Absolute paths, sorted.
        pictures: Those whose names end as pictures' do.
        by_name: Of the pictures, for each file name.
        by_stem: Of the pictures, for each file name without its suffix.
    """

    root: str
    files: tuple[str, ...]
    pictures: tuple[str, ...] = ()
    by_name: dict[str, list[str]] = field(default_factory=dict)
    by_stem: dict[str, list[str]] = field(default_factory=dict)

    def ending(self, *suffixes: str) -> list[str]:
        """The files with one of some suffixes, which are in lower case."""
        return [path for path in self.files if path.lower().endswith(suffixes)]

    def relative(self, path: str) -> str:
        """A path as seen from the folder."""
        return os.path.relpath(path, self.root)

    def find(self, name: str, beside: str, split: SplitName | None = None) -> str | None:
        """The picture that an annotation file means.

        Args:
            name: As it stands in the file: a path from somewhere, perhaps of another computer.
            beside: The annotation file; of pictures of the same name the nearest one is taken.
            split: Of the annotation file; pictures of the same split come first.
        """
        name = name.replace('\\', '/')
        direct = os.path.normpath(os.path.join(os.path.dirname(beside), name))
        if os.path.isfile(direct):
            return direct
        paths = self.by_name.get(os.path.basename(name), [])
        same = [path for path in paths if split_of(self.relative(path)) == split]
        return nearest(same or paths, name, beside)

    def class_names(self, *names: str) -> tuple[str, list[str]]:
        """The first file of some names, and its lines: a class each. Both are empty without one.

        Raises:
            ValueError: If another file of the same name has other lines.
        """
        paths = [path for path in self.files if os.path.basename(path).lower() in names]
        if not paths:
            return '', []
        first, *others = paths
        lines = read_lines(first)
        for path in others:
            if os.path.basename(path) == os.path.basename(first) and read_lines(path) != lines:
                raise ValueError(
                    f'{first!r} and {path!r} name different classes: which are meant? Remove one'
                )
        return first, lines


def walk(folder: str) -> Tree:
    """List the files of a folder, hidden ones left out.

    Raises:
        FileNotFoundError: If there is no such folder, or what may be annotations is a link to
            nothing; pictures that are become findings.
        OSError: If one in it cannot be listed.
    """
    root = os.path.abspath(folder)
    if not os.path.isdir(root):
        raise FileNotFoundError(f'{folder!r} is no folder: give one with pictures and annotations')
    files = []
    known: set[str] = set()  # folders, so that a link upwards does not go round for ever
    for path, folders, names in os.walk(root, onerror=_raise, followlinks=True):
        if (real := os.path.realpath(path)) in known:
            folders.clear()
            continue
        known.add(real)
        folders[:] = sorted(name for name in folders if name[0] != '.' and name != '__MACOSX')
        paths = (os.path.join(path, name) for name in names if name[0] != '.')
        # Neither pipes nor devices, whose reading has no end; a link to nothing is said.
        files += [path for path in paths if os.path.isfile(path) or not os.path.exists(path)]
    files.sort()
    for path in files:
        if path.lower().endswith(TEXT_SUFFIXES) and not os.path.exists(path):
            raise FileNotFoundError(
                f'{path!r} is a link to {os.readlink(path)!r}, which does not exist: mend the '
                'link, or remove it'
            )
    pictures = tuple(path for path in files if path.lower().endswith(SUFFIXES))
    by_name: dict[str, list[str]] = {}
    by_stem: dict[str, list[str]] = {}
    for path in pictures:
        by_name.setdefault(os.path.basename(path), []).append(path)
        by_stem.setdefault(Path(path).stem, []).append(path)
    return Tree(root, tuple(files), pictures, by_name, by_stem)


def _raise(error: OSError) -> None:
    raise error


def nearest(paths: Sequence[str], name: str, beside: str) -> str | None:
    """Of some paths, the one that shares most folders with a name, then with another path."""

    def shared(path: str) -> tuple[int, int]:
        ends = zip(reversed(path.split('/')), reversed(name.split('/')), strict=False)
        tail = next((i for i, (a, b) in enumerate(ends) if a != b), len(name.split('/')))
        return tail, len(os.path.commonpath([path, beside]))

    return max(paths, key=shared, default=None)


def split_of(relative: str, file_name: bool = False) -> SplitName | None:
    """The split that the folders of a path name, the innermost first.

    Args:
        relative: The path, as seen from the user's folder.
        file_name: Whether its last part counts too, as that of ``instances_train2017.json``.
    """
    parts = relative.replace('\\', '/').split('/')
    for part in reversed(parts if file_name else parts[:-1]):
        found = _SPLIT.search(part.lower())
        if found:
            return next(split for split in SPLITS if split == found[1])
    return None


def common_folder(paths: Iterable[str], default: str) -> str:
    """The innermost folder that all of some files are in."""
    folders = {os.path.dirname(path) for path in paths}
    return os.path.commonpath(folders) if folders else default


def repeated(names: Iterable[str]) -> list[str]:
    """The names that occur more than once."""
    return [name for name, number in Counter(names).items() if number > 1]


def read_lines(path: str) -> list[str]:
    """The lines of a text file that are not empty, without spaces around them.

    Raises:
        ValueError: If it is no text; names the file.
    """
    try:
        text = Path(path).read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'{path!r} is no UTF-8 text ({error})') from error
    return [line.strip() for line in text.splitlines() if line.strip()]
