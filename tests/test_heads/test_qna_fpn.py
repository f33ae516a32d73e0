import pytest
import torch
from mmdet.registry import MODELS

from mmlocalattn.heads.qna_fpn import QnAFPN, QnAUpsample

MAPS = [(4, 13, 20), (6, 7, 10), (8, 4, 5), (10, 2, 3)]
CHANNELS = [dim for dim, *_ in MAPS]


def inputs(maps=MAPS):
    return [torch.randn(2, *shape) for shape in maps]


def nearest(upsample):
    """Make the attention see the centre alone, and its projections the identity."""
    with torch.no_grad():
        upsample.attn.pos_bias.fill_(-1e4)
        upsample.attn.pos_bias[:, :, 1, 1] = 0
        for projection in (upsample.attn.value, upsample.attn.proj):
            torch.nn.init.eye_(projection.weight)
    upsample.norm = torch.nn.Identity()


@pytest.mark.parametrize(
    'options', [{}, {'add_extra_convs': 'on_input', 'start_level': 1}], ids=str
)
@pytest.mark.parametrize('num_outs', [4, 5, 6])
def test_with_nearest_upsampling_it_is_the_fpn_of_mmdet(options, num_outs):
    """Where every map is twice as large as the next one."""
    maps = [(dim, 16 >> index, 24 >> index) for index, dim in enumerate(CHANNELS)]
    options = dict(in_channels=CHANNELS, out_channels=16, num_outs=num_outs, **options)
    fpn, ours = MODELS.build(dict(type='FPN', **options)), QnAFPN(**options)
    theirs = {name.replace('.conv.', '.'): value for name, value in fpn.state_dict().items()}
    used = len(ours.fpn_convs)
    for index in range(num_outs - used):
        for kind in ('weight', 'bias'):
            extra = theirs.pop(f'fpn_convs.{used + index}.{kind}', None)
            if extra is not None:
                theirs[f'extra_convs.{index}.{kind}'] = extra
    missing, unexpected = ours.load_state_dict(theirs, strict=False)
    assert unexpected == []
    assert all(name.startswith('upsamples.') for name in missing)
    for upsample in ours.upsamples:
        nearest(upsample)
    features = inputs(maps)
    torch.testing.assert_close(ours(features), fpn(features), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('add_extra_convs', [False, 'on_input', 'on_output'])
def test_odd_maps_and_every_parameter_gets_a_gradient(add_extra_convs):
    neck = QnAFPN(CHANNELS, 16, num_outs=6, add_extra_convs=add_extra_convs)
    outputs = neck(inputs())
    assert [output.shape for output in outputs] == [
        (2, 16, *size) for size in [(13, 20), (7, 10), (4, 5), (2, 3), (1, 2), (1, 1)]
    ]
    assert all(output.is_contiguous() for output in outputs)
    sum(output.square().sum() for output in outputs).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in neck.parameters())


def test_upsample_crops_and_repeats_the_border():
    upsample, x = QnAUpsample(8, num_heads=2), torch.randn(1, 8, 3, 4)
    exact = upsample(x, (6, 8))
    torch.testing.assert_close(upsample(x, (5, 7)), exact[:, :, :5, :7])
    larger = upsample(x, (8, 7))
    torch.testing.assert_close(larger[:, :, :6], exact[..., :7])
    torch.testing.assert_close(larger[:, :, 6:], exact[:, :, 5:6, :7].expand(1, 8, 2, 7))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'num_outs': 3}, 'got num_outs=3, start_level=0'),
        ({'start_level': 4}, 'got num_outs=5, start_level=4'),
        ({'add_extra_convs': 'on_lateral'}, "got add_extra_convs='on_lateral'"),
    ],
)
def test_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        QnAFPN(**{'in_channels': CHANNELS, 'out_channels': 16, 'num_outs': 5, **options})
