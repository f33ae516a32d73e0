"""Running exported files: one way for onnxruntime, OpenVINO, TorchScript and ``torch.export``.

Nothing here needs mmdet, mmsegmentation or mmpretrain.
"""

import contextlib
import importlib
import importlib.util
import json
import logging
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mmlocalattn.untrusted import check_archive

Outputs = Sequence[Tensor]
Reader = Callable[[Path, int], tuple[dict, Callable[[Tensor], Outputs]]]
"""From a file and a number of threads to its metadata, and what runs it."""


class ExportedFile:
    """A file that ``tools/export.py`` wrote, ready to run on the CPU; see :func:`load_file`.

    Attributes:
        path: Of the file.
        meta: What ``tools/export.py`` wrote about it.
        output_names: As ``('boxes', 'scores', 'labels')``.
    """

    def __init__(self, path: Path, meta: dict, run: Callable[[Tensor], Outputs]) -> None:
        self.path = path
        self.meta = meta
        self.output_names: tuple[str, ...] = tuple(meta.get('outputs') or ())
        self._run = run

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes, None if the file does not know them."""
        classes = self.meta.get('classes')
        return tuple(classes) if classes else None

    @property
    def takes_pixels(self) -> bool:
        """Whether pre-processing is in the file: it takes bytes of an image of any size."""
        return bool(self.meta.get('with_preprocessing'))

    @property
    def divisor(self) -> int:
        """Of which the sides of an image are multiples."""
        return self.meta.get('preprocessing', {}).get('pad_size_divisor') or 1

    @property
    def size_range(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The smallest and the largest (height, width) of images, both taken."""
        heights, widths = zip(*self.meta['sizes'])
        return (min(heights), min(widths)), (max(heights), max(widths))

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """Run the file.

        Args:
            image: (B, C, H, W) float32, normalised and padded, or (B, H, W, C) of bytes for a file
                with pre-processing.

        Returns:
            The outputs by their names.

        Raises:
            ValueError: If the image is none that the file takes.
        """
        self._check(image)
        outputs = self._run(image)
        names = self.output_names or default_names(len(outputs))
        return dict(zip(names, outputs, strict=True))

    def _check(self, image: Tensor) -> None:
        channels = self.meta.get('channels', 3)
        if self.takes_pixels:
            if image.ndim != 4 or image.dtype != torch.uint8 or image.shape[3] != channels:
                raise ValueError(
                    f'{str(self.path)!r} takes images (B, H, W, {channels}) of bytes, got '
                    f'{tuple(image.shape)} of {image.dtype}'
                )
            return
        if image.ndim != 4 or image.dtype != torch.float32 or image.shape[1] != channels:
            raise ValueError(
                f'{str(self.path)!r} takes images (B, {channels}, H, W) of float32, got '
                f'{tuple(image.shape)} of {image.dtype}'
            )
        self._check_size(*image.shape[2:])

    def _check_size(self, height: int, width: int) -> None:
        (least_h, least_w), (most_h, most_w) = self.size_range
        if not (least_h <= height <= most_h and least_w <= width <= most_w):
            takes = f'{least_h} x {least_w}'
            if (least_h, least_w) != (most_h, most_w):
                takes += f' to {most_h} x {most_w}'
            raise ValueError(
                f'{str(self.path)!r} takes images of {takes} pixels, got {height} x {width}: '
                'resize or pad the image, or export with --size for the sizes that there are'
            )
        if 'boxes' in self.output_names and (height % self.divisor or width % self.divisor):
            raise ValueError(
                f'{str(self.path)!r} takes images whose sides are multiples of {self.divisor}, '
                f'got {height} x {width}: pad with zeros on the right and at the bottom'
            )


def default_names(number: int) -> tuple[str, ...]:
    """Of the outputs of a file that does not name them."""
    return ('scores',) if number == 1 else tuple(f'map{index}' for index in range(number))


