"""Whether a device can be used."""

import pytest
import torch

from mmlocalattn.device import usable_device


def test_usable_device() -> None:
    assert usable_device('cpu') == torch.device('cpu')


@pytest.mark.parametrize('name', ['cuda:99', 'abacus'])
def test_says_why_not_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=f"^device '{name}' cannot be used: [^\\n]+$"):
        usable_device(name)
