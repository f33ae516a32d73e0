"""Schemas of operators and of their backward operators.

Without PyTorch: setup.py loads this file alone, and writes what it reads in the operators' modules
into the extension.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_TENSORS = r'Tensor\?? \w+(?:, Tensor\?? \w+)*'
_SCHEMA = re.compile(rf'(\w+)\(({_TENSORS})((?:, (?!Tensor)[^,)]+)*)\) -> \(?({_TENSORS})\)?')
"""Name, tensors, other arguments, outputs."""


@dataclass(frozen=True)
class Schema:
    """An operator and its backward operator.

    Args:
        name: Of the operator; that of the other is ``_NAME_backward``.
        forward: Schema of the operator, as PyTorch writes it.
        backward: Schema of the backward operator.
        tensors: Names of the tensors, the first arguments.
        outputs: Names of the outputs.
        places: Of the tensors that have a gradient, in the order of the gradients.
    """

    name: str
    forward: str
    backward: str
    tensors: list[str]
    outputs: list[str]
    places: list[int]


def parse(
    schema: str,
    saved: Sequence[str] = (),
    parameters: Sequence[str] = (),
    constants: Sequence[str] = (),
) -> Schema:
    """Read a schema; the arguments are those of ``register_operator``.

    Raises:
        ValueError: If the schema is not of its form, or lacks what another argument names.
    """
    match = _SCHEMA.fullmatch(schema)
    if match is None:
        raise ValueError(f'must be NAME(tensors, other arguments) -> (tensors), got {schema!r}')
    name, inputs, others, results = match.groups()
    tensors, outputs = (re.findall(r'(\w+)(?:,|$)', text) for text in (inputs, results))
    kept = {*parameters, *constants}
    unknown = sorted((kept - {*tensors}) | ({*saved} - {*outputs}))
    if unknown:
        raise ValueError(f'no {", ".join(unknown)} in {schema!r}')
    arguments = [f'Tensor grad_{outputs[0]}', inputs, *(f'Tensor {output}' for output in saved)]
    places = [place for place, tensor in enumerate(tensors) if tensor not in constants]
    grads = ', '.join(f'Tensor grad_{tensors[place]}' for place in places)
    backward = f'_{name}_backward({", ".join(arguments)}{others}) -> ({grads})'
    return Schema(name, schema, backward, tensors, outputs, places)


def registered(source: str) -> Iterator[Schema]:
    """What the text of a module hands to ``register_operator``, in literals.

    Raises:
        ValueError: If something else than literals, or :func:`parse` does.
    """
    for statement in ast.parse(source).body:
        call = statement.value if isinstance(statement, ast.Expr) else None
        if isinstance(call, ast.Call) and ast.unparse(call.func) == 'register_operator':
            names = {
                keyword.arg: ast.literal_eval(keyword.value)
                for keyword in call.keywords
                if keyword.arg in ('saved', 'parameters', 'constants')
            }
            yield parse(ast.literal_eval(call.args[0]), **names)
