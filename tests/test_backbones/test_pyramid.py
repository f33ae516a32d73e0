import pytest
import torch
from torch import nn

from mmlocalattn.backbones.pyramid import PyramidBackbone, Stage, resolve_arch

DIMS, DEPTHS = (4, 6, 8), (1, 2, 1)


class Stem(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).permute(0, 2, 3, 1)


class Down(nn.Module):
    def __init__(self, source, target):
        super().__init__()
        self.linear, self.norm = nn.Linear(source, target), nn.BatchNorm2d(target)

    def forward(self, x):
        return self.norm(self.linear(x[:, ::2, ::2]).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.linear, self.dropout = nn.Linear(dim, dim), nn.Dropout(0.2)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.dropout(self.linear(x))


def pyramid(**options):
    stages = [
        Stage(
            [Block(dim) for _ in range(depth)], dim, Down(DIMS[index - 1], dim) if index else None
        )
        for index, (dim, depth) in enumerate(zip(DIMS, DEPTHS, strict=True))
    ]
    return PyramidBackbone(Stem(3, DIMS[0], 1), stages, **{'out_indices': (0, 1, 2), **options})


IMAGE = torch.randn(2, 3, 9, 12)


@pytest.mark.parametrize('output_norm', [True, False])
def test_returns_contiguous_nchw_maps(output_norm):
    model = pyramid(output_norm=output_norm)
    outputs = model(IMAGE)
    assert [output.shape for output in outputs] == [(2, 4, 9, 12), (2, 6, 5, 6), (2, 8, 3, 3)]
    assert all(output.is_contiguous() for output in outputs)
    assert model.out_channels == DIMS
    for output in outputs:
        is_normalised = torch.allclose(output.mean(1), torch.zeros(()), atol=1e-5)
        assert is_normalised == output_norm
    assert any('output_norms' in name for name in model.state_dict()) == output_norm


def test_stages_behind_the_last_output_are_not_kept():
    model = pyramid(out_indices=(1,))
    assert model.out_channels == (6,)
    assert len(model.stages) == 2
    (output,) = model(IMAGE)
    output.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize('out_indices', [(), (3,), (-1,), (1, 0), (1, 1)])
def test_rejects_out_indices(out_indices):
    with pytest.raises(ValueError, match=r'increasing stage numbers in 0\.\.2, got out_indices='):
        pyramid(out_indices=out_indices)


@pytest.mark.parametrize('frozen_stages', [-2, 4])
def test_rejects_frozen_stages(frozen_stages):
    with pytest.raises(ValueError, match=rf'in -1\.\.3, got {frozen_stages=}'):
        pyramid(frozen_stages=frozen_stages)


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 3])
def test_frozen_parts_neither_learn_nor_leave_eval_mode(frozen_stages):
    model = pyramid(frozen_stages=frozen_stages)
    frozen = [model.stem, *model.stages[:frozen_stages]] if frozen_stages >= 0 else []
    names = {id(parameter) for module in frozen for parameter in module.parameters()}
    for _ in range(2):
        assert all(
            parameter.requires_grad != (id(parameter) in names) for parameter in model.parameters()
        )
        assert all(not module.training for part in frozen for module in part.modules())
        assert all(stage.training for stage in model.stages[max(frozen_stages, 0) :])
        model.eval().train()
    assert all(parameter.requires_grad for parameter in model.output_norms.parameters())
    sum(output.square().sum() for output in model(IMAGE)).backward()
    for parameter in model.parameters():
        assert (parameter.grad is None) == (id(parameter) in names)


@pytest.mark.parametrize('norm_eval', [True, False])
def test_norm_eval_keeps_batch_statistics(norm_eval):
    model = pyramid(norm_eval=norm_eval).eval().train()
    norm = model.stages[1].downsample.norm
    assert model.training
    assert norm.training != norm_eval
    model(IMAGE)
    assert norm.num_batches_tracked == (0 if norm_eval else 1)
    assert norm.weight.requires_grad


def test_norm_eval_holds_for_synchronised_batch_norm():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(pyramid(norm_eval=True)).train()
    assert isinstance(model.stages[1].downsample.norm, nn.SyncBatchNorm)
    assert not model.stages[1].downsample.norm.training


def test_train_and_eval_return_the_model():
    model = pyramid(frozen_stages=1, norm_eval=True)
    assert model.train() is model
    assert model.train(False) is model
    assert not any(module.training for module in model.modules())


def test_checkpointing_recomputes_and_changes_nothing():
    results = []
    for with_cp in (False, True):
        torch.manual_seed(1)
        model = pyramid(with_cp=with_cp)
        outputs = model(IMAGE)
        sum(output.square().sum() for output in outputs).backward()
        results.append((outputs, {name: p.grad for name, p in model.named_parameters()}))
        assert {block.calls for stage in model.stages for block in stage.blocks} == {1 + with_cp}
    (outputs, grads), (cp_outputs, cp_grads) = results
    torch.testing.assert_close(cp_outputs, outputs, rtol=0, atol=0)
    torch.testing.assert_close(cp_grads, grads, rtol=0, atol=0)


def test_checkpointing_is_off_without_grad():
    model = pyramid(with_cp=True)
    with torch.no_grad():
        model(IMAGE)
    assert model.stages[0].blocks[0].calls == 1


@pytest.mark.parametrize('prefix', ['backbone.', ''])
def test_layer_depth(prefix):
    depth = pyramid().get_layer_depth
    names = {
        'stem.weight': 0,
        'stages.0.blocks.0.linear.weight': 1,
        'stages.1.downsample.norm.weight': 2,
        'stages.1.blocks.0.linear.bias': 2,
        'stages.1.blocks.1.linear.bias': 3,
        'stages.2.downsample.linear.weight': 4,
        'stages.2.blocks.0.linear.weight': 4,
        'output_norms.0.weight': 5,
    }
    for name, expected in names.items():
        assert depth(prefix + name, prefix) == (expected, 6), name


def test_layer_depth_outside_the_backbone_is_the_last():
    assert pyramid().get_layer_depth('neck.stages.0.weight') == (5, 6)


SETTINGS = {
    'tiny': {'embed_dims': (1, 2), 'depths': (3, 4), 'extra': (5, 6)},
    'huge': {'embed_dims': (7, 8), 'depths': (9, 9), 'extra': (9, 9)},
}


def test_resolve_arch_returns_copies():
    arch = {'embed_dims': [1, 2], 'depths': [3, 4]}
    for given, source in (('tiny', SETTINGS['tiny']), (arch, arch)):
        resolved = resolve_arch(given, SETTINGS, optional=('extra',))
        assert resolved == source
        assert resolved is not source


@pytest.mark.parametrize(
    ('arch', 'message'),
    [
        ('small', r"one of \['tiny', 'huge'\] or a dict, got arch='small'"),
        ({'embed_dims': (1,), 'depth': (1,)}, r"unknown=\['depth'\], missing=\['depths'\]"),
        ({'embed_dims': (1, 2), 'depths': (1,)}, r"got lengths=\{'embed_dims': 2, 'depths': 1\}"),
    ],
)
def test_resolve_arch_rejects(arch, message):
    with pytest.raises(ValueError, match=message):
        resolve_arch(arch, SETTINGS, optional=('extra',))
