"""Draw what a model sees: images, folders of images, videos.

    python tools/image_demo.py CONFIG CHECKPOINT photo.jpg pictures/ street.mp4 --out-dir seen

The models of mmdet, mmsegmentation and mmpretrain run through the inferencer of their package.
Classes and colors are those of the test data of the config.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement
from mmengine.utils import get_object_from_string
from mmengine.visualization import Visualizer
from numpy.typing import NDArray
from rich.progress import track

from mmlocalattn.training import (
    adapt_to_device,
    add_config_arguments,
    allow_mmengine_checkpoints,
    config_of,
)
from mmlocalattn.visualisation.pictures import build_visualizer, dataset_meta, draw_sample

IMAGES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
VIDEOS = ('.avi', '.mkv', '.mov', '.mp4', '.webm')
INFERENCERS = {
    'mmdet': 'mmdet.apis.DetInferencer',
    'mmseg': 'mmseg.apis.MMSegInferencer',
    'mmpretrain': 'mmpretrain.ImageClassificationInferencer',
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add_config_arguments(parser)
    parser.add_argument('checkpoint', type=Path, help='checkpoint file')
    parser.add_argument(
        'inputs', nargs='+', type=Path, help='images, videos, or folders of them', metavar='INPUT'
    )
    parser.add_argument('--out-dir', type=Path, default=Path('work_dirs/demo'))
    parser.add_argument('--device', default=get_device(), help='default %(default)s')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='detection: lowest score that is drawn'
    )
    return parser.parse_args(argv)


def plan(inputs: Sequence[Path], out_dir: Path) -> dict[Path, Path]:
    """The files to read, and where to write each of them; videos become .mp4.

    Args:
        inputs: Files, and folders whose images and videos are taken.
        out_dir: Folder to write to.

    Raises:
        FileNotFoundError, ValueError: Of :func:`files_of`.
        ValueError: If two files have the same name, or one would be overwritten.
    """
    targets: dict[Path, Path] = {}
    names: set[str] = set()
    for file in (file for path in inputs for file in files_of(path)):
        name = f'{file.stem}.mp4' if file.suffix.lower() in VIDEOS else file.name
        if name in names:
            raise ValueError(f'two inputs are called {name!r}; give them to two runs')
        names.add(name)
        targets[file] = out_dir / name
        if targets[file].resolve() == file.resolve():
            raise ValueError(f'{str(file)!r} would be overwritten; choose another --out-dir')
    return targets


def files_of(path: Path) -> list[Path]:
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


def check_device(device: str) -> None:
    """Raise a ValueError if tensors cannot be put on the device."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition('\n')[0]
        raise ValueError(f'--device {device!r} cannot be used: {reason}') from error


class Predictor:
    """A model of one of the three toolboxes, with what draws its predictions.

    Args:
        cfg: Of the model.
        checkpoint: Its weights.
        device: To run on.
        score_thr: Detection: lowest score that is drawn.

    Raises:
        ValueError: If the config is of another package.
    """

    def __init__(self, cfg: Config, checkpoint: Path, device: str, score_thr: float) -> None:
        scope = cfg.get('default_scope')
        if scope not in INFERENCERS:
            raise ValueError(
                f'default_scope must be one of {", ".join(INFERENCERS)}, got {scope!r}'
            )
        init_default_scope(scope)
        self.options: dict[str, Any] = {'draw_gt': False, 'draw_pred': True}
        if scope == 'mmdet':
            self.options['pred_score_thr'] = score_thr
        meta = dataset_meta(cfg)
        self.visualizer: Visualizer = build_visualizer(cfg, meta)
        cfg.visualizer.vis_backends = None  # the inferencer's own visualizer draws nothing
        inferencer_type = get_object_from_string(INFERENCERS[scope])
        self.inferencer: Any = inferencer_type(cfg, str(checkpoint), device=device)
        if 'classes' not in meta:  # not told before the files are read: of the checkpoint then
            model = self.inferencer.model
            saved = getattr(model, 'dataset_meta', None) or getattr(model, '_dataset_meta', {})
            self.visualizer.dataset_meta.update(saved)

    def predict(self, image: NDArray[np.uint8]) -> BaseDataElement:
        """The predictions for a (H, W, 3) BGR image.

        Calling the inferencer would draw a progress bar for each image.
        """
        (batch,) = self.inferencer.preprocess([image])
        data = batch if isinstance(batch, dict) else batch[1]  # mmdet: images, data
        (sample,) = self.inferencer.forward(data)
        return sample

    def draw(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The (H, W, 3) BGR image with its predictions."""
        return draw_sample(self.visualizer, image, self.predict(image), **self.options)


def draw_image(predictor: Predictor, source: Path, target: Path) -> None:
    image = cv2.imread(str(source))
    if image is None:
        raise ValueError(f'{str(source)!r} cannot be read as an image')
    if not cv2.imwrite(str(target), predictor.draw(image)):
        raise ValueError(f'{str(target)!r} cannot be written')


def draw_video(predictor: Predictor, source: Path, target: Path) -> None:
    video = cv2.VideoCapture(str(source))
    frames_per_second = video.get(cv2.CAP_PROP_FPS) or 25
    total = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) or None
    writer = None
    for frame in track(frames(video), description=source.name, total=total):
        picture = predictor.draw(frame)
        if writer is None:
            size = picture.shape[1::-1]
            writer = cv2.VideoWriter(
                str(target), cv2.VideoWriter.fourcc(*'mp4v'), frames_per_second, size
            )
            if not writer.isOpened():
                raise ValueError(f'{str(target)!r} cannot be written')
        writer.write(picture)
    if writer is None:
        raise ValueError(f'{str(source)!r} cannot be read as a video')
    writer.release()


def frames(video: cv2.VideoCapture) -> Iterator[NDArray[np.uint8]]:
    """The (H, W, 3) BGR frames that are left of a video."""
    while True:
        there_is_one, frame = video.read()
        if not there_is_one:
            return
        yield frame


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    allow_mmengine_checkpoints()
    try:
        if not args.checkpoint.is_file():
            raise FileNotFoundError(f'checkpoint {str(args.checkpoint)!r} does not exist')
        targets = plan(args.inputs, args.out_dir)
        check_device(args.device)
        cfg = config_of(args)
        adapt_to_device(cfg)
        predictor = Predictor(cfg, args.checkpoint, args.device, args.score_thr)
        args.out_dir.mkdir(parents=True, exist_ok=True)
        videos = [file for file in targets if file.suffix.lower() in VIDEOS]
        images = [file for file in targets if file not in videos]
        for file in track(images, description='images', disable=not images):
            draw_image(predictor, file, targets[file])
        for file in videos:
            draw_video(predictor, file, targets[file])
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        raise SystemExit(f'error: {error}') from None
    print(f'{len(images)} images and {len(videos)} videos in {args.out_dir}')


if __name__ == '__main__':
    main()
