"""Names of released tensors."""

import re
from collections.abc import Callable, Sequence

Renames = Sequence[tuple[str, str | Callable[[re.Match], str]]]
"""Regular expressions, and what takes the place of what they match."""


def renamed(name: str, renames: Renames) -> str | None:
    """A name that the first expression which matches has changed; None where none does."""
    for pattern, ours in renames:
        changed, count = re.subn(pattern, ours, name)
        if count:
            return changed
    return None
