"""Many files, read at the same time: decoding pictures leaves Python to other threads."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rich.progress import track

T = TypeVar('T')
FEW = 200  # items that no progress bar is shown for


def in_threads(look: Callable[[str], T], paths: Sequence[str], name: str) -> Iterator[T]:
    """The results of a function for some files, in their order, with a progress bar for many.

    Args:
        look: Called with each path.
        paths: Of the files.
        name: What they are, for the progress bar.
    """
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        results = pool.map(look, paths)
        if len(paths) > FEW:
            results = iter(track(results, description=f'look at {name}', total=len(paths)))
        yield from results
