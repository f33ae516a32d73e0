"""A class in a file of the user's, by the name with which a config finds it."""

import sys
import traceback
from importlib import import_module
from pathlib import Path


def import_class(text: str) -> str:
    """Import the class that ``FILE.py:CLASS`` names.

    Returns:
        ``module.CLASS``, a ``type`` for configs: MMEngine finds it in this process, and in others
        where the folder of the file is in ``PYTHONPATH``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its name cannot be that of a module, it fails when it is imported, or it has
            no such class.
    """
    path, _, name = text.rpartition(':')
    file = Path(path).resolve()
    if not file.is_file():
        raise FileNotFoundError(f'{path!r} of {text!r} does not exist')
    if not file.stem.isidentifier():
        raise ValueError(f'{path!r} cannot be imported: give the file a name of letters and digits')
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # at the end, so that its files hide no package
    try:
        module = import_module(file.stem)
    except Exception as error:  # of any class that the file may raise
        raise ValueError(f'{path!r} cannot be imported: {_reason(error, file)}') from error
    if Path(module.__file__ or '').resolve() != file:
        raise ValueError(
            f'{path!r} has the name of another module, {module.__file__}: give the file another one'
        )
    if not isinstance(getattr(module, name, None), type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise ValueError(f'{path!r} has no class {name!r}: it has {", ".join(classes) or "none"}')
    return f'{file.stem}.{name}'


def _reason(error: Exception, file: Path) -> str:
    """What goes wrong when a file is imported, and in which line of it."""
    if isinstance(error, SyntaxError):  # which says where itself
        return f'{type(error).__name__}: {error}'
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == file]
    where = f' (line {lines[-1]})' if lines else ''
    return f'{type(error).__name__}: {error}{where}'
