"""What is done with an exported file before it gets its name."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

from mmlocalattn.data.picture_files import SUFFIXES
from mmlocalattn.export.certificate import Limits, certify
from mmlocalattn.export.file_models import file_model_config, pad_to, padded_size
from mmlocalattn.export.openvino_ir import check_packages, quantize, write_ir
from mmlocalattn.export.pipeline import leave_raw, pipeline_without_labels, sizes_after
from mmlocalattn.export.preprocessing import add_preprocessing, preprocessing_of
from mmlocalattn.export.run_file import load_file
from mmlocalattn.export.verify_data import check_source

CALIBRATION_IMAGES = 300
"""At most."""


@dataclass(frozen=True)
class Finish:
    """Adds pre-processing, quantizes and certifies, as far as that is asked for.

    Attributes:
        cfg: That the file was exported with.
        checkpoint: With its weights, None where they are random.
        out: The name that the file is to get.
        sizes: That it takes without pre-processing.
        source: Of the images of the certificate, None for no certificate.
        number: Of them, at most; 0 for all.
        limits: That must hold.
        with_preprocessing: Whether to put pre-processing into the file.
        calibration: Folder of pictures for 8-bit integers, None for none.
        report: Is called with a line about each step.
    """

    cfg: Config
    checkpoint: str | None
    out: Path
    sizes: Sequence[tuple[int, int]]
    source: str | None
    number: int
    limits: Limits
    with_preprocessing: bool
    calibration: Path | None
    report: Callable[[str], None]

    def check(self, file_format: str) -> None:
        """Look for what will not go, before a file of this format is made.

        Raises:
            FileNotFoundError: If there is no picture to calibrate with.
            ModuleNotFoundError: If a package that is needed is not installed.
            ValueError: If the format, or the config, does not go with what is asked for.
        """
        if self.source is not None:
            check_source(self.cfg, self.source)
        if self.source not in (None, 'sample') and not self.with_preprocessing:
            self._check_sizes()
        if self.with_preprocessing:
            if file_format not in ('onnx', 'openvino'):
                raise ValueError(
                    f'--with-preprocessing is for --format onnx and openvino, got {file_format}'
                )
            preprocessing_of(self.cfg, self.sizes)
        if self.calibration is not None:
            if file_format != 'openvino' or self.source is None:
                raise ValueError(
                    '--int8 is for --format openvino, and for whole models with a certificate'
                )
            check_packages('openvino', 'nncf')
            pictures_in(self.calibration)

    def _check_sizes(self) -> None:
        """Raise a ValueError if the test pipeline makes larger images than the file will take.

        Whatever their shape: which shapes there are is not known yet.
        """
        most = tuple(max(sides) for sides in zip(*self.sizes))
        made = [] if self.cfg.default_scope == 'mmpretrain' else sizes_after(self.cfg)
        too_large = [size for size in made if size[0] > most[0] or size[1] > most[1]]
        if made and len(too_large) == len(made):
            height, width = too_large[0]
            raise ValueError(
                f'the test pipeline of {self.cfg.filename} makes images of {height} x {width}, '
                f'and with this --size the file takes {most[0]} x {most[1]} at most: add '
                f'{height}x{width} to --size, or --verify sample'
            )

    def __call__(self, file: Path) -> dict[str, Any]:
        """Finish a file, in place; gives what is added to its metadata.

        Raises:
            FileNotFoundError, ModuleNotFoundError: If something that is read is missing.
            ValueError: If a limit does not hold, or the pre-processing has no form in the file.
        """
        added: dict[str, Any] = {}
        if self.with_preprocessing:
            added = self._preprocess(file)
        if self.calibration is not None:
            added['int8'] = self._quantize(file, self.calibration)
        if self.source is None or self.checkpoint is None:
            return {**added, 'verified': 'random tensors'}
        self.report('verifying on images')
        certificate = certify(
            *(file, self.cfg, self.checkpoint, self.source, self.limits, self.number),
            self.report,
            self.out,
        )
        return {**added, 'certificate': certificate}

    def _preprocess(self, file: Path) -> dict[str, Any]:
        self.report('adding pre-processing')
        rule = preprocessing_of(self.cfg, self.sizes)
        head = self.cfg.model.get('decode_head') or {}
        onnx_file = file.with_suffix('.onnx')
        added = add_preprocessing(onnx_file, rule, head.get('align_corners', False))
        if file.suffix == '.xml':
            write_ir(onnx_file, file, {**load_file(file).meta, **added})
        return added

    def _quantize(self, file: Path, folder: Path) -> dict[str, Any]:
        pictures = pictures_in(folder)[:CALIBRATION_IMAGES]
        self.report(f'quantizing with {len(pictures)} pictures')
        meta = load_file(file).meta
        quantize(file, self._images(file, pictures), len(pictures), meta)
        return {'pictures': len(pictures)}

    def _images(self, file: Path, pictures: list[Path]) -> list[Tensor]:
        """Pictures as the file takes them."""
        cfg = self.cfg.copy()
        if self.with_preprocessing:
            leave_raw(cfg)
        init_default_scope(cfg.default_scope)
        model: Any = MODELS.build(file_model_config(cfg, str(file)))
        pipeline = Compose(pipeline_without_labels(cfg))
        images = []
        for index, picture in enumerate(pictures):
            item = pipeline(dict(img_path=str(picture), img_id=index, seg_fields=[]))
            pixels = model.data_preprocessor(pseudo_collate([item]), False)['inputs']
            if self.with_preprocessing:
                images.append(pixels.permute(0, 2, 3, 1).to(torch.uint8).contiguous())
            else:
                images.append(pad_to(pixels, padded_size(model.file, *pixels.shape[2:])))
        return images


def pictures_in(folder: Path) -> list[Path]:
    """The pictures in a folder and in the folders in it.

    Raises:
        FileNotFoundError: If there is none.
    """
    pictures = sorted(p for p in _files(folder) if p.suffix.lower() in SUFFIXES)
    if not pictures:
        raise FileNotFoundError(f'{str(folder)!r} has no picture to calibrate with')
    return pictures


def _files(folder: Path) -> Iterator[Path]:
    return folder.rglob('*') if folder.is_dir() else iter(())
