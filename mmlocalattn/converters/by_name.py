"""Released weights by name: downloaded once, checked, converted and loaded.

The files lie where PyTorch and MMEngine keep those of addresses, ``checkpoints`` in the folder of
``torch.hub.get_dir()`` (``TORCH_HOME`` moves it), under the names that their authors gave them.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from mmlocalattn.converters.convert import (
    FAMILIES,
    Converted,
    convert_file,
    save_converted,
)
from mmlocalattn.converters.released import Release, find_release
from mmlocalattn.download import DownloadError, download, sha256_of
from mmlocalattn.files import check_file, whole_file
from mmlocalattn.registry import WEIGHT_INITIALIZERS
from mmlocalattn.training.weights import load_content

_STAGES = 4
"""Of every family."""


def cached_file(release: Release) -> Path:
    """Where the file of a release is kept, or would be."""
    return Path(torch.hub.get_dir(), 'checkpoints', release.file)


def fetch_released(name: str, file: str | Path | None = None) -> Path:
    """The released file of a name, which is downloaded if it is not there.

    Args:
        name: In :data:`~mmlocalattn.converters.released.RELEASED`.
        file: The released file, if it is elsewhere.

    Raises:
        OSError: If it cannot be downloaded, for want of a network or space among others.
        ValueError: If there is no such release, a person has to download it, or the file is
            another one.
    """
    release = find_release(name)
    path = cached_file(release) if file is None else Path(file)
    if not path.exists():
        if file is not None:
            raise FileNotFoundError(f'released file {str(path)!r} does not exist')
        if release.url is None:
            raise ValueError(
                f'{name} has to be downloaded by a person: {release.by_hand}. Visit {release.page}'
                f' (from {release.repository}) and give {_yours(path)}'
            )
        _download(release, path)
    if release.size is not None and path.stat().st_size != release.size:
        raise ValueError(f'{path} has {path.stat().st_size} bytes and {name} has {release.size}')
    if release.sha256 is not None and (found := sha256_of(path)) != release.sha256:
        raise ValueError(f'{path} has sha256 {found} and {name} has {release.sha256}')
    return path


def _download(release: Release, path: Path) -> None:
    assert release.url is not None
    print_log(
        f'{release.name}: {release.url}, of {release.repository}, licence {release.licence}',
        logger='current',
    )
    try:
        download(release.url, path, release.sha256, FAMILIES[release.family].load)
    except DownloadError as error:
        raise DownloadError(
            f'{release.name}: {error}. See {release.repository}, or give {_yours(path)}'
        ) from error


def _yours(path: Path) -> str:
    return (
        'a file that you have: file=FILE in init_cfg, --from FILE of tools/convert_checkpoint.py, '
        f'or put it to {path} (TORCH_HOME moves that folder)'
    )


def load_released(name: str, file: str | Path | None = None) -> Converted:
    """The weights of a release by our names; all names and shapes are those of its model.

    Args:
        name: In :data:`~mmlocalattn.converters.released.RELEASED`.
        file: The released file; by default it is downloaded once.

    Raises:
        OSError: As for :func:`fetch_released`.
        ValueError: As for it, or if the file is of another model.
    """
    release, path = find_release(name), fetch_released(name, file)
    config = None if release.config is None else f'mmlocalattn::{release.config}'
    try:
        return convert_file(release.family, path, release.arch, config)
    except ValueError as error:
        raise ValueError(f'{name}: {error}') from error


def keep_released(name: str, file: str | Path | None = None) -> tuple[Path, Converted]:
    """Have a released file where it is found by its name, as the authors gave it.

    Args:
        name: In :data:`~mmlocalattn.converters.released.RELEASED`.
        file: Is copied; by default the file is downloaded.

    Returns:
        Where it is, and its weights by our names.

    Raises:
        OSError: As for :func:`fetch_released`, or if it cannot be copied.
        ValueError: As for :func:`load_released`.
    """
    converted, path = load_released(name, file), cached_file(find_release(name))
    if file is not None and not (path.exists() and path.samefile(file)):
        with whole_file(path) as partial:
            shutil.copyfile(file, partial)
    return path, converted


def save_released(
    name: str, dst: str | Path, file: str | Path | None = None
) -> tuple[Path, Converted]:
    """Write released weights as a checkpoint of ours.

    Args:
        name: In :data:`~mmlocalattn.converters.released.RELEASED`.
        dst: Checkpoint to write, with the weights as ``state_dict``.
        file: The released file; by default it is downloaded once.

    Returns:
        What was written, where and which weights.

    Raises:
        OSError: As for :func:`fetch_released`, or if ``dst`` cannot be written.
        ValueError: As for :func:`load_released`.
    """
    check_file(dst)
    converted = load_released(name, file)
    save_converted(converted, name, dst)
    return Path(dst), converted


@WEIGHT_INITIALIZERS.register_module()
class Released:
    """``init_cfg=dict(type='mmlocalattn.Released', name='nat_t_in1k')`` of a backbone or a model.

    What fits is loaded; a table says what does not, as the head of a model for other classes. In a
    backbone, the output norms that classifiers do not have keep the values they are built with.

    Args:
        name: In :data:`~mmlocalattn.converters.released.RELEASED`.
        file: The released file; by default it is downloaded once.

    Raises:
        OSError: As for :func:`fetch_released`.
        ValueError: As for :func:`load_released`, or if nothing fits.
    """

    def __init__(self, name: str, file: str | None = None) -> None:
        self.name = name
        self.file = file

    def load(self) -> Converted:
        """The weights by the names of a whole model."""
        return load_released(self.name, self.file)

    def __call__(self, module: nn.Module) -> None:
        """Load the weights into a backbone or a whole model."""
        _initialise_parts(module)
        is_whole = hasattr(module, 'backbone')
        load_content(
            module,
            self.load().weights,
            self.name,
            prefix='' if is_whole else 'backbone.',
            optional=() if is_whole else may_be_absent(module),
            allow_partial=True,
        )
        print_log(f'load released weights {self.name} in {type(module).__name__}', logger='current')


def may_be_absent(backbone: nn.Module) -> list[str]:
    """Beginnings of the names of output norms, and of stages that a backbone does not build."""
    built = len(getattr(backbone, 'stages', ()))
    return ['output_norms.', *(f'stages.{stage}.' for stage in range(built, _STAGES))]


def _initialise_parts(module: nn.Module) -> None:
    """Initialise what a module has, as MMEngine does it before it loads a checkpoint.

    It does so for its own ``Pretrained`` alone; parts that were initialised behind others would
    lose what those had loaded.
    """
    parts: Iterable[Any] = module.children()
    for part in parts:
        if hasattr(part, 'init_weights') and not getattr(part, 'is_init', False):
            part.init_weights()
            part.is_init = True
