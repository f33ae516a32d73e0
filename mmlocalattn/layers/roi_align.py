"""RoIAlign on all cores of a CPU.

mmcv's and torchvision's run on one core there, channel by channel. Here a bin is a weighted sum of
pixels, which are rows of a channels-last map: :func:`torch.nn.functional.embedding_bag`, which
PyTorch runs in vectors on all cores, forward and backward.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional


def roi_align(
    input: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    aligned: bool = True,
) -> Tensor:
    """Average bilinear samples of each bin, a sample per pixel (``sampling_ratio=0``).

    Args:
        input: (N, C, H, W), float32 or float64. Channels last in memory saves a copy.
        rois: (K, 5) as (index into N, x1, y1, x2, y2) in pixels of the image. They get no
            gradient, as mmcv's do not.
        output_size: Bins along height and width.
        spatial_scale: Pixels of the map to a pixel of the image.
        aligned: Pixel centres are at 0.5, as in mmcv; else at 0, and a box has a pixel at least.

    Returns:
        (K, C, bins along height, bins along width), channels last in memory.

    Raises:
        ValueError: If a box ends before it begins, or is not finite.
    """
    channels, (height, width) = input.shape[1], input.shape[2:]
    if not len(rois):
        return input.new_zeros(0, channels, *output_size)
    rois = rois.detach()  # those of Sparse R-CNN are learned
    corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    starts, sides = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        sides = sides.clamp(min=1)
    if (sides < 0).any():
        raise ValueError(f'boxes must not end before they begin, got {rois[(sides < 0).any(1)][0]}')
    if not (is_finite := corners.isfinite().all(1)).all():
        raise ValueError(f'boxes must be finite, got {rois[~is_finite][0]}: has the loss diverged?')
    bins = sides / sides.new_tensor(output_size[::-1])
    indices, weights, sizes, order = [], [], [], []
    for chosen, (columns, rows) in _by_samples(bins.ceil().int()):
        y, weights_y = _taps(starts[chosen, 1], bins[chosen, 1], rows, output_size[0], height)
        x, weights_x = _taps(starts[chosen, 0], bins[chosen, 0], columns, output_size[1], width)
        y = y + height * rois[chosen, 0].int()[:, None, None]
        indices.append((y[:, :, None, :, None] * width + x[:, None, :, None, :]).flatten())
        weights.append((weights_y[:, :, None, :, None] * weights_x[:, None, :, None, :]).flatten())
        sizes.append(y.new_full((y.shape[0] * y.shape[1] * x.shape[1],), y.shape[2] * x.shape[2]))
        order.append(chosen)
    size = torch.cat(sizes)
    output = functional.embedding_bag(
        torch.cat(indices),
        input.permute(0, 2, 3, 1).reshape(-1, channels),
        (size.cumsum(0) - size).int(),
        mode='sum',
        per_sample_weights=torch.cat(weights),
    )
    output = output.view(len(rois), -1)[torch.cat(order).argsort()]
    return output.view(-1, *output_size, channels).permute(0, 3, 1, 2)


def _by_samples(samples: Tensor) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Boxes that take the same number of samples.

    Args:
        samples: (K, 2), of each bin along x and y.

    Yields:
        Indices of boxes, and the two numbers.
    """
    numbers, group, counts = samples.unique(dim=0, return_inverse=True, return_counts=True)
    yield from zip(
        group.argsort(stable=True).split(counts.tolist()),
        ((along_x, along_y) for along_x, along_y in numbers.tolist()),
    )


def _taps(
    start: Tensor, bin_size: Tensor, samples: int, bins: int, length: int
) -> tuple[Tensor, Tensor]:
    """The pixels along one axis that the bins of each box are made of.

    Samples are at most a pixel apart, so n of them touch n + 1 pixels in a row. The weight of a
    pixel is what linear interpolation gives it, summed over the samples; those more than a
    pixel outside of the map count as 0.

    Args:
        start: (k,) of the boxes.
        bin_size: (k,).
        samples: In each bin; 0 for boxes without extent, which are 0.
        bins: In each box.
        length: Of the map.

    Returns:
        Pixels, int32, and their weights; both (k, bins, n + 1).
    """
    n = max(samples, 1)
    numbers = torch.arange(max(bins, n + 1), device=start.device)
    in_bin = (numbers[:n] + 0.5) * bin_size[:, None] / n
    edges = start[:, None] + numbers[:bins] * bin_size[:, None]
    position = edges[:, :, None] + in_bin[:, None, :]  # in the order in which mmcv rounds
    inside = (position >= -1) & (position <= length)
    position = position.clamp(0, length - 1)
    pixel = position[:, :, :1].floor() + numbers[: n + 1]
    nearness = (1 - (position[:, :, None, :] - pixel[:, :, :, None]).abs()).clamp(min=0)
    weights = (nearness * inside[:, :, None, :]).sum(-1) / n
    return pixel.clamp(0, length - 1).int(), weights * (samples > 0)
