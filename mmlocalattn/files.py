"""Files that are written whole or not at all."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name beside it, which becomes its own when the block ends.

    Args:
        path: Of the file; its folder is made.

    Yields:
        The path to write to, with the same suffix. What is there is removed if the block raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.stem}.partial{path.suffix}')
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write a JSON file."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1))
