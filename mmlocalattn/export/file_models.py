"""Exported files in the place of a model: what mmdet, mmsegmentation and mmpretrain evaluate.

Boxes, masks, scores and labels of a file go into the samples that the toolboxes' metrics and
visualizers take, in the pixels of the original image.
"""

import time
from abc import abstractmethod
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional

from mmlocalattn.export.pipeline import leave_raw, test_scale
from mmlocalattn.export.run_file import ExportedFile, load_file, paste_masks, resize_masks
from mmlocalattn.registry import MODELS
from mmlocalattn.training import RunError, preprocessor_of
from mmlocalattn.training.data_sets import check_class_order, classes_of

_FILE_MODELS = {'mmdet': 'FileDetector', 'mmseg': 'FileSegmentor', 'mmpretrain': 'FileClassifier'}
_OUTPUTS = {'mmdet': ('boxes',), 'mmseg': ('scores', 'labels'), 'mmpretrain': ('scores',)}


def use_file(cfg: Config, path: str) -> None:
    """Let a config test an exported file in the place of its model, one image at a time.

    Args:
        cfg: Of mmdet, mmsegmentation or mmpretrain. Changed in place.
        path: Of the file.

    Raises:
        FileNotFoundError, ModuleNotFoundError: Of :func:`~mmlocalattn.export.run_file.load_file`.
        ValueError: Of it too, and if the file is of another kind of model or knows other classes.
    """
    file = load_file(path)
    check_file_fits(file, cfg)
    if file.takes_pixels:
        _check_scale(file, cfg)
        leave_raw(cfg)
    cfg.model = file_model_config(cfg, path)
    cfg.load_from = None
    # Images of a batch are padded to the largest of them, which changes what is found in them.
    cfg.test_dataloader.batch_size = 1


def file_model_config(cfg: Config, path: str) -> dict:
    """What stands in the place of ``cfg.model`` to run a file, of :data:`MODELS`."""
    scope = cfg.default_scope
    preprocessor = {**preprocessor_of(cfg), '_scope_': scope}
    if scope == 'mmpretrain':  # whose classifiers have a default
        preprocessor.setdefault('type', 'ClsDataPreprocessor')
    options: dict[str, Any] = dict(
        type=f'mmlocalattn.{_FILE_MODELS[scope]}', file=path, data_preprocessor=preprocessor
    )
    if scope == 'mmseg':
        head = cfg.model.decode_head
        options.update(
            test_cfg=cfg.model.get('test_cfg'),
            align_corners=head.get('align_corners', False),
            threshold=head.get('threshold'),
        )
    return options


def check_file_fits(file: ExportedFile, cfg: Config) -> None:
    """Compare a file with the config that is to evaluate it.

    Raises:
        ValueError: If it is of another kind of model, or knows other classes.
    """
    scope = cfg.get('default_scope')
    if scope not in _FILE_MODELS:
        raise ValueError(f'{cfg.filename} is of {scope}: {", ".join(_FILE_MODELS)} evaluate files')
    made_by = file.meta.get('scope', scope)
    outputs = file.output_names or ('scores',)
    part = file.meta.get('part', 'model')
    if made_by != scope or part != 'model' or outputs[0] not in _OUTPUTS[scope]:
        gives = f' that gives {", ".join(outputs)}' if part == 'model' else ''
        raise ValueError(
            f'{str(file.path)!r} holds a {part} of {made_by}{gives}, '
            f'which {cfg.filename} of {scope} cannot evaluate: export the whole model of this '
            'config'
        )
    classes = classes_of(cfg, 'test')
    if file.classes and classes and len(file.classes) != len(classes):
        raise ValueError(
            f'{str(file.path)!r} knows {len(file.classes)} classes ({_some(file.classes)}) and the '
            f'test data of {cfg.filename} have {len(classes)} ({_some(classes)}): take the config '
            'it was exported with'
        )
    check_class_order(file.classes, cfg, repr(str(file.path)))


def _check_scale(file: ExportedFile, cfg: Config) -> None:
    """Raise a ValueError if a file resizes images itself, and to another size than a config."""
    own, asked = file.meta.get('test_scale'), test_scale(cfg)
    if own != asked:
        inside, outside = ('not' if size is None else f'to {tuple(size)}' for size in (own, asked))
        raise ValueError(
            f'{str(file.path)!r} resizes images {inside}, and the test pipeline of {cfg.filename} '
            f'{outside} (width, height): a file with pre-processing keeps its own size; export '
            'it again with this config'
        )


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')


