"""What OpenCV does not say: that a file is missing, no image, or cannot be written."""

from pathlib import Path

import numpy as np
import pytest

from mmlocalattn.data.images import read_image, write_image


def test_what_is_written_is_read(tmp_path: Path) -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    write_image(tmp_path / 'a.png', image)
    assert np.array_equal(read_image(tmp_path / 'a.png'), image)


def test_errors(tmp_path: Path) -> None:
    (tmp_path / 'text.png').write_text('text')
    with pytest.raises(ValueError, match=r"text\.png' is no image that OpenCV reads"):
        read_image(tmp_path / 'text.png')
    with pytest.raises(FileNotFoundError, match=r"image '.*none\.png' does not exist"):
        read_image(tmp_path / 'none.png')


def test_a_picture_that_cannot_be_written_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str, image: np.ndarray) -> bool:
        Path(path).write_text('half')
        return False

    monkeypatch.setattr('cv2.imwrite', fail)
    with pytest.raises(ValueError, match=r"none/a\.png' cannot be written"):
        write_image(tmp_path / 'none' / 'a.png', np.zeros((2, 2, 3), np.uint8))
    assert not any((tmp_path / 'none').iterdir())
