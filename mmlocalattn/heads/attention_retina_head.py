"""The RetinaNet head of stand-alone self-attention (arXiv 1906.05909, appendix A.3)."""

from typing import Any, Literal

from mmdet.models.dense_heads import RetinaHead
from torch import Tensor, nn

from mmlocalattn.layers.residual import relu
from mmlocalattn.layers.stand_alone_attention import StandAloneAttention


class AttentionLayer(nn.Module):
    """Attention on NCHW maps, as a convolution of the head is called.

    Args:
        attn: Of stride 1.
        activate: Apply ReLU to the output.
    """

    def __init__(self, attn: StandAloneAttention, activate: bool) -> None:
        super().__init__()
        self.attn = attn
        self.activate = activate
        value = attn.qkv.weight[-attn.out_channels :]
        nn.init.normal_(value.detach(), std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out_channels, H, W)."""
        y = self.attn(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return relu(y) if self.activate else y


class AttentionRetinaHead(RetinaHead):
    """mmdet's ``RetinaHead`` with attention in place of every 3x3 convolution.

    The last convolution of a branch becomes attention of the same width and a pointwise
    convolution, which mixes the attention heads and predicts. The projections to the values start
    with a deviation of 0.01, as the paper says (which we read as RetinaNet's, not as a variance).

    Args:
        num_classes: Without background.
        in_channels: Of each map.
        num_heads: Attention heads.
        kernel_size: See :class:`~mmlocalattn.layers.stand_alone_attention.StandAloneAttention`, as
            is ``padding``.
        **options: Of mmdet's ``RetinaHead``, except ``conv_cfg`` and ``norm_cfg``.

    Raises:
        ValueError: If ``conv_cfg`` or ``norm_cfg`` is given.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        num_heads: int = 8,
        kernel_size: int = 7,
        padding: Literal['mask', 'zero'] = 'mask',
        **options: Any,
    ) -> None:
        unused = sorted({'conv_cfg', 'norm_cfg'} & options.keys())
        if unused:
            raise ValueError(f'AttentionRetinaHead has no convolutions and norms, remove {unused}')
        self.attention: dict[str, Any] = dict(
            num_heads=num_heads, kernel_size=kernel_size, padding=padding
        )
        super().__init__(num_classes, in_channels, **options)

    def _init_layers(self) -> None:
        """What mmdet's forward pass of one level runs."""
        self.cls_convs, self.reg_convs = self._branch(), self._branch()
        self.retina_cls = nn.Conv2d(
            self.feat_channels, self.num_base_priors * self.cls_out_channels, 1
        )
        self.retina_reg = nn.Conv2d(
            self.feat_channels, self.num_base_priors * self.bbox_coder.encode_size, 1
        )

    def _branch(self) -> nn.ModuleList:
        layers, channels = nn.ModuleList(), self.in_channels
        for index in range(self.stacked_convs + 1):
            attn = StandAloneAttention(channels, self.feat_channels, **self.attention)
            layers.append(AttentionLayer(attn, activate=index < self.stacked_convs))
            channels = self.feat_channels
        return layers
