import pytest
import torch
from backbone_contract import BackboneContract
from torch import nn

from mmlocalattn.backbones.qna_vit import QnADownsample, QnAStem, QnAViT
from mmlocalattn.converters.qna_vit import convert, infer_arch
from mmlocalattn.layers.drop_path import DropPath
from mmlocalattn.layers.query_and_attend import QueryAndAttend
from mmlocalattn.layers.window_attention import WindowAttention

NARROW = {
    'embed_dims': (8, 16, 24, 32),
    'depths': (1, 1, 1, 0),
    'num_heads': (2, 2, 4, 4),
    'kernel_sizes': (3, 5, 3, 3),
    'window_depths': (0, 1, 1, 1),
    'window_heads': (1, 2, 2, 4),
    'window_sizes': (7, 7, 14, 7),
    'mlp_ratios': (2, 2, 2, 2),
}
GOLDEN_ARCH = {
    'num_heads': (2, 4, 4, 8),
    'window_heads': (1, 2, 4, 4),
    'window_sizes': (7, 7, 14, 7),
    'mlp_ratios': (4, 4, 4, 4),
}
GOLDEN_STAGES = (
    'QnAStage_0/QnA_Block_1',
    'QnAStage_1/QnA_Block_1',
    'QnAStage_2/QnA_Block_1',
    'QnAStage_3',
)
# arch: parameters with final norm and classifier (1000 classes), of the backbone alone
PARAMETERS = {
    'tiny': (15_715_560, 15_201_536),
    'tiny_7x7': (15_753_960, 15_239_936),
    'small': (24_971_560, 24_457_536),
    'base': (55_670_008, 54_899_472),
}


@pytest.mark.parametrize('arch', QnAViT.arch_settings)
def test_parameters_of_the_classifier(arch):
    with torch.device('meta'):
        backbone = QnAViT(arch, out_indices=(3,))  # with the norm of the last map
        head = nn.Linear(backbone.out_channels[-1], 1000)
    parameters = [*backbone.parameters(), *head.parameters()]
    assert sum(parameter.numel() for parameter in parameters) == PARAMETERS[arch][0]


@pytest.mark.parametrize('kernel', [3, 7])
def test_equals_the_released_model(golden, kernel):
    """The file of kernel 7 in tests/data holds only what differs from that of kernel 3, which holds
    the map of the stem and three of the four stages."""
    arrays = {**golden('qna_vit_small_k3'), **golden(f'qna_vit_small_k{kernel}')}
    arrays = {name: torch.from_numpy(arrays[name]) for name in arrays if arrays[name].ndim}
    weights = {name[6:]: array for name, array in arrays.items() if name.startswith('param/')}
    arch = {**GOLDEN_ARCH, **infer_arch(weights)}
    num_stages = len(arch['embed_dims'])
    assert arch['kernel_sizes'] == (kernel,) * num_stages
    model = QnAViT(
        {key: values[:num_stages] for key, values in arch.items()},
        out_indices=(num_stages - 1,),
        output_norm=num_stages == 4,
    )
    weights = convert(weights)
    ours = {name[9:]: value for name, value in weights.items() if name.startswith('backbone.')}
    model.load_state_dict(ours)

    results = {}
    x = arrays['out/StemBlock_0/__call__']
    with torch.no_grad():
        if 'input_nhwc' in arrays:
            results['StemBlock_0'] = model.stem(arrays['input_nhwc'].permute(0, 3, 1, 2))
        for name, stage in zip(GOLDEN_STAGES, model.stages):
            results[name] = x = stage(x)
    compared = {f'out/{name}/__call__': result for name, result in results.items()}
    if num_stages == 4:
        pooled = model.output_norms['3'](x).mean((1, 2))
        compared['out/logits'] = pooled @ weights['head.fc.weight'].T + weights['head.fc.bias']
    for name, result in compared.items():
        if name in arrays or result is x:
            error = (result - arrays[name]).abs().max()
            assert error < 1e-4 * arrays[name].abs().max(), name


@pytest.mark.parametrize('size', [(8, 12), (5, 9), (1, 2), (3, 7)])
def test_stem_pads_as_flax(size):
    """Both sides, the odd pixel behind."""
    stem, image = QnAStem(3, 8), torch.randn(2, 3, *size)
    rows, columns = (-(-side // 4) for side in size)
    padded = torch.zeros(2, 3, 4 * rows, 4 * columns)
    top, left = (4 * rows - size[0]) // 2, (4 * columns - size[1]) // 2
    padded[:, :, top : top + size[0], left : left + size[1]] = image
    patches = padded.view(2, 3, rows, 4, columns, 4)
    expected = torch.einsum('bcyixj,ocij->byxo', patches, stem.weight)
    torch.testing.assert_close(stem(image), expected, rtol=1e-4, atol=1e-5)


def test_steps_down_take_heads_and_kernel_from_the_stage_before():
    model = QnAViT(NARROW)
    steps = [stage.downsample for stage in model.stages[1:]]
    assert all(isinstance(step, QnADownsample) for step in steps)
    assert [step.attn.num_heads for step in steps] == [4, 4, 8]
    assert [step.attn.kernel_size for step in steps] == [3, 5, 3]
    kinds = [[type(block.attn) for block in stage.blocks] for stage in model.stages]
    assert kinds == [
        [QueryAndAttend],
        [WindowAttention, QueryAndAttend],
        [WindowAttention, QueryAndAttend],
        [WindowAttention],
    ]


def test_drop_path_counts_steps_down():
    model = QnAViT(NARROW, drop_path_rate=0.8)
    rates = [module.rate for module in model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.1 * index for index in range(9)])


def test_initialisation_is_the_released_one():
    model = QnAViT({**NARROW, 'embed_dims': (64, 64, 64, 64)})
    for name, parameter in model.named_parameters():
        if name.endswith(('rel_pos_bias', 'pos_bias', 'bias')):
            assert not parameter.any(), name
        elif name.endswith('attention_scale'):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.35), name
        elif name.endswith('query'):
            assert parameter.std().item() == pytest.approx(
                0.88 * parameter.shape[-1] ** -0.5, rel=0.35
            )
        elif parameter.dim() > 1:
            assert parameter.std().item() == pytest.approx(parameter[0].numel() ** -0.5, rel=0.1), (
                name
            )


class TestQnAViT(BackboneContract):
    backbone = QnAViT
    narrow = NARROW
    parameters = {arch: alone for arch, (_, alone) in PARAMETERS.items()}  # noqa: RUF012
