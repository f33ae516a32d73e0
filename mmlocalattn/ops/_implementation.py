"""Which implementation of the operators serves the tensors of a device: the user chooses."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

IMPLEMENTATIONS = ('kernels', 'reference', 'natten')
"""Compiled kernels, where they are built; PyTorch; NATTEN, for what it serves, else kernels."""

VARIABLE = 'MMLOCALATTN_CUDA'
"""Of the environment: the implementation for CUDA, read when the operators are imported."""

REFERENCES: dict[str, Callable] = {}
"""By the name of an operator or backward operator; ``register_operator`` adds them."""

_chosen: dict[str, str] = {}  # device type to implementation, where that is not 'kernels'
_overrides: dict[str, torch.library.Library] = {}


@contextlib.contextmanager
def implementation(name: str, device: str = 'cuda') -> Iterator[None]:
    """Let an implementation serve the tensors of a device, in all threads, inside the block.

    ``with implementation('reference'):`` runs forward and backward passes of every operator in
    PyTorch. ``'natten'`` hands neighborhood and sparse scan attention to an installed NATTEN (0.20
    or later); what NATTEN does not serve goes to the kernels, and a warning says so once. A
    backward pass belongs to NATTEN if its forward pass did, and else to what is chosen when it
    runs. The environment variable ``MMLOCALATTN_CUDA`` chooses for a whole process. Write the
    block around a function that torch.compile compiles, not into it.

    Args:
        name: ``'kernels'``, ``'reference'`` or ``'natten'``.
        device: Type of the device.

    Raises:
        ValueError: If there is no implementation of that name.
        ImportError: If NATTEN is asked for and does not import, or is too old.
    """
    before = chosen(device)
    choose(name, device)
    try:
        yield
    finally:
        choose(before, device)


def chosen(device: str) -> str:
    """The implementation for a type of device."""
    return _chosen.get(device, 'kernels')


def is_through_natten(tensor: Tensor) -> bool:
    """Whether NATTEN is chosen for the device of a tensor."""
    return bool(_chosen) and chosen(tensor.device.type) == 'natten'


def choose(name: str, device: str) -> None:
    """Let an implementation serve the tensors of a device from now on, see `implementation`."""
    if name not in IMPLEMENTATIONS:
        raise ValueError(f'must be one of {", ".join(IMPLEMENTATIONS)}, got {name!r}')
    if name == 'natten':
        _import_natten()
    _overrides.pop(device, None)
    _chosen.pop(device, None)
    if name != 'kernels':
        _chosen[device] = name
    if name == 'reference':
        _overrides[device] = _override_kernels(device)


def choose_from_environment() -> None:
    """Follow ``MMLOCALATTN_CUDA``.

    Raises:
        ValueError: If there is no implementation of that name.
        ImportError: If NATTEN is asked for and does not import, or is too old.
    """
    name = os.environ.get(VARIABLE, 'kernels')
    try:
        choose(name, 'cuda')
    except ValueError as error:
        raise ValueError(f'{VARIABLE} {error}') from None


def is_compiled(name: str, device: str) -> bool:
    """Whether there is something other than the reference for an operator and a device."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f'mmlocalattn::{name}', device.upper())


def _override_kernels(device: str) -> torch.library.Library:
    """Register the references in place of kernels, for as long as the result lives."""
    library = torch.library.Library('mmlocalattn', 'IMPL')
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Warning only once for all operators')  # overriding
        for name, reference in REFERENCES.items():
            if is_compiled(name, device):
                library.impl(name, reference, device.upper())
    return library


def _import_natten() -> None:
    try:
        from mmlocalattn.ops import through_natten  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'natten is chosen, but it does not import ({error}): `pip install '
            f'--no-build-isolation natten==0.21.7`, or choose kernels or reference'
        ) from error
