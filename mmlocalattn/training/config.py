"""Reading configs."""

import ast
import contextlib
import copy
import importlib.util
import os
import traceback
from collections.abc import Iterator, Mapping
from inspect import signature
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from mmlocalattn.adapt.nodes import dicts
from mmlocalattn.adapt.type_names import with_type_names
from mmlocalattn.data.text_files import parse_json, parse_yaml


def load_config(path: str, options: Mapping | None = None) -> Config:
    """Read a config whose ``_base_`` entries may also say ``mmlocalattn::<file>``.

    Args:
        path: Of the config file, or ``<package>::<file>`` for one that a package brings. (MMEngine
            alone finds no ``mmseg::<file>`` of onedl's distribution.)
        options: Entries to change, as ``{'model.backbone.arch': 'tiny'}``.

    Returns:
        The config, whose types are names also if it is a pure Python config, and which has a
        visualizer if it is of one of the three toolboxes. Without test data of its own it tests
        with those for validation.

    Raises:
        FileNotFoundError: If the file or one of its bases does not exist.
        ModuleNotFoundError: If a package the config needs is not installed.
        ValueError: If the config does not run as Python, is of MMDetection 2 and its like, or an
            option does not fit it; names file and line where there is one.
    """
    cfg = read_config(path)
    complete_config(cfg, options or {})
    return cfg


def read_config(path: str) -> Config:
    """A config as it is written, for changes before :func:`complete_config`.

    Args:
        path: As for :func:`load_config`.

    Raises:
        FileNotFoundError, ModuleNotFoundError, ValueError: As :func:`load_config`.
    """
    file = find_config(path)
    _check_syntax(file)
    with _bases_of_packages(), _errors_with_lines(file):
        cfg = with_type_names(Config.fromfile(str(file)))
    _refuse_old_config(cfg)
    return cfg


def complete_config(cfg: Config, options: Mapping) -> None:
    """Change entries of a config, and give it a visualizer and test data.

    Args:
        cfg: Of :func:`read_config`. Changed in place.
        options: As for :func:`load_config`.

    Raises:
        ModuleNotFoundError: If the package of its scope is not installed.
        ValueError: If an option does not fit it.
    """
    has_tests = cfg.get('test_dataloader') is not None
    _merge(cfg, options)
    check_scope(cfg)
    scope = cfg.get('default_scope')
    if cfg.get('visualizer') is None and scope in VISUALIZERS:
        cfg.visualizer = dict(
            type=VISUALIZERS[scope],
            name='visualizer',
            vis_backends=[dict(type='LocalVisBackend')],
        )
    if not has_tests and cfg.get('val_dataloader') is not None:
        for part in ('dataloader', 'evaluator', 'cfg'):
            cfg[f'test_{part}'] = copy.deepcopy(cfg.get(f'val_{part}'))
        if cfg.test_cfg:
            cfg.test_cfg = {}  # of MMEngine's loop, not the one for validation
        _merge(cfg, options)  # those for the test


def check_scope(cfg: Config) -> None:
    """Raise a ModuleNotFoundError if the package of a config's scope is not installed."""
    scope = str(cfg.get('default_scope') or 'mmengine')
    if importlib.util.find_spec(scope) is None:
        raise ModuleNotFoundError(_not_installed(str(cfg.filename), scope))


def _merge(cfg: Config, options: Mapping) -> None:
    _refuse_variables(cfg, options)
    try:
        cfg.merge_from_dict(dict(options))
    except (AttributeError, KeyError, TypeError) as error:
        message = f'the options {dict(options)} do not fit {cfg.filename}: {error}'
        raise ValueError(message) from error
    _read_classes(cfg)


def _refuse_variables(cfg: Config, options: Mapping) -> None:
    """Raise a ValueError for an option that changes a variable which the file has used already."""
    for name in options:
        key, _, rest = name.partition('.')
        if rest or key not in cfg or key in signature(Runner.__init__).parameters:
            continue
        uses = [path for path in _paths(cfg._cfg_dict, key, cfg[key]) if path != key]
        if uses:
            raise ValueError(
                f'{key} is a variable of {cfg.filename}, which has used its value already: set '
                f'{", ".join(uses[:4])}{" ..." if len(uses) > 4 else ""} instead'
            )


def _paths(node: object, key: str, value: object, path: str = '') -> Iterator[str]:
    """Where a config has an entry of this name and value."""
    if isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    if isinstance(node, Mapping):
        for name, inner in node.items():
            where = f'{path}.{name}'.lstrip('.')
            if name == key and inner == value:
                yield where
            yield from _paths(inner, key, value, where)


VISUALIZERS = {
    'mmdet': 'DetLocalVisualizer',
    'mmseg': 'SegLocalVisualizer',
    'mmpretrain': 'UniversalVisualizer',
}
"""What draws for a config that names nothing, by its scope."""


