"""The names that a command line offers are those of the table."""

from mmlocalattn.converters import families
from mmlocalattn.converters.convert import FAMILIES


def test_names() -> None:
    assert tuple(FAMILIES) == families.NAMES