def load_file(path: str | Path, threads: int | None = None) -> ExportedFile:
    """Read a file that ``tools/export.py`` wrote.

    Args:
        path: An ``.onnx`` file (for onnxruntime), ``.xml`` (OpenVINO, with its ``.bin`` beside it),
            ``.pt2`` (``torch.export``) or ``.pt`` (TorchScript).
        threads: That onnxruntime and OpenVINO use; those of PyTorch if None.

    Raises:
        FileNotFoundError, IsADirectoryError: If it does not exist, or is a folder.
        ModuleNotFoundError: If the package that runs it is not installed.
        ValueError: If it cannot be read, or something else wrote it.
    """
    path = Path(path)
    reader, packages = reader_of(path)
    if path.is_dir():
        raise IsADirectoryError(f'exported file {str(path)!r} is a folder: name a file in it')
    if not path.is_file():
        raise FileNotFoundError(f'exported file {str(path)!r} does not exist')
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f'{str(path)!r} needs {missing[0]}: pip install {missing[0]}')
    check_archive(path)
    try:
        meta, run = reader(path, threads or torch.get_num_threads())
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{str(path)!r} needs {error.name}: pip install {error.name}'
        ) from error
    except Exception as error:  # each runtime has its own
        reason = ' '.join(str(error).split())[:200]
        raise ValueError(
            f'{str(path)!r} cannot be read as {path.suffix} ({reason}): it is truncated or '
            'something else; export or copy it again'
        ) from error
    if not _has_sizes(meta):
        raise ValueError(
            f'{str(path)!r} does not say what it takes: it was not written by tools/export.py'
        )
    return ExportedFile(path, meta, run)


def _has_sizes(meta: Any) -> bool:
    sizes = meta.get('sizes') if isinstance(meta, dict) else None
    return (
        isinstance(sizes, list)
        and bool(sizes)
        and all(isinstance(size, list) and list(map(type, size)) == [int, int] for size in sizes)
    )


def is_exported_file(path: str | Path) -> bool:
    """Whether a path is that of an exported file and of no checkpoint, by its ending.

    Both may end with ``.pt``: then an exported file is one with code in it.
    """
    path = Path(path)
    if path.suffix.lower() == '.pt':
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return any('/code/' in name for name in archive.namelist())
    return path.suffix.lower() in _READERS


def reader_of(path: Path) -> tuple[Reader, tuple[str, ...]]:
    """What reads a file, and the packages that it needs besides PyTorch.

    Raises:
        ValueError: If the file is called otherwise.
    """
    if path.suffix.lower() not in _READERS:
        raise ValueError(f'{str(path)!r} is no exported file: these end with {", ".join(_READERS)}')
    return _READERS[path.suffix.lower()]


