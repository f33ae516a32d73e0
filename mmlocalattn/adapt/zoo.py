"""The backbones by the names that configs use, and how each is trained for each task.

:data:`BACKBONES` is the one table of both: the package's configs agree with it (a test compares
them), and :func:`~mmlocalattn.adapt.swap.swap_backbone` takes from it what fits the task. Where the
package has several configs of a backbone for a task, the table follows

- detection: Mask R-CNN with the 1x schedule, else with 3x, else Cascade Mask R-CNN;
- segmentation: UPerNet, else Semantic FPN;
- classification: ImageNet from scratch.

Where it has none, the comment above the rows says whose value stands there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

_TASKS = {'mmdet': 0, 'mmseg': 1, 'mmpretrain': 2}
_BATCH_SIZES = (16, 16, 1024)
"""For which the learning rates of the tasks are meant."""


@dataclass(frozen=True)
class ZooEntry:
    """A backbone of the zoo. Triples are for detection, segmentation and classification.

    Tasks are named by the scope of their toolbox, ``'mmdet'``, ``'mmseg'`` or ``'mmpretrain'``; any
    other scope means detection.

    Args:
        name: Of the class, without a scope.
        arch: Size of the backbone: ``arch`` of the class, or its ``depth`` if a number.
        drop_path_rate: Of the last block.
        lr: Learning rate of AdamW for batches of 16, 16 and 1024 images. None: the backbone learns
            with the optimizer of a ResNet.
        weight_decay: Of AdamW.
        dilations: Of DiNAT.
        window_size: Of Slide-Swin.
    """

    name: str
    arch: str | int
    drop_path_rate: tuple[float, float, float]
    lr: tuple[float, float, float] | None = (1e-4, 6e-5, 1e-3)
    weight_decay: tuple[float, float, float] = (0.05, 0.01, 0.05)
    dilations: tuple[str, str, str] | None = None
    window_size: tuple[int, int, int] | None = None

    def backbone(self, scope: str) -> dict[str, Any]:
        """The config of the backbone for the task of ``scope``."""
        task = _TASKS.get(scope, 0)
        config: dict[str, Any] = {
            'type': f'mmlocalattn.{self.name}',
            'arch' if isinstance(self.arch, str) else 'depth': self.arch,
            'drop_path_rate': self.drop_path_rate[task],
        }
        if self.dilations is not None:
            config['dilations'] = self.dilations[task]
        if self.window_size is not None:
            config['window_size'] = self.window_size[task]
        return config

    def optimizer(self, scope: str, batch_size: int | None = None) -> dict[str, Any] | None:
        """The config of AdamW for the task of ``scope``; None if the backbone does not use it.

        Args:
            scope: Of the toolbox.
            batch_size: Images a step; None for those of the package's configs.
        """
        if self.lr is None:
            return None
        task = _TASKS.get(scope, 0)
        usual = _BATCH_SIZES[task]
        return dict(
            type='AdamW',
            lr=self.lr[task] * ((batch_size or usual) / usual),
            betas=(0.9, 0.999),
            weight_decay=self.weight_decay[task],
        )


_ssvit = partial(ZooEntry, 'SSViT', lr=(4e-4, 6e-5, 1e-3))
_nat = partial(ZooEntry, 'NAT')
_dinat = partial(ZooEntry, 'DiNAT', dilations=('coco', 'ade20k', 'imagenet'))
_slide_swin = partial(ZooEntry, 'SlideSwin', window_size=(7, 7, 56))
_pvt = partial(ZooEntry, lr=(2e-4, 1e-4, 1e-3), weight_decay=(1e-4, 1e-4, 0.05))
_slide_pvt, _slide_pvtv2 = partial(_pvt, 'SlidePVT'), partial(_pvt, 'SlidePVTv2')
_slide_cswin = partial(ZooEntry, 'SlideCSwin')
_slide_nat = partial(ZooEntry, 'SlideNAT')
_qna_vit = partial(ZooEntry, 'QnAViT', lr=(1e-4, 6e-5, 2e-3))
_sasa = partial(ZooEntry, 'SASAResNet', drop_path_rate=(0.0, 0.0, 0.0), lr=None)

BACKBONES: Mapping[str, ZooEntry] = MappingProxyType(
    {
        # The learning rate for segmentation with ssvit_t is that of its siblings: our choice.
        'ssvit_t': _ssvit('tiny', (0.1, 0.1, 0.1)),
        'ssvit_s': _ssvit('small', (0.15, 0.15, 0.15)),
        'ssvit_b': _ssvit('base', (0.4, 0.4, 0.4)),
        'ssvit_l': _ssvit('large', (0.5, 0.5, 0.5), lr=(2e-4, 6e-5, 1e-3)),
        'nat_m': _nat('mini', (0.2, 0.2, 0.2)),
        'nat_t': _nat('tiny', (0.2, 0.3, 0.2)),
        'nat_s': _nat('small', (0.35, 0.5, 0.3)),
        'nat_b': _nat('base', (0.5, 0.5, 0.5)),
        # For classification with dinat_l: the released code's drop path.
        'dinat_m': _dinat('mini', (0.2, 0.2, 0.2)),
        'dinat_t': _dinat('tiny', (0.2, 0.3, 0.2)),
        'dinat_s': _dinat('small', (0.35, 0.5, 0.3)),
        'dinat_b': _dinat('base', (0.6, 0.5, 0.5), lr=(7.5e-5, 6e-5, 1e-3)),
        'dinat_l': _dinat(
            'large',
            (0.6, 0.3, 0.35),
            lr=(7.5e-5, 6e-5, 1e-3),
            dilations=('coco', 'ade20k_640', 'imagenet'),
        ),
        # For segmentation with slide_swin_b: as its siblings, our choice.
        'slide_swin_t': _slide_swin('tiny', (0.2, 0.3, 0.2)),
        'slide_swin_s': _slide_swin('small', (0.2, 0.3, 0.3)),
        'slide_swin_b': _slide_swin('base', (0.3, 0.3, 0.5)),
        # For segmentation with slide_pvt_m: as its siblings, our choice.
        'slide_pvt_t': _slide_pvt('tiny', (0.1, 0.1, 0.1)),
        'slide_pvt_s': _slide_pvt('small', (0.1, 0.1, 0.1)),
        'slide_pvt_m': _slide_pvt('medium', (0.0, 0.1, 0.3)),
        # For detection with b3 to b5 and for segmentation: PVT's optimizer and the drop path of
        # classification, our choice.
        'slide_pvtv2_b1': _slide_pvtv2('b1', (0.1, 0.1, 0.1)),
        'slide_pvtv2_b2': _slide_pvtv2('b2', (0.1, 0.1, 0.1)),
        'slide_pvtv2_b3': _slide_pvtv2('b3', (0.3, 0.3, 0.3)),
        'slide_pvtv2_b4': _slide_pvtv2('b4', (0.3, 0.3, 0.3)),
        'slide_pvtv2_b5': _slide_pvtv2('b5', (0.3, 0.3, 0.3)),
        # For detection and segmentation: the drop path of classification, our choice.
        'slide_cswin_t': _slide_cswin('tiny', (0.2, 0.2, 0.2)),
        'slide_cswin_s': _slide_cswin('small', (0.4, 0.4, 0.4)),
        'slide_cswin_b': _slide_cswin('base', (0.5, 0.5, 0.5), weight_decay=(0.05, 0.01, 0.1)),
        # For detection and segmentation: the drop path of NAT, the host; our choice.
        'slide_nat_m': _slide_nat('mini', (0.2, 0.2, 0.2)),
        'slide_nat_t': _slide_nat('tiny', (0.2, 0.3, 0.2)),
        'slide_nat_s': _slide_nat('small', (0.35, 0.5, 0.3)),
        # For detection with t_7x7 and for segmentation with t_7x7 and b: as classification, our
        # choice.
        'qna_vit_t': _qna_vit('tiny', (0.05, 0.05, 0.05)),
        'qna_vit_t_7x7': _qna_vit('tiny_7x7', (0.05, 0.05, 0.05)),
        'qna_vit_s': _qna_vit('small', (0.2, 0.2, 0.2)),
        'qna_vit_b': _qna_vit('base', (0.5, 0.5, 0.5)),
        # For detection and segmentation with r26 and r38: as r50, our choice.
        'sasa_r26': _sasa(26),
        'sasa_r38': _sasa(38),
        'sasa_r50': _sasa(50),
    }
)
"""Backbones by the names that configs use, such as ``'ssvit_s'``."""
