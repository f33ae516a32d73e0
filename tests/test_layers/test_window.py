from itertools import product

import pytest
import torch

from mmlocalattn.layers.window import fit_dilation, fit_window, map_windows


@pytest.mark.parametrize(
    ('size', 'kernel', 'dilation', 'expected'),
    [
        ((7, 9), (7, 7), (1, 1), ((7, 7), (1, 1))),
        ((6, 9), (7, 7), (1, 1), ((5, 7), (1, 1))),
        ((2, 9), (7, 7), (1, 1), ((1, 7), (1, 1))),
        ((28, 20), (7, 7), (4, 4), ((7, 5), (4, 4))),
        ((3, 28), (7, 7), (4, 4), ((1, 7), (1, 4))),
        ((1, 1), (29, 3), (6, 1), ((1, 1), (1, 1))),
    ],
)
def test_examples(size, kernel, dilation, expected):
    assert fit_window(size, kernel, dilation) == expected


def test_result_is_the_largest_odd_window_that_fits():
    for length, kernel, dilation in product(range(1, 40), range(1, 14, 2), range(1, 9)):
        (fitted, _), (step, _) = fit_window((length, 99), (kernel, 1), (dilation, 1))
        fits = [size for size in range(1, kernel + 1, 2) if size * dilation <= length]
        assert fitted == max(fits, default=1)
        assert step == (dilation if fitted > 1 else 1)


def test_dilation_is_the_largest_that_fits():
    for length, kernel, dilation in product(range(1, 40), range(1, 14, 2), range(1, 9)):
        (fitted, other) = fit_dilation((length, 99), (kernel, 3), (dilation, 33))
        fits = [step for step in range(1, dilation + 1) if kernel * step <= length]
        assert fitted == max(fits, default=1)
        assert other == 33


def test_dilation_falls_before_the_kernel():
    size, kernel = (20, 6), (7, 7)
    assert fit_dilation(size, kernel, (4, 4)) == (2, 1)
    assert fit_window(size, kernel, (2, 1)) == ((7, 5), (2, 1))


@pytest.mark.parametrize(
    ('size', 'shift', 'expected'),
    [
        ((6, 9), (0, 0), [(3, 3)]),
        ((6, 9), (1, 2), [(1, 2), (1, 3), (1, 1), (3, 2), (3, 3), (3, 1), (2, 2), (2, 3), (2, 1)]),
        ((7, 3), (0, 2), [(3, 3), (1, 3)]),
        ((1, 2), (2, 2), [(1, 2)]),
    ],
)
def test_map_windows_calls_once_for_each_size(size, shift, expected):
    calls, x = [], torch.randn(2, *size, 3)

    def double(windows, mask):
        assert mask is None
        calls.append(tuple(windows.shape[1:3]))
        return 2 * windows[..., :2]

    torch.testing.assert_close(map_windows(double, x, (3, 3), shift), 2 * x[..., :2])
    assert calls == expected


@pytest.mark.needs_torch('2.4', 'torch.compile of an operator')
def test_compiled_windows_are_cut_too():
    def double(windows, mask):
        assert mask is None
        return 2 * windows

    x = torch.randn(2, 9, 11, 3)
    compiled = torch.compile(map_windows, fullgraph=True, backend='eager')
    assert torch.equal(compiled(double, x, (4, 4), (1, 2)), 2 * x)