def _read_onnx(path: Path, threads: int) -> tuple[dict, Callable[[Tensor], Outputs]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    text = session.get_modelmeta().custom_metadata_map.get('mmlocalattn', '{}')
    (image,) = session.get_inputs()

    def run(pixels: Tensor) -> Outputs:
        outputs = session.run(None, {image.name: pixels.numpy()})
        return [torch.from_numpy(output) for output in outputs]

    return json.loads(text), run


def _read_openvino(path: Path, threads: int) -> tuple[dict, Callable[[Tensor], Outputs]]:
    import openvino

    with open(path, 'rb') as file:
        if not file.read(100).lstrip().startswith(b'<'):  # OpenVINO tries other formats, and logs
            raise ValueError('it is no XML file')
    core = openvino.Core()
    model = core.read_model(path)
    text = model.get_rt_info('mmlocalattn').astype(str) if model.has_rt_info('mmlocalattn') else ''
    # The plugin would compute in a lower precision where the machine has one.
    exact: dict[str, Any] = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': threads}
    compiled = core.compile_model(model, 'CPU', exact)

    def run(pixels: Tensor) -> Outputs:
        outputs = compiled(pixels.numpy())
        return [torch.from_numpy(outputs[output].copy()) for output in compiled.outputs]

    return json.loads(text or '{}'), run


def _read_pt2(path: Path, threads: int) -> tuple[dict, Callable[[Tensor], Outputs]]:
    meta = _archived_meta(path)
    with _strictly():
        program = torch.export.load(path)
    return meta, _without_gradients(program.module())


@contextlib.contextmanager
def _strictly() -> Iterator[None]:
    """Have ``torch.export.load`` read tensors and plain values alone, and log nothing.

    It would read all objects where a file holds more, whose pickles run code, and log tracebacks
    before it raises an error.
    """
    name = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
    before = os.environ.get(name)
    os.environ[name] = '1'
    logger = logging.getLogger('torch.export')
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _read_torchscript(path: Path, threads: int) -> tuple[dict, Callable[[Tensor], Outputs]]:
    meta = _archived_meta(path)
    return meta, _without_gradients(torch.jit.load(str(path), map_location='cpu'))


def _archived_meta(path: Path) -> dict:
    """The metadata of an archive of PyTorch, after the import of the operators that it needs."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith('mmlocalattn.json')]
        meta = json.loads(archive.read(names[0])) if names else {}
    for line in meta.get('requires', ()):
        package = line.removeprefix('import ')
        if package.partition('.')[0] in ('mmlocalattn', 'torchvision'):  # nothing else is ours
            importlib.import_module(package)
    return meta


def _without_gradients(program: Callable[[Tensor], Outputs]) -> Callable[[Tensor], Outputs]:
    def run(pixels: Tensor) -> Outputs:
        with torch.no_grad():
            outputs = program(pixels)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    return run


_READERS: dict[str, tuple[Reader, tuple[str, ...]]] = {
    '.onnx': (_read_onnx, ('onnxruntime',)),
    '.xml': (_read_openvino, ('openvino',)),
    '.pt2': (_read_pt2, ()),
    '.pt': (_read_torchscript, ()),
}


def paste_masks(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5
) -> Tensor:
    """Masks in the frames of their boxes as masks of the image, by the rule of mmdet.

    Args:
        masks: (N, h, w) probabilities, each over its box.
        boxes: (N, 4) x1, y1, x2, y2 in pixels of the image.
        size: (H, W) of the image.
        threshold: From which a pixel belongs to the object.

    Returns:
        (N, H, W) of bool.
    """
    height, width = size
    pasted = torch.zeros(len(masks), height, width, dtype=torch.bool)
    for index, (mask, box) in enumerate(zip(masks, boxes)):
        x1, y1, x2, y2 = box.tolist()
        # Around the box as far as half a cell of the mask, where it fades out.
        wide, high = ((x2 - x1) / mask.shape[1] / 2 + 1, (y2 - y1) / mask.shape[0] / 2 + 1)
        left, right = max(int(x1 - wide), 0), min(int(x2 + wide) + 1, width)
        top, bottom = max(int(y1 - high), 0), min(int(y2 + high) + 1, height)
        if x2 <= x1 or y2 <= y1 or left >= right or top >= bottom:
            continue
        x = (torch.arange(left, right) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
        y = (torch.arange(top, bottom) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing='xy'), -1)[None]
        sampled = functional.grid_sample(mask[None, None], grid, align_corners=False)
        pasted[index, top:bottom, left:right] = sampled[0, 0] >= threshold
    return pasted


def resize_masks(
    masks: Tensor,
    size: tuple[int, int],
    original: tuple[int, int],
    scale: tuple[float, float],
    threshold: float = 0.5,
) -> Tensor:
    """Masks in the frame of the padded image as masks of the original one, by the rule of mmdet.

    Args:
        masks: (N, h, w) probabilities, at a stride of the padded image.
        size: (height, width) of the padded image.
        original: (H, W) of the image before it was resized.
        scale: Factors by which its width and height were multiplied.
        threshold: Above which a pixel belongs to the object.

    Returns:
        (N, H, W) of bool.
    """
    if not len(masks):
        return torch.zeros(0, *original, dtype=torch.bool)
    logits = torch.logit(masks, eps=1e-7)[None]
    logits = functional.interpolate(logits, size, mode='bilinear')
    height, width = (math.ceil(side / factor) for side, factor in zip(size, scale[::-1]))
    height, width = max(height, original[0]), max(width, original[1])
    logits = functional.interpolate(logits, (height, width), mode='bilinear')
    return logits[0, :, : original[0], : original[1]].sigmoid() > threshold
