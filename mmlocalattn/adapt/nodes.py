"""The parts of a config."""

from collections.abc import Iterator


def dicts(node: object) -> Iterator[dict]:
    """Every dict in nested dicts and lists, from the outermost to the innermost."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from dicts(child)
