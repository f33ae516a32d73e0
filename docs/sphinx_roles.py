"""Let the API reference show docstrings that are written with Sphinx's roles, as OpenMMLab's are."""

import re
from typing import Any

import griffe

ROLE = re.compile(r':(?:class|func|meth|attr|data|mod):`(~?)([\w.]+)`')
LITERAL_BLOCK = re.compile(r'::(\n\n(?= {4,}))')


class SphinxRoles(griffe.Extension):
    """Turns roles into links of mkdocstrings and ``::`` into a colon before the indented block."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            text = ROLE.sub(lambda role: _link(obj, *role.groups()), obj.docstring.value)
            obj.docstring.value = LITERAL_BLOCK.sub(r':\1', text)


def _link(obj: griffe.Object, is_short: str, name: str) -> str:
    """``name`` as code, with a link if its full path is written or it is beside ``obj``."""
    title = f'`{name.rpartition(".")[2] if is_short else name}`'
    if '.' in name:
        return f'[{title}][{name}]'
    scopes = (obj, obj.parent, obj.module)
    owner = next((scope for scope in scopes if scope is not None and name in scope.members), None)
    return title if owner is None else f'[{title}][{owner.path}.{name}]'
