"""Pure Python configs, whose types are classes, as configs whose types are names."""

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry

from mmlocalattn.adapt.nodes import dicts

TOOLBOXES = ('mmdet', 'mmseg', 'mmpretrain')
_KEYS = ('type', 'constructor', 'runner_type')  # of classes and functions


def with_type_names(cfg: Config) -> Config:
    """A config in which registered classes and functions are named.

    Pure Python configs (``from mmdet.models import FasterRCNN``, ``with read_base()``) hold the
    classes themselves, and often no ``default_scope``. Code that looks at the types of a config,
    and files that a config is written to, can do with names alone. A class has the name by which
    the registries of the config's toolbox know it, with the prefix of its package if that is
    another one; one that is not registered has its dotted path, which MMEngine builds as well.

    Args:
        cfg: Is not changed.

    Returns:
        ``cfg`` itself if its types are names already. ``default_scope`` is the toolbox that most
        types are of, unless the config has one.
    """
    types = [part[key] for part in dicts(cfg._cfg_dict) for key in _KEYS if key in part]
    classes = [value for value in types if _is_class(value)]
    if not classes:
        return cfg
    scope = cfg.get('default_scope') or _toolbox_of(cfg, classes)
    names = _registered_names(scope)
    imported = {*getattr(cfg, '_imported_names', ()), '__file__'}
    content = {
        key: _named(value, names)
        for key, value in cfg._cfg_dict.items()
        if key not in imported and not _is_class(value)
    }
    return Config({**content, 'default_scope': scope}, filename=cfg.filename)


def _is_class(value: Any) -> bool:
    return callable(value) and hasattr(value, '__qualname__')


def _toolbox_of(cfg: Config, classes: list[Any]) -> str:
    """The toolbox of the model, or the first one that any type is of."""
    model = (cfg.get('model') or {}).get('type')
    packages = [value.__module__.partition('.')[0] for value in [model, *classes] if value]
    return next((package for package in packages if package in TOOLBOXES), 'mmengine')


def _named(node: Any, names: Callable[[Any], str]) -> Any:
    if isinstance(node, Mapping):
        return {
            key: names(value) if key in _KEYS and _is_class(value) else _named(value, names)
            for key, value in node.items()
        }
    if isinstance(node, (list, tuple)):
        return type(node)(_named(value, names) for value in node)
    return node


def _registered_names(scope: str) -> Callable[[Any], str]:
    """How a config of a scope names a class or function."""

    def known(package: str) -> Iterator[tuple[Any, str]]:
        for registry in _registries(package):
            for name, value in registry.module_dict.items():
                yield value, name

    own, roots = (_first_names(known(package)) for package in (scope, 'mmengine'))

    def name_of(value: Any) -> str:
        package = value.__module__.partition('.')[0]
        if value in own:
            return own[value]
        if value in roots and roots[value] not in own.values():
            return roots[value]
        for other, name in known(package):
            if other is value and package not in ('mmcv', 'torch'):
                return f'{package}.{name}'
        return f'{value.__module__}.{value.__qualname__}'

    return name_of


def _first_names(known: Iterable[tuple[Any, str]]) -> dict[Any, str]:
    """Of several names of a class, the one that it was registered by first."""
    names: dict[Any, str] = {}
    for value, name in known:
        names.setdefault(value, name)
    return names


def _registries(package: str) -> list[Registry]:
    """The registries of ``<package>.registry``, of which there may be none."""
    try:
        module = importlib.import_module(f'{package}.registry')
    except ModuleNotFoundError:
        return []
    return [value for value in vars(module).values() if isinstance(value, Registry)]