@contextlib.contextmanager
def _errors_with_lines(file: Path) -> Iterator[None]:
    """Raise a ValueError of one line, with file and line, for whatever a config does wrong."""
    try:
        yield
    except (OSError, ModuleNotFoundError, ValueError):
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame for frame in frames if frame.name == '<module>']  # configs, not functions
        place = f'{lines[-1].filename}, line {lines[-1].lineno}' if lines else str(file)
        reason = ' '.join(str(error).partition(', the current sys.path')[0].split())
        raise ValueError(f'config {place}: {type(error).__name__}: {reason}') from error


def _check_syntax(file: Path) -> None:
    """Raise a ValueError that names file and line if a config is no Python, YAML or JSON."""
    if file.suffix != '.py':
        # MMEngine's reader of YAML makes objects of Python, too.
        name, parse = ('JSON', parse_json) if file.suffix == '.json' else ('plain YAML', parse_yaml)
        try:
            parse(file.read_text(encoding='utf-8'))
        except ValueError as error:
            raise ValueError(f'config {file} is no {name}: {error}') from error
        return
    try:
        ast.parse(file.read_text(encoding='utf-8'))
    except SyntaxError as error:
        raise ValueError(f'config {file}, line {error.lineno}: {error.msg}') from error
    except UnicodeDecodeError as error:
        raise ValueError(f'config {file} is not text in UTF-8: {error}') from error


_OLD_ENTRIES = ('data', 'optimizer', 'optimizer_config', 'lr_config', 'total_epochs', 'runner')


def _refuse_old_config(cfg: Config) -> None:
    """Raise a ValueError for a config of MMDetection 2, MMSegmentation 0 or MMClassification 0."""
    old = [key for key in _OLD_ENTRIES if key in cfg]
    loaders = cfg.get('data')
    is_old = isinstance(loaders, Mapping) and 'samples_per_gpu' in loaders
    if (is_old or len(old) > 1) and 'train_dataloader' not in cfg:
        raise ValueError(
            f'config {cfg.filename} is of MMDetection 2, MMSegmentation 0 or MMClassification 0 '
            f'({", ".join(old)}): there are train_dataloader, optim_wrapper, param_scheduler and '
            'train_cfg now; write its changes as a config whose _base_ is one of today, '
            '`mmdet::FILE`'
        )


def _read_classes(cfg: Config) -> None:
    """Make the names of classes names again: ``--cfg-options`` reads '0' as a number.

    One name alone becomes a tuple of it; MMEngine would take its letters for classes. That of an
    existing file with names is left alone.
    """
    for part in dicts(cfg._cfg_dict):
        meta = part.get('metainfo')
        if not isinstance(meta, dict):
            continue
        classes = meta.get('classes')
        if isinstance(classes, (list, tuple)):
            meta['classes'] = tuple(str(name) for name in classes)
        elif isinstance(classes, (int, float)) or (
            isinstance(classes, str) and not Path(classes).is_file()
        ):
            meta['classes'] = (str(classes),)


def find_config(path: str) -> Path:
    """The file of a config.

    Args:
        path: As for :func:`load_config`.

    Raises:
        FileNotFoundError: If it does not exist.
        ModuleNotFoundError: If the package that would bring it is not installed.
        ValueError: If it is no file of a kind that MMEngine reads.
    """
    try:
        file = Path(_find_base(path, '')[0] if '::' in path else path)
        if not file.is_file():
            raise FileNotFoundError(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'config {path!r} does not exist') from error
    if file.suffix not in ('.py', '.yml', '.yaml', '.json'):
        raise ValueError(f'config {path!r} is no .py, .yml, .yaml or .json file')
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
    bases: dict[str, set[str]] = {}  # of each file

    def find(base: str, child: str) -> tuple[str, str | None]:
        path, scope = _find_base(base, child)
        bases.setdefault(os.path.realpath(child), set()).add(os.path.realpath(path))
        if _leads_to(bases, os.path.realpath(path), os.path.realpath(child)):
            raise ValueError(f'config {child} has {base!r} among its _base_, and is a base of it')
        return path, scope

    Config._get_cfg_path = staticmethod(find)
    try:
        yield
    finally:
        Config._get_cfg_path = original


def _leads_to(bases: Mapping[str, set[str]], start: str, end: str) -> bool:
    """Whether a file is another one, or has it among its bases, of those that are known."""
    return start == end or any(_leads_to(bases, base, end) for base in bases.get(start, ()))


def _find_base(base: str, child: str) -> tuple[str, str | None]:
    """The file (and its scope) that ``base`` means in the ``_base_`` of the config ``child``."""
    package, separator, name = base.partition('::')
    if not separator:
        file = Path(child).parent / base
        if not file.is_file():
            raise FileNotFoundError(f'{str(file)!r}, a _base_ of {child}, does not exist')
        _check_syntax(file)
        return str(file), None
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
    """What to say if a config needs a package that is not there."""
    return (
        f'config {path!r} needs {package}, which is not installed: '
        'pip install -r requirements/mminstall.txt'
    )
