import math

import pytest
import torch

from mmlocalattn.layers.rotary import rotary_table


def test_table_equals_the_formula():
    head_dim = 16
    sin, cos = rotary_table(3, 5, head_dim)
    assert sin.shape == cos.shape == (3, 5, head_dim)
    assert sin.dtype == cos.dtype == torch.float32
    for row in range(3):
        for column in range(5):
            for channel in range(head_dim):
                index = row if channel < head_dim // 2 else column
                pair = channel % (head_dim // 2) // 2
                angle = index / 10000 ** (pair / (head_dim // 4 - 1))
                assert sin[row, column, channel] == pytest.approx(math.sin(angle), abs=1e-6)
                assert cos[row, column, channel] == pytest.approx(math.cos(angle), abs=1e-6)


def test_angles_are_the_released_buffer(golden):
    arrays = golden('ssvit_small_224x256')
    for stage, head_dim in enumerate((16, 16, 32, 32)):
        angle = torch.from_numpy(arrays[f'param/layers.{stage}.RoPE.angle'])
        sin, _ = rotary_table(2, 2, head_dim)
        assert torch.equal(sin[1, 0, : head_dim // 2], angle.sin())
        assert torch.equal(sin[0, 1, head_dim // 2 :], angle.sin())


def test_smallest_head():
    sin, cos = rotary_table(1, 2, 4)
    assert sin[0, 1].tolist() == pytest.approx([0, 0, math.sin(1), math.sin(1)])
    assert cos[0, 0].tolist() == [1, 1, 1, 1]


def test_rejects_other_head_dims():
    with pytest.raises(ValueError, match='multiple of 4, got head_dim=6'):
        rotary_table(2, 2, 6)
