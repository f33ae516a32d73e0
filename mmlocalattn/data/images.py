"""Image files, read and written with OpenCV, whose errors are silent."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mmlocalattn.data.picture_files import too_many_pixels
from mmlocalattn.files import whole_file


def read_image(path: str | Path, as_stored: bool = False) -> NDArray[np.uint8]:
    """Read a colour image, (H, W, 3) BGR.

    Args:
        path: Of the file.
        as_stored: Leave it as it lies, whatever orientation its EXIF data ask for.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'image {str(path)!r} does not exist')
    if reason := too_many_pixels(path):
        raise ValueError(f'{str(path)!r} is not read: {reason}; cut it into pieces')
    flags = cv2.IMREAD_COLOR | (cv2.IMREAD_IGNORE_ORIENTATION if as_stored else 0)
    image = cv2.imread(str(path), flags)
    if image is None:
        raise ValueError(f'{str(path)!r} is no image that OpenCV reads: give a PNG or JPEG file')
    return np.asarray(image, np.uint8)


def as_picture(image: NDArray) -> NDArray[np.uint8]:
    """Any image as one to look at, (H, W, 3) BGR of bytes.

    Args:
        image: (H, W) or (H, W, C). Of four and more channels the first three are shown; of
            values that do not fill a byte the smallest becomes 0 and the largest 255.
    """
    image = np.atleast_3d(image)
    image = image[..., :3] if image.shape[2] > 2 else image[..., :1].repeat(3, axis=2)
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        if low < 0 or high > 255 or high <= 1:
            image = (image.astype(np.float32) - low) * (255 / max(high - low, 1e-9))
        image = image.astype(np.uint8)
    return np.ascontiguousarray(image)


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write a BGR or one-channel image, (H, W, 3) or (H, W); its folder is made.

    Raises:
        ValueError: If it cannot be written.
    """
    with whole_file(path) as partial:
        if not cv2.imwrite(str(partial), image):
            raise ValueError(f'{str(path)!r} cannot be written: is the disk full?')
