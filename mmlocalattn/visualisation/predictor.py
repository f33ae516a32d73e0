"""Predictions on images and videos: one way for the three toolboxes.

The models of mmdet, mmsegmentation and mmpretrain run through the inferencer of their package.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement
from mmengine.utils import get_object_from_string
from mmengine.visualization import Visualizer
from numpy.typing import NDArray
from rich.progress import track

from mmlocalattn.data.images import read_image, write_image
from mmlocalattn.device import usable_device
from mmlocalattn.files import whole_file
from mmlocalattn.training import adapt_to_device, allow_mmengine_checkpoints
from mmlocalattn.visualisation.pictures import build_visualizer, dataset_meta, draw_sample

IMAGES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
VIDEOS = ('.avi', '.mkv', '.mov', '.mp4', '.webm')
_INFERENCERS = {
    'mmdet': 'mmdet.apis.DetInferencer',
    'mmseg': 'mmseg.apis.MMSegInferencer',
    'mmpretrain': 'mmpretrain.ImageClassificationInferencer',
}


class Predictor:
    """A model of one of the three toolboxes, with what draws its predictions.

    Args:
        cfg: Of the model, with its test data, whose classes and colors are drawn. Changed in
            place, and its scope becomes the default one.
        checkpoint: Weights of the model.
        device: To run on.
        score_thr: Detection: lowest score that is drawn.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If the config is of another package, or the device cannot be used.
    """

    def __init__(
        self, cfg: Config, checkpoint: str | Path, device: str = 'cpu', score_thr: float = 0.3
    ) -> None:
        scope = cfg.get('default_scope')
        if scope not in _INFERENCERS:
            raise ValueError(
                f'default_scope must be one of {", ".join(_INFERENCERS)}, got {scope!r}'
            )
        if not Path(checkpoint).is_file():
            raise FileNotFoundError(f'checkpoint {str(checkpoint)!r} does not exist')
        usable_device(device)
        allow_mmengine_checkpoints()
        adapt_to_device(cfg)
        init_default_scope(scope)
        self.options: dict[str, Any] = {'draw_gt': False, 'draw_pred': True}
        if scope == 'mmdet':
            self.options['pred_score_thr'] = score_thr
        meta = dataset_meta(cfg)
        self.visualizer: Visualizer = build_visualizer(cfg, meta)
        cfg.visualizer.vis_backends = None  # the inferencer's own visualizer draws nothing
        inferencer_type = get_object_from_string(_INFERENCERS[scope])
        self.inferencer: Any = inferencer_type(cfg, str(checkpoint), device=device)
        if 'classes' not in meta:  # not told before the files are read: of the checkpoint then
            model = self.inferencer.model
            saved = getattr(model, 'dataset_meta', None) or getattr(model, '_dataset_meta', {})
            self.visualizer.dataset_meta.update(saved)

    def predict(self, image: NDArray) -> BaseDataElement:
        """The predictions for a (H, W, 3) BGR image of bytes.

        Calling the inferencer would draw a progress bar for each image.
        """
        (batch,) = self.inferencer.preprocess([image])
        data = batch if isinstance(batch, dict) else batch[1]  # mmdet: images, data
        (sample,) = self.inferencer.forward(data)
        return sample

    def draw(self, image: NDArray) -> NDArray[np.uint8]:
        """The (H, W, 3) BGR image of bytes with its predictions."""
        return draw_sample(self.visualizer, image, self.predict(image), **self.options)


def plan_outputs(inputs: Sequence[Path], out_dir: Path) -> dict[Path, Path]:
    """The files to read, and where to write each of them; videos become .mp4.

    Args:
        inputs: Files, and folders whose images and videos are taken.
        out_dir: Folder to write to.

    Raises:
        FileNotFoundError, ValueError: Of :func:`find_pictures`.
        ValueError: If two files have the same name, or one would be overwritten.
    """
    targets: dict[Path, Path] = {}
    names: set[str] = set()
    for file in (file for path in inputs for file in find_pictures(path)):
        name = f'{file.stem}.mp4' if is_video(file) else file.name
        if name in names:
            raise ValueError(f'two inputs are called {name!r}; give them to two runs')
        names.add(name)
        targets[file] = out_dir / name
        if targets[file].resolve() == file.resolve():
            raise ValueError(f'{str(file)!r} would be overwritten; choose another folder')
    return targets


def find_pictures(path: Path) -> list[Path]:
    """A file, or the images and videos of a folder.

    Raises:
        FileNotFoundError: If there is no such path, or no image and no video in the folder.
        ValueError: If the file is neither.
    """
    known = IMAGES + VIDEOS
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in known]
        if not files:
            raise FileNotFoundError(f'{str(path)!r} has no image and no video')
        return files
    if not path.exists():
        raise FileNotFoundError(f'{str(path)!r} does not exist')
    if path.suffix.lower() not in known:
        raise ValueError(f'{str(path)!r} is neither an image nor a video ({" ".join(known)})')
    return [path]


def draw_files(predictor: Predictor, targets: Mapping[Path, Path]) -> None:
    """Draw images, then videos, with a progress bar for all images and for each video.

    Args:
        predictor: Of the model.
        targets: Of :func:`plan_outputs`.

    Raises:
        ValueError: If a file cannot be read or written; says which.
    """
    images = [file for file in targets if not is_video(file)]
    for file in track(images, description='images', disable=not images):
        draw_image(predictor, file, targets[file])
    for file in filter(is_video, targets):
        draw_video(predictor, file, targets[file])


def is_video(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() in VIDEOS


def draw_image(predictor: Predictor, source: Path, target: Path) -> None:
    """Write an image with its predictions.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If one cannot be read or written.
    """
    write_image(target, predictor.draw(read_image(source)))


def draw_video(predictor: Predictor, source: Path, target: Path) -> None:
    """Write a video with the predictions of its frames.

    Raises:
        ValueError: If one cannot be read or written.
    """
    video = cv2.VideoCapture(str(source))
    frames_per_second = video.get(cv2.CAP_PROP_FPS) or 25
    total = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) or None
    codec = cv2.VideoWriter.fourcc(*'mp4v')
    writer = cv2.VideoWriter()
    with whole_file(target) as partial:
        try:
            for frame in track(_frames(video), description=source.name, total=total):
                picture = predictor.draw(frame)
                size = picture.shape[1::-1]
                if not (
                    writer.isOpened() or writer.open(str(partial), codec, frames_per_second, size)
                ):
                    raise ValueError(f'{str(target)!r} cannot be written')
                writer.write(picture)
            if not writer.isOpened():
                raise ValueError(f'{str(source)!r} cannot be read as a video')
        finally:
            writer.release()


def _frames(video: cv2.VideoCapture) -> Iterator[NDArray]:
    """The (H, W, 3) BGR frames that are left of a video."""
    while True:
        there_is_one, frame = video.read()
        if not there_is_one:
            return
        yield frame
