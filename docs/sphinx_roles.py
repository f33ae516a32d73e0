"""Let the API reference show docstrings with Sphinx's roles, as OpenMMLab writes them."""

import re
from typing import Any

import griffe

ROLE = re.compile(r':(?:class|func|meth|attr|data|mod):`(~?)([\w.]+)`')
LITERAL_BLOCK = re.compile(r'::(\n\n(?= {4,}))')
TABLE = re.compile(r'^=+(?:  =+)+\n(?:.+(?:\n|\Z))+', re.MULTILINE)


class SphinxRoles(griffe.Extension):
    """Turns roles into links, and tables and what follows ``::`` into code blocks."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            text = ROLE.sub(lambda role: _link(obj, *role.groups()), obj.docstring.value)
            text = LITERAL_BLOCK.sub(r':\1', text)
            obj.docstring.value = TABLE.sub(_code_block, text)


def _link(obj: griffe.Object, is_short: str, name: str) -> str:
    """``name`` as code, with a link if it is this package's: a full path, or a neighbor of obj."""
    title = f'`{name.rpartition(".")[2] if is_short else name}`'
    if name.startswith('mmlocalattn.'):
        return f'[{title}][{name}]'
    for scope in (obj, obj.parent, obj.module):
        member = scope.members.get(name) if scope is not None else None
        if member is not None and not member.is_alias:
            return f'[{title}][{member.path}]'
    return title


def _code_block(table: re.Match) -> str:
    return '```text\n' + table[0].rstrip().replace('``', '') + '\n```\n'
