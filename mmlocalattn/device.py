"""Whether a device can be used."""

import torch


def usable_device(name: str) -> torch.device:
    """The device of a name such as ``'cuda:1'``.

    Raises:
        ValueError: If no tensor can be put on it.
    """
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition('\n')[0]
        raise ValueError(f'device {name!r} cannot be used: {reason}') from error
