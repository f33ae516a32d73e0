import pytest

from mmlocalattn.layers.scan_geometry import ScanGeometry, adaptive_scan, spread_scan


def released_rule(side, grid_first):
    """``ConvDecop.forward``'s loop, in its own terms: (local kernel, anchor kernel, dilation)."""

    def to_odd(size):
        return size if size % 2 else size + 1

    window, grid = (side // 7, 7) if grid_first else (7, side // 7)
    local = to_odd(window) if window > 1 else 1
    if grid <= 1:
        return local, 1, 1
    dilation = window
    while to_odd(grid) * dilation > side:
        dilation -= 1
    return local, to_odd(grid), dilation


@pytest.mark.parametrize('grid_first', [False, True])
def test_adaptive_is_the_released_rule_wherever_that_runs(grid_first):
    for side in range(7, 400):
        local, anchor, dilation = released_rule(side, grid_first)
        expected = ScanGeometry((local,) * 2, (anchor,) * 2, (dilation,) * 2)
        assert adaptive_scan(side, side, grid_first) == expected
        assert adaptive_scan(side + 5, side, grid_first) == expected
        assert adaptive_scan(side, 3 * side, grid_first) == expected


# Kernels and dilation at stride 4, 8, 16, 32, for local-first then grid-first blocks.
@pytest.mark.parametrize(
    ('sides', 'local_first', 'grid_first'),
    [
        (
            (56, 28, 14, 7),
            [(7, 9, 6), (7, 5, 5), (7, 3, 4), (7, 1, 1)],
            [(9, 7, 8), (5, 7, 4), (3, 7, 2), (1, 7, 1)],
        ),
        (
            (128, 64, 32, 16),
            [(7, 19, 6), (7, 9, 7), (7, 5, 6), (7, 3, 5)],
            [(19, 7, 18), (9, 7, 9), (5, 7, 4), (3, 7, 2)],
        ),
        (
            (200, 100, 50, 25),
            [(7, 29, 6), (7, 15, 6), (7, 7, 7), (7, 3, 7)],
            [(29, 7, 28), (15, 7, 14), (7, 7, 7), (3, 7, 3)],
        ),
    ],
    ids=['224', '512', '800'],
)
def test_adaptive_at_usual_image_sizes(sides, local_first, grid_first):
    for order, expected in ((False, local_first), (True, grid_first)):
        scans = [adaptive_scan(side, side, order) for side in sides]
        assert [tuple(pair[0] for pair in scan) for scan in scans] == expected


def test_every_window_fits_every_small_map():
    for height in range(1, 24):
        for width in range(1, 24):
            for scan in (
                adaptive_scan(height, width),
                adaptive_scan(height, width, grid_first=True),
                spread_scan(height, width, 9, 7),
                spread_scan(height, width, 7, 9, anchor_dilation=3),
            ):
                for kernel, dilation in zip(scan.anchor_kernel, scan.anchor_dilation, strict=True):
                    assert kernel % 2 == 1
                    assert dilation >= 1
                for axis, length in enumerate((height, width)):
                    assert scan.local_kernel[axis] <= length
                    assert scan.anchor_kernel[axis] * scan.anchor_dilation[axis] <= length


def test_adaptive_below_the_released_minimum_uses_what_fits():
    assert adaptive_scan(1, 1) == ((1, 1), (1, 1), (1, 1))
    assert adaptive_scan(5, 40) == ((5, 7), (1, 1), (1, 1))
    assert adaptive_scan(5, 40, grid_first=True) == ((1, 1), (5, 7), (1, 1))


def test_spread_scales_the_dilation_and_keeps_the_kernels():
    assert spread_scan(56, 70, 7, 9) == ((7, 7), (9, 9), (6, 6))
    assert spread_scan(200, 336, 7, 9) == ((7, 7), (9, 9), (22, 22))
    assert spread_scan(200, 336, 7, 9, anchor_dilation=6) == ((7, 7), (9, 9), (6, 6))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((6, 7), 'local_kernel must be odd and positive, got 6'),
        ((7, 0), 'anchor_kernel must be odd and positive, got 0'),
        ((7, 7, 0), 'anchor_dilation must be at least 1, got 0'),
    ],
)
def test_spread_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        spread_scan(56, 56, *arguments)
