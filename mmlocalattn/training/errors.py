"""What stops a run that its user can mend."""

import contextlib
from collections.abc import Iterator


class RunError(ValueError):
    """A run that was stopped from inside, by a hook; the message says what to do."""


@contextlib.contextmanager
def run_errors() -> Iterator[None]:
    """End the program with ``error: ...`` for a :class:`RunError`, and for nothing else.

    Whatever else goes wrong inside a run is not foreseen: its traceback stays.
    """
    try:
        yield
    except RunError as error:
        raise SystemExit(f'error: {error}') from None
