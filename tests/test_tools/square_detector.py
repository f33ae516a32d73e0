"""A detector without weights, for the squares of tiny_data, as an exported file."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
PLACES = 3  # for detections, of which one is used


class SquareDetector(nn.Module):
    """Finds the one bright square of each picture, and says which of the two classes it is of."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, 3, H, W), normalised, to boxes, scores, labels and masks in their boxes."""
        pixels = image * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
        grey = nn.functional.avg_pool2d(pixels.mean(1, keepdim=True), 5, 1, 2)[:, 0]
        bright = ((grey > 90) & (image != 0).any(1)).float()  # 0 is padding
        sides = []
        for dim in (1, 2):  # the columns, then the rows, that have more than a few bright pixels
            is_square = (bright.sum(dim) > 10).float()
            low = is_square.argmax(1)
            high = is_square.shape[1] - is_square.flip(1).argmax(1)
            sides.append((low.float(), high.float()))
        (x1, x2), (y1, y2) = sides
        boxes = torch.stack((x1, y1, x2, y2), 1)[:, None]
        value = (grey * bright).sum((1, 2)) / bright.sum((1, 2))
        labels = (value > 165).long()[:, None]
        scores = torch.ones_like(labels, dtype=torch.float32) * 0.9
        left = PLACES - 1
        return (
            nn.functional.pad(boxes, (0, 0, 0, left)),
            nn.functional.pad(scores, (0, left)),
            nn.functional.pad(labels, (0, left), value=-1),
            torch.ones(image.shape[0], PLACES, 4, 4),
        )


def meta_of(size: tuple[int, int], **more: object) -> dict:
    """What tools/export.py says about such a file."""
    return dict(
        config='c.py',
        scope='mmdet',
        part='model',
        channels=3,
        sizes=[list(size)],
        outputs=['boxes', 'scores', 'labels', 'masks'],
        classes=['dark', 'light'],
        preprocessing=dict(pad_size_divisor=32),
        mask_frame='box',
        mask_threshold=0.5,
        **more,
    )


def write_square_detector(path: Path, size: tuple[int, int]) -> None:
    """Write it as TorchScript for images of one (height, width)."""
    traced = torch.jit.trace(SquareDetector(), torch.zeros(1, 3, *size))
    files = {'mmlocalattn.json': json.dumps(meta_of(size))}
    torch.jit.save(traced, str(path), _extra_files=files)
