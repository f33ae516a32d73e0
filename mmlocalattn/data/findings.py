"""What a check of a data set says, and how much of a data set it looks at."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

Severity = Literal['error', 'warning', 'note']
SEVERITIES: tuple[Severity, ...] = ('error', 'warning', 'note')
T = TypeVar('T')


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing, about a data set.

    Attributes:
        severity: An error stops or spoils a training, a warning costs something, a note is a
            choice that may be meant.
        kind: Of ``mmlocalattn.data.check.KINDS``.
        file: That has it: an annotation file, an image, an index map, or the entry of a config.
        entry: Of the file, as ``'annotation 17'``; empty for the whole file.
        problem: What is wrong.
        fix: What to do.
    """

    severity: Severity
    kind: str
    file: str
    entry: str
    problem: str
    fix: str = ''

    @property
    def message(self) -> str:
        """All of it in one line."""
        where = f'{self.file}, {self.entry}' if self.entry else self.file
        return f'{where}: {self.problem}' + (f'. {self.fix}' if self.fix else '')


@dataclass
class Budget:
    """How much of a data set a check looks at.

    Attributes:
        items: Of a list of images or annotations; None for all of them.
        spread: Take them from all over the list instead of its beginning.
        megabytes: Of annotation files together; None for any size.
        seconds: After which nothing more is begun; None for no limit.
        progress: Wraps an iteration that may take long, given what it goes over and what that is
            called.
        skipped: What was not looked at.
        started: When the first file or item was, by ``time.monotonic()``: imports do not count.
    """

    items: int | None = None
    spread: bool = True
    megabytes: float | None = None
    seconds: float | None = None
    progress: Callable[[Iterable, str], Iterable] | None = None
    skipped: list[str] = field(default_factory=list)
    started: float | None = None

    def choose(self, items: Sequence[T], name: str, times: int = 1) -> Iterator[T]:
        """The items to look at, the same ones on every run unless the time is over.

        Args:
            items: All of them.
            name: What they are, as ``'images of train_dataloader'``.
            times: How many cost as much as one picture.
        """
        chosen = items
        if self.items is not None and len(items) > self.items * times:
            number = self.items * times
            step = len(items) / number if self.spread else 1
            chosen = [items[int(i * step)] for i in range(number)]
        looked_at = 0
        for item in self.progress(chosen, name) if self.progress else chosen:
            if self.is_over():
                break
            looked_at += 1
            yield item
        if looked_at < len(items):
            self.skipped.append(f'{len(items) - looked_at} of {len(items)} {name}')

    def is_over(self) -> bool:
        """Whether the time is."""
        now = time.monotonic()
        self.started = now if self.started is None else self.started
        return self.seconds is not None and now - self.started > self.seconds

    def takes(self, size: int) -> bool:
        """Whether a file of so many bytes may be read whole; then it counts from then on."""
        if self.megabytes is None:
            return True
        fits = size / 1e6 <= self.megabytes
        self.megabytes -= size / 1e6 if fits else 0
        return fits


def first_of_each_kind(findings: Iterable[Finding], number: int, by_file: bool = True) -> list[str]:
    """Lines for people: the first findings of each kind and file, and how many more there are.

    Args:
        findings: Of any severity; errors come first.
        number: Of lines for each kind and file.
        by_file: Count those of each file by themselves; else those of each kind.
    """
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        key = finding.severity, finding.kind, finding.file if by_file and finding.entry else ''
        groups.setdefault(key, []).append(finding)
    lines = []
    for severity in SEVERITIES:
        for (of, kind, _), group in groups.items():
            if of == severity:
                lines += [f'{severity}: {finding.message}' for finding in group[:number]]
                if len(group) > number:
                    lines.append(f'{severity}: and {len(group) - number} more like it ({kind})')
    return lines
