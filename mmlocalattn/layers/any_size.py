"""Graphs that serve maps of all sizes: while one is made, a layer may not branch on a size."""

from collections.abc import Iterator
from contextlib import contextmanager

_any_size = False


def is_any_size() -> bool:
    """Whether the course of a layer must be the same for maps of all sizes.

    That can cost time, so ``torch.compile`` does without: it compiles again where the course
    differs. ``torch.compiler.is_exporting`` does not tell them apart, it is true in both.
    """
    return _any_size


@contextmanager
def any_size() -> Iterator[None]:
    """Inside, layers take the course that serves all sizes."""
    global _any_size
    before, _any_size = _any_size, True
    try:
        yield
    finally:
        _any_size = before


def round_up(length: int, step: int) -> int:
    """The lowest multiple of ``step`` that is not below ``length``, for lengths of at least 1.

    In this form the symbolic lengths of an exported graph stay short, stage after stage.
    """
    return ((length - 1) // step + 1) * step
