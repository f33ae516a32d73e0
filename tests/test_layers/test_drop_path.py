import pytest
import torch

from mmlocalattn.layers.drop_path import DropPath, drop_path_rates


def test_drops_whole_samples_and_keeps_the_mean():
    x = torch.ones(4000, 2, 3)
    y = DropPath(0.25)(x)
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert y.mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(('rate', 'training'), [(0.9, False), (0.0, True)])
def test_does_nothing_in_eval_mode_or_at_rate_0(rate, training):
    x = torch.rand(2, 3)
    assert DropPath(rate).train(training)(x) is x


@pytest.mark.parametrize('rate', [-0.1, 1.0])
def test_rejects_other_rates(rate):
    with pytest.raises(ValueError, match='at least 0 and below 1'):
        DropPath(rate)


def test_rates_rise_linearly_over_all_blocks():
    assert drop_path_rates(0.5, (2, 1, 3)) == [[0, 0.1], [0.2], [pytest.approx(0.3), 0.4, 0.5]]
    assert drop_path_rates(0.5, (1,)) == [[0]]
