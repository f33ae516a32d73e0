"""Which files the authors have released, by name: the table in ``released.yml``.

Stands apart from what reads the files, so that a command line can list them before PyTorch is
imported.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import yaml

from mmlocalattn.tables import markdown_table


@dataclass(frozen=True)
class Release:
    """A file that its authors have released.

    Attributes:
        name: By which it is asked for.
        family: Of :data:`~mmlocalattn.converters.families.NAMES`, which says how it is read.
        repository: Of its authors.
        licence: Of that repository.
        parameters: Of the model in millions, as its authors count them.
        arch: Of a classifier, a name in its backbone's ``arch_settings`` or a dict.
        config: Of a detector or segmentor, a file of this package's configs.
        url: Where the file can be downloaded; None if a person has to do that.
        page: Where a person finds it.
        by_hand: What a person has to do there.
        size: In bytes, if it is public.
        sha256: In hexadecimal, if it is public.
        backbone: Arguments of the backbone beside ``arch`` with which it was trained.
    """

    name: str
    family: str
    repository: str
    licence: str
    parameters: int
    arch: str | dict | None = None
    config: str | None = None
    url: str | None = None
    page: str | None = None
    by_hand: str | None = None
    size: int | None = None
    sha256: str | None = None
    backbone: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """Its name in the cache: that of the address, by which PyTorch's functions find it too."""
        if self.url is not None:
            return PurePosixPath(urlsplit(self.url).path).name
        return f'{self.name}.{"flax" if self.family == "qna_vit" else "pth"}'


def _read() -> Iterator[tuple[str, Release]]:
    table = yaml.safe_load(Path(__file__).with_suffix('.yml').read_text(encoding='utf-8'))
    for name, entry in table['released'].items():
        yield name, Release(name, **table['sources'][entry.pop('source')], **entry)


def find_release(name: str) -> Release:
    """The release of a name.

    Raises:
        ValueError: If there is none; names those that are close.
    """
    if name not in RELEASED:
        near = difflib.get_close_matches(name, RELEASED, cutoff=0.5) or list(RELEASED)
        raise ValueError(f'no release is called {name!r}: take {", ".join(near)}')
    return RELEASED[name]


def released_table(links: bool = False) -> str:
    """All releases as a table.

    Args:
        links: Write where a file is as a link in Markdown, and not as its address.
    """
    rows = []
    for entry in RELEASED.values():
        options = ''.join(f', {key}={value}' for key, value in entry.backbone.items())
        model = (entry.config or f'{entry.arch}{options}').removesuffix('.py')
        address = entry.url or entry.page or ''
        text = entry.file if entry.url else 'by hand'
        place = f'[{text}]({address})' if links else address
        rows.append((entry.name, entry.family, model, str(entry.parameters), entry.licence, place))
    columns = ('name', 'family', 'model', 'parameters, M', 'licence', 'file')
    return markdown_table(columns, rows, left=len(columns))


RELEASED: Mapping[str, Release] = MappingProxyType(dict(_read()))
"""The releases by name, such as ``'nat_t_in1k'``."""
