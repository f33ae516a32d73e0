"""Schemas read off the text of modules."""

from pathlib import Path

import pytest

import mmlocalattn.ops
from mmlocalattn.ops._schema import registered

MODULES = sorted(Path(mmlocalattn.ops.__file__).parent.glob('*.py'))


def test_every_operator_is_found() -> None:
    schemas = [schema for file in MODULES for schema in registered(file.read_text())]
    assert sorted(schema.name for schema in schemas) == sorted(mmlocalattn.ops.OPS)


def test_a_call_is_read() -> None:
    source = """
# A call elsewhere is none.
def f(): register_operator('other(Tensor x) -> Tensor output')
register_operator(
    'scale(Tensor x, Tensor? y, Tensor table, '
    'float factor) -> (Tensor output, Tensor extra)',
    reference=lambda x: x,
    saved=('extra',),
    parameters=('y',),
    constants=('table',),
)
"""
    (schema,) = registered(source)
    assert (schema.name, schema.places) == ('scale', [0, 1])
    assert schema.forward.startswith('scale(Tensor x, Tensor? y, Tensor table, float factor) -> (')
    assert schema.backward == (
        '_scale_backward(Tensor grad_output, Tensor x, Tensor? y, Tensor table, Tensor extra, '
        'float factor) -> (Tensor grad_x, Tensor grad_y)'
    )


def test_what_is_computed_is_refused() -> None:
    with pytest.raises(ValueError, match='malformed node'):
        list(registered("register_operator('scale' + tensors())"))
