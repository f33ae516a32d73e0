"""JSON and YAML of strangers: whatever is wrong with it is a ValueError."""

import json
import re
from typing import Any

import yaml

MOST_NODES = 10_000_000
"""That a YAML file may have when what its aliases repeat is written out."""


HUGE = re.compile(rb'[\s:,\[]-?(\d{100,})')
"""A whole number whose square no floating-point number holds."""
_ZEROS = bytes(48 if 48 <= byte < 58 else 32 for byte in range(256))  # for digits


def check_numbers(text: bytes) -> None:
    """Look for whole numbers of a JSON text with which nothing can be computed.

    Raises:
        ValueError: At the first; says where.
    """
    # Looked for only where that many digits are: the search takes longer than the whole reading.
    if b'0' * 100 in text.translate(_ZEROS) and (huge := HUGE.search(text)):
        line = text.count(b'\n', 0, huge.start(1)) + 1
        raise ValueError(f'line {line} has a number of {len(huge[1])} digits')


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: If it is none, or nested deeper than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError('it is nested too deeply') from error


def parse_yaml(text: str) -> Any:
    """What a YAML text says, of plain values alone.

    Raises:
        ValueError: If it is none, has objects of Python, or is endless or huge once its aliases are
            written out.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _count(node, {})
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(' '.join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError('it is nested too deeply') from error


def _count(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many nodes there are in a node.

    Args:
        node: That is counted.
        sizes: Of the nodes that were counted before, by their ids; 0 for those around this one.
    """
    if id(node) not in sizes:
        sizes[id(node)] = 0
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        sizes[id(node)] = 1 + sum(_count(part, sizes) for part in parts)
    size = sizes[id(node)]
    if not 0 < size <= MOST_NODES:
        raise ValueError('it contains itself' if not size else 'it repeats itself without end')
    return size
