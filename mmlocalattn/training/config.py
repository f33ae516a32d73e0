"""Reading configs."""

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmengine.config import Config

from mmlocalattn.adapt.nodes import channels_of, preprocessor_of

__all__ = ['channels_of', 'find_config', 'load_config', 'preprocessor_of']


def load_config(path: str, options: Mapping | None = None) -> Config:
    """Read a config whose ``_base_`` entries may also say ``mmlocalattn::<file>``.

    Args:
        path: Of the config file, or ``<package>::<file>`` for one that a package brings. (MMEngine
            alone finds no ``mmseg::<file>`` of onedl's distribution.)
        options: Entries to change, as ``{'model.backbone.arch': 'tiny'}``.

    Raises:
        FileNotFoundError: If the file or one of its bases does not exist.
        ModuleNotFoundError: If a package the config needs is not installed.
    """
    file = find_config(path)
    with _bases_of_packages():
        cfg = Config.fromfile(str(file))
    cfg.merge_from_dict(options or {})
    scope = cfg.get('default_scope', 'mmengine')
    if importlib.util.find_spec(scope) is None:
        raise ModuleNotFoundError(_not_installed(path, scope))
    return cfg


def find_config(path: str) -> Path:
    """The file of a config.

    Args:
        path: As for :func:`load_config`.

    Raises:
        FileNotFoundError: If it does not exist.
        ModuleNotFoundError: If the package that would bring it is not installed.
    """
    try:
        file = Path(_find_base(path, '')[0] if '::' in path else path)
        if not file.is_file():
            raise FileNotFoundError(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'config {path!r} does not exist') from error
    return file


@contextlib.contextmanager
def _bases_of_packages() -> Iterator[None]:
    """Let MMEngine find the bases of a config through :func:`_find_base`.

    This replaces a private function, for which MMEngine 0.10.7 has no public way. Its own does not
    know this package, reads all metafiles of a package for each base, does not find names with a
    ``+`` or a second dot, and asks for a package by the name of its distribution, which onedl's
    have changed.
    """
    original = Config.__dict__['_get_cfg_path']
    Config._get_cfg_path = staticmethod(_find_base)
    try:
        yield
    finally:
        Config._get_cfg_path = original


def _find_base(base: str, child: str) -> tuple[str, str | None]:
    """The file (and its scope) that ``base`` means in the ``_base_`` of the config ``child``."""
    package, separator, name = base.partition('::')
    if not separator:
        return str(Path(child).parent / base), None
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(_not_installed(child or base, package))
    root = Path(spec.origin).parent
    folder = root / '.mim' / 'configs'
    if package != 'mmlocalattn':
        scope: str | None = package
    else:
        scope = None
        folder = folder if folder.is_dir() else root.parent / 'configs'
    if not (folder / name).is_file():
        raise FileNotFoundError(f'{package} brings no config {name!r}')
    return str(folder / name), scope


def _not_installed(path: str, package: str) -> str:
    return (
        f'config {path!r} needs {package}, which is not installed: '
        'pip install -r requirements/mminstall.txt'
    )
