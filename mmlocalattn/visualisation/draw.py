"""Where the local attention of a config's model looks in an image, as pictures and a page.

From a config to files: :func:`attention_of`, :func:`select_layers`, :func:`draw_layers`.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from numpy.typing import NDArray
from torch import Tensor, nn

from mmlocalattn.training import load_weights, preprocessor_of
from mmlocalattn.visualisation.attention import Attention, record_attention
from mmlocalattn.visualisation.figure import draw_stage
from mmlocalattn.visualisation.page import Layer, write_page

MULTIPLE = 32  # of pixels in the sides of the resized image, so that cells of maps are whole
BLOCKS = 2  # of each stage that are drawn by default: the last ones
MAX_BYTES = 8_000_000  # of the page
MOST_PIXELS = 2**24  # of the resized image


def attention_of(
    cfg: Config,
    image: NDArray[np.uint8],
    checkpoint: str | None = None,
    short_side: int = 224,
    allow_partial: bool = False,
) -> list[Attention]:
    """Let the backbone of a config look at an image.

    Args:
        cfg: Of mmdet, mmsegmentation or mmpretrain.
        image: As :func:`prepare_image` takes it.
        checkpoint: Of the model; weights are random if None.
        short_side: Of the image that the model sees, pixels.
        allow_partial: Take a checkpoint of which only a part fits.

    Returns:
        The attention of each of its layers with local attention.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If the config has no backbone with local attention, the checkpoint is of another
            one, or the short side is too short.
    """
    backbone = build_backbone(cfg, checkpoint, allow_partial)
    records = record_attention(backbone, prepare_image(image, cfg, short_side))
    if not records:
        raise ValueError(
            f'{type(backbone).__name__}, the backbone of {cfg.filename!r}, has no local attention '
            'to draw; swap_backbone, or --backbone ssvit_t, puts one with it in its place'
        )
    return records


def prepare_image(image: NDArray[np.uint8], cfg: Config, short_side: int) -> Tensor:
    """The image as the model sees it, (1, C, H, W).

    Args:
        image: (H, W) or (H, W, C), BGR if it has three channels.
        cfg: Its data preprocessor gives mean, deviation and the order of the channels.
        short_side: Of the result; both sides are rounded to multiples of 32.

    Raises:
        ValueError: If the short side is too short, or the other one becomes too long.
    """
    if short_side < MULTIPLE:
        raise ValueError(f'the short side must have at least {MULTIPLE} pixels, got {short_side}')
    scale = short_side / min(image.shape[:2])
    height, width = (max(round(side * scale / MULTIPLE), 1) * MULTIPLE for side in image.shape[:2])
    if height * width > MOST_PIXELS:
        raise ValueError(
            f'an image of {image.shape[0]} x {image.shape[1]} pixels would become one of '
            f'{height} x {width}: cut it into pieces, or give a smaller --short-side'
        )
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    resized = np.atleast_3d(resized)
    options = preprocessor_of(cfg)
    if (options.get('bgr_to_rgb') or options.get('to_rgb')) and resized.shape[2] == 3:
        resized = resized[..., ::-1]
    if options.get('mean') is not None:
        resized = (resized - np.float32(options['mean'])) / np.float32(options['std'])
    return torch.from_numpy(np.ascontiguousarray(resized)).permute(2, 0, 1)[None]


def build_backbone(
    cfg: Config, checkpoint: str | None = None, allow_partial: bool = False
) -> nn.Module:
    """The backbone of a config, with the weights of a checkpoint or random ones.

    Args:
        cfg: Whose scope becomes the default one.
        checkpoint: Of the whole model.
        allow_partial: Take a checkpoint of which only a part fits.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If the config has no backbone, or the checkpoint is of another one.
    """
    if 'backbone' not in cfg.get('model', {}):
        raise ValueError(f'config {cfg.filename!r} has no model.backbone')
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    torch.manual_seed(0)
    backbone = revert_sync_batchnorm(MODELS.build({**cfg.model.backbone, 'init_cfg': None}))
    if checkpoint is not None:
        optional = ['output_norms.']
        load_weights(backbone, checkpoint, 'backbone.', optional, allow_partial)
    backbone.eval()  # not in one line: some backbones' train() returns nothing
    return backbone


def select_layers(
    records: Sequence[Attention],
    stages: Collection[int] | None = None,
    blocks: Collection[str] | None = None,
    heads: Collection[int] | None = None,
) -> list[Layer]:
    """The layers to draw, each with its heads.

    Args:
        records: Of :func:`attention_of`.
        stages: From 0; all if None.
        blocks: From ``'0'``, or ``'down'`` for the step down to a stage; the last two of each stage
            if None.
        heads: From 0; all if None.

    Raises:
        ValueError: If a stage, block or head is in no layer.
    """
    _check('stages', stages, {record.stage for record in records})
    chosen = [record for record in records if stages is None or record.stage in stages]
    if blocks is None:
        chosen = [
            record
            for stage in sorted({record.stage for record in chosen})
            for record in [record for record in chosen if record.stage == stage][-BLOCKS:]
        ]
    else:
        _check('blocks', blocks, {record.block for record in chosen})
        chosen = [record for record in chosen if record.block in blocks]
    _check('heads', heads, {head for record in chosen for head in range(record.num_heads)})
    layers = [
        (record, [head for head in range(record.num_heads) if heads is None or head in heads])
        for record in chosen
    ]
    return [layer for layer in layers if layer[1]]


def _check(option: str, values: Collection | None, valid: set) -> None:
    unknown = [value for value in values or () if value not in valid]
    if unknown:
        names = ', '.join(str(value) for value in sorted(valid, key=lambda v: (len(str(v)), v)))
        raise ValueError(
            f'{option} {unknown[0]}: what is chosen has local attention only in {names}'
        )


def check_points(points: Sequence[tuple[int, int]], image: NDArray[np.uint8]) -> None:
    """Check that points (x, y) lie in an image (H, W, 3).

    Raises:
        ValueError: If one does not.
    """
    height, width = image.shape[:2]
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f'point {x},{y} is outside the image: x must be in 0..{width - 1}, '
                f'y in 0..{height - 1}'
            )


def draw_layers(
    layers: Sequence[Layer],
    image: NDArray[np.uint8],
    points: Sequence[tuple[int, int]],
    out: Path,
    title: str,
    weights: str,
    max_bytes: int = MAX_BYTES,
) -> list[Path]:
    """Draw a PNG file for each point and stage, and attention.html for every pixel.

    Args:
        layers: Of :func:`select_layers`.
        image: (H, W, 3), BGR.
        points: (x, y) in pixels of the image.
        out: Folder to write to; is made.
        title: Names the model.
        weights: Says where its weights come from: a file, or that they are random.
        max_bytes: Of the page, which leaves out queries to stay below, and says so.

    Returns:
        The files written.

    Raises:
        ValueError: If a point is outside the image, or the page cannot be so small.
    """
    check_points(points, image)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for stage in sorted({attention.stage for attention, _ in layers}):
        of_stage = [layer for layer in layers if layer[0].stage == stage]
        for x, y in points:
            files.append(out / f'stage{stage}_{x}_{y}.png')
            text = f'{title}, {weights}: stage {stage}, point {x}, {y}'
            draw_stage(files[-1], of_stage, image, (x, y), text)
    files.append(out / 'attention.html')
    kept = write_page(files[-1], layers, image, points, title, weights, max_bytes)
    for (attention, _), queries in zip(layers, kept):
        if queries != attention.query_size:
            print_log(
                f'stage {attention.stage}, block {attention.block}: the page has {queries} of '
                f'{attention.query_size} rows and columns, to stay below {max_bytes / 1e6:g} MB'
            )
    return files
