"""Predictions on images and videos: one way for the three toolboxes.

The models of mmdet, mmsegmentation and mmpretrain run through the inferencer of their package.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement
from mmengine.utils import get_object_from_string
from mmengine.visualization import Visualizer
from numpy.typing import NDArray
from rich.progress import track

from mmlocalattn.adapt.cpu import tune_for_cpu
from mmlocalattn.data.images import as_picture, write_image
from mmlocalattn.data.picture_files import SUFFIXES
from mmlocalattn.device import usable_device
from mmlocalattn.files import check_folder, whole_file
from mmlocalattn.training import (
    adapt_to_device,
    autocast_parts,
    build_errors,
    channels_of,
    load_weights,
    read_checkpoint,
)
from mmlocalattn.training.data_check import check_class_names
from mmlocalattn.training.data_sets import check_class_order
from mmlocalattn.training.weights import classes_in, dataset_meta_in
from mmlocalattn.visualisation.pictures import (
    build_visualizer,
    check_image,
    dataset_meta,
    draw_sample,
    image_reader,
)

_Source = TypeVar('_Source', str, Path)

MOST_PIXELS = 2**26
"""That the resizing of a config may make of an image that has fewer."""

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
            place, and its scope becomes the default one. ``model_dtype='bfloat16'`` is for
            :func:`~mmlocalattn.training.low_precision.autocast_parts`.
        checkpoint: Weights of the model.
        device: To run on.
        score_thr: Detection: lowest score that is drawn.
        allow_partial: Take a checkpoint of which only a part fits.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If the config is of another package, the checkpoint of another model, or the
            device cannot be used; if the classes are in another order than in the annotation file
            of the test data.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str | Path,
        device: str = 'cpu',
        score_thr: float = 0.3,
        allow_partial: bool = False,
    ) -> None:
        scope = cfg.get('default_scope')
        if scope not in _INFERENCERS:
            raise ValueError(
                f'default_scope must be one of {", ".join(_INFERENCERS)}, got {scope!r}'
            )
        on_cpu = usable_device(device).type == 'cpu'
        read_checkpoint(checkpoint, mmap=True)
        check_class_names(cfg)
        cfg.launcher = 'none'  # however many processes may have trained
        adapt_to_device(cfg)
        init_default_scope(scope)
        self.options: dict[str, Any] = {'draw_gt': False, 'draw_pred': True}
        if scope == 'mmdet':
            self.options['pred_score_thr'] = score_thr
        self.read = image_reader(cfg)
        self.channels = channels_of(cfg)
        meta = dataset_meta(cfg)
        self.visualizer: Visualizer = build_visualizer(cfg, meta)
        cfg.visualizer.vis_backends = None  # the inferencer's own visualizer draws nothing
        inferencer_type = get_object_from_string(_INFERENCERS[scope])
        # That it has no weights is no warning: they come next.
        with warnings.catch_warnings(), build_errors(cfg.filename):
            warnings.simplefilter('ignore')
            self.inferencer: Any = inferencer_type(cfg, None, device=device)
        model = self.inferencer.model
        content = load_weights(model, checkpoint, allow_partial=allow_partial)
        check_class_order(classes_in(content), cfg, f'checkpoint {str(checkpoint)!r}')
        autocast_parts(model, cfg.get('model_dtype', 'float32'))
        if on_cpu:
            tune_for_cpu(model)
        if 'classes' not in meta:  # not told before the files are read: of the checkpoint then
            saved = dataset_meta_in(content)
            self.visualizer.dataset_meta.update(saved or getattr(model, 'dataset_meta', None) or {})

    def predict(self, image: NDArray, source: str | Path = 'image') -> BaseDataElement:
        """The predictions for an image as ``read`` reads it: (H, W), or (H, W, C) as BGR.

        Args:
            image: As the pipeline of the config gets it.
            source: Where it is from, for errors.

        Raises:
            ValueError: If the pipeline cannot resize the image to something of a usable size.
        """
        (sample,) = self._forward([self._prepare(image, source)])
        return sample

    def draw(self, image: NDArray, source: str | Path = 'image') -> NDArray[np.uint8]:
        """The image as (H, W, 3) BGR of bytes with its predictions; see :meth:`predict`."""
        return self._drawn(image, self.predict(image, source))

    def draw_all(
        self, images: Iterable[tuple[_Source, NDArray]], batch_size: int = 1
    ) -> Iterator[tuple[_Source, NDArray[np.uint8]]]:
        """:meth:`draw` for many images, those in a batch that the pipeline brings to one size.

        So no image is padded for another one, and what is predicted does not depend on the batch.

        Args:
            images: Where each is from, and what ``read`` made of it.
            batch_size: The largest number of images that the model gets at once. At most four
                times as many are held.

        Yields:
            Where an image is from, and its picture. Images of one size stay in their order.

        Raises:
            ValueError: See :meth:`predict`.
        """
        waiting: dict[tuple[int, ...], list[tuple[_Source, NDArray, dict]]] = {}

        def drawn(size: tuple[int, ...]) -> Iterator[tuple[_Source, NDArray[np.uint8]]]:
            batch = waiting.pop(size)
            samples = self._forward([data for _, _, data in batch])
            for (source, image, _), sample in zip(batch, samples):
                yield source, self._drawn(image, sample)

        for source, image in images:
            data = self._prepare(image, source)
            size = tuple(data['inputs'][0].shape)
            waiting.setdefault(size, []).append((source, image, data))
            if len(waiting[size]) == batch_size:
                yield from drawn(size)
            elif sum(map(len, waiting.values())) == 4 * batch_size:
                yield from drawn(next(iter(waiting)))  # the size that waits longest
        for size in list(waiting):
            yield from drawn(size)

    def _forward(self, prepared: Sequence[dict]) -> Sequence[BaseDataElement]:
        """Calling the inferencer would draw a progress bar for each batch."""
        keys = prepared[0]
        return self.inferencer.forward(
            {key: [item for data in prepared for item in data[key]] for key in keys}
        )

    def _drawn(self, image: NDArray, sample: BaseDataElement) -> NDArray[np.uint8]:
        return draw_sample(self.visualizer, as_picture(image), sample, **self.options)

    def _prepare(self, image: NDArray, source: str | Path) -> dict:
        height, width = image.shape[:2]
        where = f'{str(source)!r}, {height} x {width} pixels'
        try:
            (batch,) = self.inferencer.preprocess([image])
        except Exception as error:  # OpenCV's, of a side that came out as 0
            reason = ' '.join(str(error).split())
            raise ValueError(f'{where}, does not go through the test pipeline: {reason}') from error
        data = batch if isinstance(batch, dict) else batch[1]  # mmdet: images, data
        new_height, new_width = data['inputs'][0].shape[-2:]
        if new_height * new_width > max(MOST_PIXELS, height * width):
            raise ValueError(
                f'{where}, is resized to {new_height} x {new_width}: limit the longer side in the '
                'test pipeline, or cut the image into pieces'
            )
        return data


def plan_outputs(inputs: Sequence[Path], out_dir: Path) -> dict[Path, Path]:
    """The files to read, and where to write each of them; videos become .mp4.

    Args:
        inputs: Files, and folders whose images and videos are taken.
        out_dir: Folder to write to.

    Raises:
        FileNotFoundError, ValueError: Of :func:`find_pictures`.
        OSError: If the folder cannot be written to.
        ValueError: If two files have the same name, or one would be overwritten.
    """
    check_folder(out_dir)
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
    known = SUFFIXES + VIDEOS
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


def draw_files(predictor: Predictor, targets: Mapping[Path, Path], batch_size: int = 1) -> None:
    """Draw images, then videos, with a progress bar for all images and for each video.

    Args:
        predictor: Of the model.
        targets: Of :func:`plan_outputs`.
        batch_size: Images, and frames of a video, that the model gets at once.

    Raises:
        ValueError: If a file cannot be read or written; says which.
    """
    images = [file for file in targets if not is_video(file)]
    pictures = predictor.draw_all(((file, predictor.read(file)) for file in images), batch_size)
    for file, picture in track(
        pictures, description='images', total=len(images), disable=not images
    ):
        write_image(targets[file], picture)
    for file in filter(is_video, targets):
        draw_video(predictor, file, targets[file], batch_size)


def is_video(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() in VIDEOS


def draw_video(predictor: Predictor, source: Path, target: Path, batch_size: int = 1) -> None:
    """Write a video with the predictions of its frames.

    Args:
        predictor: Of the model.
        source: The video.
        target: To write.
        batch_size: Frames that the model gets at once.

    Raises:
        ValueError: If one cannot be read or written, or its frames are of several sizes, of which
            OpenCV would drop all but the first.
    """
    video = cv2.VideoCapture(str(source))
    frames = ((source, frame) for frame in _frames(video, source, predictor.channels))
    frames_per_second = video.get(cv2.CAP_PROP_FPS) or 25
    total = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) or None
    codec = cv2.VideoWriter.fourcc(*'mp4v')
    writer = cv2.VideoWriter()
    sizes: set[tuple[int, ...]] = set()
    with whole_file(target) as partial:
        try:
            pictures = predictor.draw_all(frames, batch_size)
            for _, picture in track(pictures, description=source.name, total=total):
                size = picture.shape[1::-1]
                if not (
                    writer.isOpened() or writer.open(str(partial), codec, frames_per_second, size)
                ):
                    raise ValueError(f'{str(target)!r} cannot be written')
                sizes.add(size)
                if len(sizes) > 1:
                    raise ValueError(f'{str(source)!r} has frames of several sizes: cut it apart')
                writer.write(picture)
            if not writer.isOpened():
                raise ValueError(f'{str(source)!r} cannot be read as a video')
        finally:
            writer.release()


def _frames(video: cv2.VideoCapture, source: Path, channels: int) -> Iterator[NDArray]:
    """The (H, W, 3) BGR frames that are left of a video, (H, W) grey ones for a model of those."""
    while True:
        there_is_one, frame = video.read()
        if not there_is_one:
            return
        if channels == 1:
            frame = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        check_image(frame, channels, source)
        yield frame
