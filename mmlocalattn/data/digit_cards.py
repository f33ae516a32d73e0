"""Make ``digit_cards``: real handwriting on real photographs, for detection and segmentation.

Every image is a crop of one of the two photographs that scikit-learn carries, with one to five
paper cards lying on it: rotated, scaled, shaded quadrilaterals, each with one of the 1797
handwritten digits of ``sklearn.datasets.load_digits``. Nothing is downloaded. The folder it
writes::

    digit_cards/
      annotations/instances_{train,val}.json   COCO: boxes, polygons, one category per digit
      train/*.jpg   val/*.jpg                  RGB images
      semantic/{train,val}/*.png               index maps: 0 background, i the i-th category

Train and val share the two photographs but no handwriting: the first 70 % of the scans of a digit
are for training, the rest for validation. The same arguments give the same bytes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from sklearn.datasets import load_digits, load_sample_images

from mmlocalattn.data.images import write_image
from mmlocalattn.files import whole_folder

SPLITS = ('train', 'val')
TRAIN_SHARE = 0.7  # of the scans of each digit
MAX_CARDS = 5
MIN_SIZE = 96  # pixels; below it the smallest card is narrower than 20 px and hard to read
SUPERSAMPLING = 3  # samples per pixel and axis, so that card edges are antialiased
TEXTURE = (80, 64)  # height and width of a card before it is warped, pixels
PLACEMENT_TRIES = 40


@dataclass(frozen=True)
class Card:
    """A card that lies in an image.

    Attributes:
        corners: (4, 2) (x, y) in pixels from the image's top left corner, clockwise from the card's
            own top left corner.
        label: Index into the list of digits.
        scan: Index into ``load_digits().images``.
    """

    corners: NDArray[np.float64]
    label: int
    scan: int


def write_digit_cards(
    out: Path,
    num_train: int = 800,
    num_val: int = 150,
    size: int = 160,
    digits: Sequence[int] = (0, 1, 2, 3),
    seed: int = 0,
    replace: bool = False,
) -> None:
    """Make the data set. The same arguments give the same bytes.

    Args:
        out: The folder to make; it is there whole or not at all.
        num_train: Training images.
        num_val: Validation images.
        size: Side of an image in pixels.
        digits: To draw, different ones from 0 to 9; the categories in this order.
        seed: Not negative.
        replace: Whether to replace the folder if it exists.

    Raises:
        ValueError: If an argument is out of range, or the folder exists and is not to be replaced,
            or is no data set of this kind.
    """
    _check(num_train, num_val, size, digits, seed)
    if out.exists() and not replace:
        raise ValueError(f'{out} exists; replace=True or --force replaces it')
    if out.exists() and not (out / 'annotations' / 'instances_train.json').is_file():
        raise ValueError(f'{out} holds no sample data, and is not replaced')
    with whole_folder(out, replace) as folder:
        (folder / 'annotations').mkdir()
        for split, num_images in zip(SPLITS, (num_train, num_val), strict=True):
            _write_split(folder, split, num_images, size, digits, seed)


def _check(num_train: int, num_val: int, size: int, digits: Sequence[int], seed: int) -> None:
    for name, value, least in (
        ('num_train', num_train, 1),
        ('num_val', num_val, 1),
        ('size', size, MIN_SIZE),
        ('seed', seed, 0),
    ):
        if value < least:
            raise ValueError(f'{name} must be at least {least}, got {value}')
    if not set(digits) <= set(range(10)) or len(set(digits)) < len(digits):
        raise ValueError(f'digits must be different numbers from 0 to 9, got {list(digits)}')


def split_scans(
    targets: NDArray[np.int64], digits: Sequence[int], split: str
) -> list[NDArray[np.int64]]:
    """Choose the handwriting of one split.

    Args:
        targets: (1797,) the digit on each scan.
        digits: Digits to use.
        split: ``'train'`` or ``'val'``.

    Returns:
        For each digit, the indices of its scans. No scan is in both splits.
    """
    scans = []
    for digit in digits:
        indices = np.flatnonzero(targets == digit)
        border = int(TRAIN_SHARE * len(indices))
        scans.append(indices[:border] if split == 'train' else indices[border:])
    return scans


def crop_photograph(
    photographs: Sequence[NDArray[np.uint8]], size: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Cut a random square out of a random photograph, mirror it half of the time, and scale it.

    Returns:
        (size, size, 3) RGB.
    """
    photograph = photographs[int(rng.integers(len(photographs)))]
    height, width = photograph.shape[:2]
    side = int(rng.uniform(0.4, 1.0) * min(height, width))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    crop = photograph[top : top + side, left : left + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    interpolation = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    scaled = cv2.resize(np.ascontiguousarray(crop), (size, size), interpolation=interpolation)
    return np.asarray(scaled, np.uint8)


def card_corners(size: int, num_cards: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw the corners of a card that lies inside the image: scaled, rotated, seen at a slant.

    Returns:
        (4, 2) (x, y) in pixels, clockwise from the card's own top left corner.
    """
    height = size * rng.uniform(0.26, 0.46 if num_cards <= 3 else 0.34)
    width = height * TEXTURE[1] / TEXTURE[0]
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) * [width, height]
    corners += rng.uniform(-0.07, 0.07, (4, 2)) * height
    angle = np.deg2rad(rng.uniform(-30, 30))
    cosine, sine = np.cos(angle), np.sin(angle)
    corners = corners @ np.array([[cosine, sine], [-sine, cosine]])
    low, high = 1 - corners.min(0), size - 1 - corners.max(0)
    return corners + rng.uniform(low, high)


def place_cards(
    size: int, scans: Sequence[NDArray[np.int64]], rng: np.random.Generator
) -> list[Card]:
    """Lay 1 to 5 cards with gaps between them, so that each card is seen whole.

    A card that finds no free place after some tries is left out; the first one always finds it.

    Args:
        size: Side of the image in pixels.
        scans: For each digit, the scans to draw from.
        rng: Source of randomness.
    """
    num_cards = int(rng.integers(1, MAX_CARDS + 1))
    cards: list[Card] = []
    for _ in range(num_cards):
        label = int(rng.integers(len(scans)))
        scan = int(rng.choice(scans[label]))
        for _ in range(PLACEMENT_TRIES):
            corners = card_corners(size, num_cards, rng)
            if not any(_overlap(corners, card.corners) for card in cards):
                cards.append(Card(corners, label, scan))
                break
    return cards


def _overlap(first: NDArray[np.float64], second: NDArray[np.float64]) -> bool:
    """Say whether two quadrilaterals, each made 10 % larger about its centre, share any area."""
    larger = [1.1 * (quad - quad.mean(0)) + quad.mean(0) for quad in (first, second)]
    area, _ = cv2.intersectConvexConvex(larger[0].astype(np.float32), larger[1].astype(np.float32))
    return area > 0


def card_texture(scan: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a flat card: ink on tinted paper, lit from one side.

    Args:
        scan: (8, 8) handwriting, 0 (paper) to 16 (ink).
        rng: Source of randomness.

    Returns:
        (80, 64, 3) RGB, 0 to 255.
    """
    height, width = TEXTURE
    side = int(0.8 * width)
    stroke = cv2.resize(scan.astype(np.float32) / 16, (side, side), interpolation=cv2.INTER_CUBIC)
    stroke = 1 / (1 + np.exp(-12 * (stroke - 0.45)))  # crisp strokes instead of grey blur
    ink_share = np.zeros((height, width, 1), np.float32)
    top, left = (height - side) // 2, (width - side) // 2
    ink_share[top : top + side, left : left + side, 0] = stroke
    paper = rng.uniform(205, 255) * rng.uniform(0.88, 1.0, 3)
    ink = rng.uniform(10, 80, 3)
    card = paper + ink_share * (ink - paper)
    direction = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light = 1 + rng.uniform(0.0, 0.15) * (np.cos(direction) * x + np.sin(direction) * y)
    return (card * light[..., None]).astype(np.float32)


def warp_card(
    texture: NDArray[np.float32], corners: NDArray[np.float64], size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Warp a flat card into an image.

    The image is drawn at ``SUPERSAMPLING`` times the resolution and averaged, so that the value of
    a pixel is the mean over its area.

    Args:
        texture: (h, w, 3) RGB.
        corners: (4, 2) (x, y) in pixels, clockwise from the card's own top left corner.
        size: Side S of the image in pixels.

    Returns:
        The (S, S, 3) image of the card on black, and the (S, S, 1) share of each pixel it covers.
    """
    height, width = texture.shape[:2]
    # cv2 counts from the centre of the first pixel, corners from its edge: hence the halves.
    source = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32) - 0.5
    target = (corners * SUPERSAMPLING - 0.5).astype(np.float32)
    matrix = cv2.getPerspectiveTransform(source, target)
    opaque = np.dstack([texture, np.ones((height, width), np.float32)])
    large = cv2.warpPerspective(opaque, matrix, (size * SUPERSAMPLING, size * SUPERSAMPLING))
    card = np.asarray(cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA), np.float32)
    return card[..., :3], card[..., 3:]


def render(
    background: NDArray[np.uint8],
    cards: Sequence[Card],
    handwriting: NDArray[np.float64],
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw cards and their shadows on a photograph.

    Args:
        background: (S, S, 3) RGB.
        cards: Cards that do not overlap.
        handwriting: (1797, 8, 8) all scans, 0 to 16.
        rng: Source of randomness.

    Returns:
        The (S, S, 3) RGB image and its (S, S) index map: 0 where a card covers less than half of
        the pixel, else 1 + the card's label.
    """
    size = len(background)
    image = background.astype(np.float32)
    index_map = np.zeros((size, size), np.uint8)
    shift = np.eye(2, 3)  # of the shadows: one light for the whole image
    shift[:, 2] = rng.uniform(-0.02, 0.02, 2) * size
    for card in cards:
        picture, cover = warp_card(card_texture(handwriting[card.scan], rng), card.corners, size)
        shadow = cv2.GaussianBlur(cv2.warpAffine(cover, shift, (size, size)), (0, 0), 0.015 * size)
        image *= 1 - 0.5 * shadow[..., None]
        image = image * (1 - cover) + picture
        index_map[cover[..., 0] >= 0.5] = 1 + card.label
    image *= rng.uniform(0.7, 1.0)
    image += rng.normal(0, 3, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), index_map


def coco_annotation(card: Card, annotation_id: int, image_id: int) -> dict:
    """Describe one card in COCO's format: category ids count from 1, polygons are in pixels."""
    (left, top), (right, bottom) = card.corners.min(0), card.corners.max(0)
    box = [left, top, right - left, bottom - top]
    return dict(
        id=annotation_id,
        image_id=image_id,
        category_id=1 + card.label,
        bbox=[round(float(value), 2) for value in box],
        area=round(float(cv2.contourArea(card.corners.astype(np.float32))), 2),
        segmentation=[[round(float(value), 2) for value in card.corners.ravel()]],
        iscrowd=0,
        scan=card.scan,
    )


def _write_split(
    folder: Path, split: str, num_images: int, size: int, digits: Sequence[int], seed: int
) -> None:
    """Write images, index maps and annotations of one split under ``folder``."""
    handwriting = load_digits()
    photographs = load_sample_images().images
    scans = split_scans(handwriting.target, digits, split)
    images_folder, maps_folder = folder / split, folder / 'semantic' / split
    images_folder.mkdir()
    maps_folder.mkdir(parents=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id in track(range(1, num_images + 1), description=f'digit cards, {split:5}'):
        rng = np.random.default_rng([seed, SPLITS.index(split), image_id])
        cards = place_cards(size, scans, rng)
        background = crop_photograph(photographs, size, rng)
        image, index_map = render(background, cards, handwriting.images, rng)
        name = f'{image_id:05d}'
        write_image(images_folder / f'{name}.jpg', image[..., ::-1])
        write_image(maps_folder / f'{name}.png', index_map)
        images.append(dict(id=image_id, file_name=f'{name}.jpg', height=size, width=size))
        for card in cards:
            annotations.append(coco_annotation(card, len(annotations) + 1, image_id))
    coco = dict(
        info=dict(description='digit cards: handwritten digits on photographs'),
        images=images,
        annotations=annotations,
        categories=[dict(id=1 + label, name=str(digit)) for label, digit in enumerate(digits)],
    )
    (folder / 'annotations' / f'instances_{split}.json').write_text(json.dumps(coco))