def padded_size(file: ExportedFile, height: int, width: int) -> tuple[int, int]:
    """The size to which an image is padded for a file: a multiple of its divisor that it takes."""
    if file.takes_pixels:
        return height, width
    divisor = file.divisor if 'boxes' in file.output_names else 1
    (least_h, least_w), _ = file.size_range
    sides = (max(height, least_h), max(width, least_w))
    return (-(-sides[0] // divisor) * divisor, -(-sides[1] // divisor) * divisor)


def pad_to(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) images with zeros on the right and at the bottom."""
    height, width = images.shape[2:]
    return functional.pad(images, (0, size[1] - width, 0, size[0] - height))


class FileModel(BaseModel):
    """Runs an exported file on batches of a toolbox.

    Args:
        file: Path of the file.
        data_preprocessor: Of the model that was exported.

    Attributes:
        seconds: That the file has taken for each batch.
    """

    def __init__(self, file: str, data_preprocessor: dict) -> None:
        BaseModel.__init__(self, data_preprocessor)  # also where EncoderDecoder comes before it
        self.file = load_file(file)
        self.seconds: list[float] = []
        # Distributed tests refuse a model without parameters.
        self.nothing = nn.Parameter(torch.zeros(1))

    def run_file(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs of the file for a batch, which need not lie on the CPU.

        Raises:
            RunError: If the file does not take images of this size.
        """
        images = images.cpu()
        if self.file.takes_pixels:
            images = images.permute(0, 2, 3, 1).to(torch.uint8)
        images = images.contiguous()
        began = time.perf_counter()
        try:
            outputs = self.file(images)
        except ValueError as error:
            raise RunError(str(error)) from error
        self.seconds.append(time.perf_counter() - began)
        return outputs

    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'
    ) -> list:
        """Predict, whatever the mode: a file cannot be trained."""
        return self.predict(inputs, data_samples or [])

    @abstractmethod
    def predict(self, inputs: Tensor, data_samples: list) -> list:
        """Samples with predictions, for (B, C, H, W) inputs."""


@MODELS.register_module()
class FileDetector(FileModel):
    """A detector, for mmdet."""

    def predict(self, inputs: Tensor, data_samples: list) -> list:
        """See :class:`FileModel`."""
        size = padded_size(self.file, *inputs.shape[2:])
        outputs = self.run_file(pad_to(inputs, size))
        for index, sample in enumerate(data_samples):
            found = {name: output[index] for name, output in outputs.items()}
            sample.pred_instances = self._instances(found, sample.metainfo, size)
        return data_samples

    def _instances(
        self, found: dict[str, Tensor], image: dict, size: tuple[int, int]
    ) -> InstanceData:
        """What was found in one image, without the places that are left over."""
        kept = found['labels'] >= 0
        height, width = image['img_shape'][:2]
        scale = image.get('scale_factor', (1.0, 1.0))
        boxes = found['boxes'][kept]
        factors = boxes.new_tensor([*scale, *scale])
        limits = boxes.new_tensor([width, height, width, height])
        result = InstanceData(
            bboxes=boxes.clamp(torch.zeros(4), limits) / factors,
            scores=found['scores'][kept],
            labels=found['labels'][kept],
        )
        if 'masks' in found:
            masks, original = found['masks'][kept], tuple(image['ori_shape'][:2])
            threshold = self.file.meta.get('mask_threshold', 0.5)
            if self.file.meta.get('mask_frame', 'box') == 'box':
                # Into the boxes as they are in the file, whose frames the masks fill.
                result.masks = paste_masks(masks, boxes / factors, original, threshold)
            else:
                result.masks = resize_masks(masks, size, original, scale, threshold)
        return result


@MODELS.register_module()
class FileClassifier(FileModel):
    """A classifier of one label, for mmpretrain."""

    def predict(self, inputs: Tensor, data_samples: list) -> list:
        """See :class:`FileModel`."""
        scores = self.run_file(inputs)['scores'].softmax(1)
        for sample, score in zip(data_samples, scores):
            sample.set_pred_score(score).set_pred_label(score.argmax(0, keepdim=True))
        return data_samples


@MODELS.register_module(name='FileSegmentor')
def _segmentor(**options: Any) -> FileModel:
    """A segmentor, which mmseg runs on whole images or on slid windows and resizes the maps of."""
    from mmseg.models import EncoderDecoder

    class FileSegmentor(FileModel, EncoderDecoder):
        def __init__(
            self,
            file: str,
            data_preprocessor: dict,
            test_cfg: dict | None = None,
            align_corners: bool = False,
            threshold: float | None = None,
        ) -> None:
            FileModel.__init__(self, file, data_preprocessor)
            self.test_cfg = Config(test_cfg or dict(mode='whole'))
            self.align_corners = align_corners
            self.decode_head = SimpleNamespace(threshold=threshold)
            self.out_channels = self.file.meta.get('channels_out') or len(self.file.classes or ())

        def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
            height, width = inputs.shape[2:]
            outputs = self.run_file(pad_to(inputs, padded_size(self.file, height, width)))
            if 'labels' in outputs:
                labels = functional.one_hot(outputs['labels'], len(self.file.classes or ()))
                scores = labels.permute(0, 3, 1, 2).float()
            else:
                scores = outputs['scores']
            return scores[..., :height, :width].to(inputs)

        def predict(self, inputs: Tensor, data_samples: list) -> list:
            return EncoderDecoder.predict(self, inputs, data_samples)

    return FileSegmentor(**options)
