"""RTMDet-Ins: masks from kernels that belong to the detections."""

import torch
from torch import Tensor, nn

from mmlocalattn.export.detectors.dense import DensePost
from mmlocalattn.export.detectors.detector import Detector, detections
from mmlocalattn.export.detectors.nms import take


class RTMDetIns(Detector):
    """A ``SingleStageDetector`` with mmdet's ``RTMDetInsHead``.

    Masks (B, K, H / s, W / s) are those of the whole image, s the stride of the finest map. mmdet
    enlarges their logits, so take those of the probabilities before enlarging.
    """

    output_names = ('boxes', 'scores', 'labels', 'masks')
    mask_frame = 'image'

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.post = DensePost(self.model.bbox_head)
        self.mask_threshold = self.model.bbox_head.test_cfg.mask_thr_binary

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """As for :class:`Detector`."""
        *outputs, kernels, features = self.model.bbox_head(self.model.extract_feat(image))
        boxes, scores, labels, (kernels, priors) = self.post.candidates(
            outputs, image, more=kernels, with_stride=True
        )
        *found, places = detections(self.post.nms, boxes, scores, labels, self.post.max_per_img)
        masks = self._masks(features, take(kernels, places), take(priors, places)).sigmoid()
        return *found, masks.masked_fill((found[2] < 0)[..., None, None], 0)

    def _masks(self, features: Tensor, kernels: Tensor, priors: Tensor) -> Tensor:
        """Logits of masks.

        Args:
            features: (B, prototypes, h, w).
            kernels: (B, K, parameters) of the layers of 1x1 that give a mask.
            priors: (B, K, 4): point and stride of each detection.

        Returns:
            (B, K, h, w).
        """
        head = self.model.bbox_head
        batch, number = kernels.shape[:2]
        shape = features.shape[2:]
        grid = head.prior_generator.single_level_grid_priors(
            shape, level_idx=0, device=features.device
        )
        offset = priors[:, :, None, :2] - grid  # (B, K, h * w, 2)
        offset = offset.transpose(2, 3) / (priors[..., 2, None, None] * 8)
        x = features.flatten(2)[:, None].expand(-1, number, -1, -1)
        x = torch.cat((offset, x), 2)
        parts = kernels.split(head.weight_nums + head.bias_nums, 2)
        count = len(head.weight_nums)
        for index, (weight, bias) in enumerate(zip(parts[:count], parts[count:])):
            outputs = bias.shape[2]
            x = weight.reshape(batch, number, outputs, -1) @ x + bias[..., None]
            x = x.relu() if index < count - 1 else x
        return x.reshape(batch, number, *shape)
