"""The parts of a config."""

from collections.abc import Iterator, Mapping
from typing import Any


def dicts(node: object) -> Iterator[dict]:
    """Every dict in nested dicts and lists, from the outermost to the innermost."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from dicts(child)


def named_dicts(node: object, name: str) -> Iterator[tuple[str, dict]]:
    """Every dict in nested dicts and lists with what ``--cfg-options`` calls it.

    Args:
        node: A part of a config.
        name: Of the part, as ``'model'``.
    """
    if isinstance(node, dict):
        yield name, node
        children = list(node.items())
    else:
        children = list(enumerate(node)) if isinstance(node, (list, tuple)) else []
    for key, child in children:
        yield from named_dicts(child, f'{name}.{key}')


def preprocessor_of(cfg: Any) -> Mapping:
    """The data preprocessor of a config, in its model or, as in mmpretrain, beside it."""
    model = cfg.get('model') or {}
    return model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}


def channels_of(cfg: Any) -> int:
    """Channels of the images that the model of a config takes.

    They are what its backbone says, else as many as the means of the data preprocessor, else 3.
    """
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    means = preprocessor_of(cfg).get('mean')
    return backbone.get('in_channels') or (len(means) if means else 3)
