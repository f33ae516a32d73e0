import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mmlocalattn.backbones.qna_vit import QnAViT
from mmlocalattn.converters.convert import FAMILIES, convert_checkpoint
from mmlocalattn.converters.qna_vit import MARKS, convert, infer_arch
from mmlocalattn.training import read_checkpoint

PARTS = {
    'norm1.weight': 'LayerNorm_0/scale',
    'norm1.bias': 'LayerNorm_0/bias',
    'norm2.weight': 'LayerNorm_1/scale',
    'norm2.bias': 'LayerNorm_1/bias',
    'mlp.fc1.weight': 'MlpBlock_0/Dense_0/kernel',
    'mlp.fc1.bias': 'MlpBlock_0/Dense_0/bias',
    'mlp.fc2.weight': 'MlpBlock_0/Dense_1/kernel',
    'mlp.fc2.bias': 'MlpBlock_0/Dense_1/bias',
    'skip.weight': 'Conv_0/kernel',
    'attn.query': 'FusedKQnA_0/query',
    'attn.key.weight': 'FusedKQnA_0/Wk',
    'attn.value.weight': 'FusedKQnA_0/to_v/kernel',
    'attn.pos_bias': 'FusedKQnA_0/rpe_bias',
    'attn.attention_scale': 'FusedKQnA_0/attn_scale_weights',
    'attn.qkv.weight': 'MultiHeadSelfAttention_0/to_qkv/kernel',
    'attn.rel_pos_bias': 'MultiHeadSelfAttention_0/RelativePositionalEmbedding_0/rpe_bias',
}
ARCH = {
    'embed_dims': (8, 16, 24, 32),
    'depths': (2, 1, 2, 0),
    'num_heads': (2, 2, 4, 4),
    'kernel_sizes': (3, 5, 3, 3),
    'window_depths': (0, 2, 1, 2),
    'window_heads': (1, 2, 2, 4),
    'window_sizes': (7, 7, 14, 7),
    'mlp_ratios': (2, 2, 2, 2),
}


def to_flax(state: dict[str, torch.Tensor], window_depths: tuple[int, ...]) -> dict:
    """Our classifier with the names, and in the layout, of the released code."""
    flax = {
        'StemBlock_0/conv_1x1/kernel': state['backbone.stem.weight'].permute(2, 3, 1, 0),
        'ClassificationHead_0/LayerNorm_0/scale': state['backbone.output_norms.3.weight'],
        'ClassificationHead_0/LayerNorm_0/bias': state['backbone.output_norms.3.bias'],
        'ClassificationHead_0/head_logits/kernel': state['head.fc.weight'].T,
        'ClassificationHead_0/head_logits/bias': state['head.fc.bias'],
    }
    last_block = {}
    for name in state:
        if name.startswith('backbone.stages.') and '.blocks.' in name:
            stage, block = int(name.split('.')[2]), int(name.split('.')[4])
            last_block[stage] = max(block + 1, last_block.get(stage, 0))
    for name, value in state.items():
        if not name.startswith('backbone.stages.'):
            continue
        _, _, stage, kind, rest = name.split('.', 4)
        stage = int(stage)
        if kind == 'downsample':
            number = last_block[stage - 1] - window_depths[stage - 1] + 1
            block = f'QnAStage_{stage - 1}/QnA_Block_{number}_stride_2'
            part, is_window = rest, False
        else:
            number, part = rest.split('.', 1)
            is_window = int(number) < window_depths[stage]
            if is_window:
                block = f'LSAStage_{stage}/MSA_Block_{int(number) + 1}'
            else:
                block = f'QnAStage_{stage}/QnA_Block_{int(number) - window_depths[stage] + 1}'
        attention = 'MultiHeadSelfAttention_0' if is_window else 'FusedKQnA_0'
        theirs = {**PARTS, 'attn.proj.weight': f'{attention}/to_out/kernel'}[part]
        if part == 'attn.qkv.weight':  # ours: q, k, v, each with its heads; theirs head by head
            heads = state[name.replace('qkv.weight', 'rel_pos_bias')].shape[0]
            value = torch.stack([v.unflatten(0, (heads, -1)) for v in value.chunk(3)], 1)
            value = value.flatten(0, 2).T
        elif part == 'attn.query':
            value = value.flatten(1)
        elif part in ('attn.pos_bias', 'attn.attention_scale'):
            value = value.flatten(2).flatten(0, 1).T
            value = value[None, None] if part == 'attn.attention_scale' else value
        elif part == 'attn.rel_pos_bias':
            value = value.flatten(1).T
        elif part == 'skip.weight':
            value = value.T[None, None]
        elif value.dim() == 2:
            value = value.T
        flax[f'{block}/{theirs}'] = value
    return flax


def pack(value: object) -> bytes:
    """As Flax packs trees: by the formats of msgpack that msgpack's own packer chooses."""
    if isinstance(value, torch.Tensor):
        shape = bytes([0x90 + value.dim()]) + b''.join(map(pack, value.shape))
        values = value.contiguous().numpy().tobytes()
        content = b'\x93' + shape + pack('float32') + b'\xc6' + struct.pack('>I', len(values))
        return b'\xc9' + struct.pack('>Ib', len(content + values), 1) + content + values
    if isinstance(value, int):
        return bytes([value]) if value < 0x80 else b'\xce' + struct.pack('>I', value)
    if isinstance(value, str):
        return b'\xd9' + bytes([len(value)]) + value.encode()
    items = b''.join(pack(key) + pack(child) for key, child in value.items())
    return b'\xde' + struct.pack('>H', len(value)) + items


def nested(flat: dict[str, torch.Tensor]) -> dict:
    tree = {}
    for name, value in flat.items():
        node = tree
        *parents, leaf = name.split('/')
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def classifier(arch: str | dict) -> nn.Module:
    backbone = QnAViT(arch, out_indices=(3,))
    head = nn.Linear(backbone.out_channels[-1], 4)
    return nn.ModuleDict({'backbone': backbone, 'head': nn.ModuleDict({'fc': head})})


@pytest.fixture
def ours() -> dict[str, torch.Tensor]:
    return {name: torch.randn_like(value) for name, value in classifier(ARCH).state_dict().items()}


@pytest.fixture
def flax(ours) -> dict[str, torch.Tensor]:
    return to_flax(ours, ARCH['window_depths'])


def run(src: Path, dst: Path) -> None:
    convert_checkpoint('qna_vit', src, dst, ARCH)


@pytest.mark.parametrize('form', ['training state', 'bare', 'npz'])
def test_round_trip_through_files(ours, flax, tmp_path, form):
    src = tmp_path / ('released.npz' if form == 'npz' else 'checkpoint_375300')
    if form == 'npz':
        np.savez(src, **{f'params/{name}': value.numpy() for name, value in flax.items()}, step=3)
    elif form == 'bare':
        src.write_bytes(pack(nested(flax)))
    else:
        moments = {'mu': {'w': torch.zeros(2)}, 'count': 375300}
        src.write_bytes(pack({'step': 375300, 'params': nested(flax), 'opt_state': moments}))
    run(src, tmp_path / 'ours.pth')
    checkpoint = read_checkpoint(tmp_path / 'ours.pth')
    assert checkpoint['state_dict'].keys() == ours.keys()
    for name, value in ours.items():
        assert torch.equal(checkpoint['state_dict'][name], value), name


def test_lists_every_difference_and_writes_nothing(flax, tmp_path):
    flax['QnAStage_0/QnA_Block_1/FusedKQnA_0/Wk_b'] = torch.zeros(2, 4)
    del flax['LSAStage_1/MSA_Block_2/LayerNorm_1/bias']
    flax['QnAStage_1/QnA_Block_1/FusedKQnA_0/Wk'] = torch.zeros(16, 8)
    (tmp_path / 'released').write_bytes(pack(nested(flax)))
    with pytest.raises(ValueError, match='does not match the model') as error:
        run(tmp_path / 'released', tmp_path / 'ours.pth')
    lines = [' '.join(line.split()) for line in str(error.value).splitlines()]
    assert set(lines[1:]) == {
        'missing backbone.stages.1.blocks.1.norm2.bias (16,)',
        'unexpected QnAStage_0/QnA_Block_1/FusedKQnA_0/Wk_b (2, 4)',
        'shape backbone.stages.1.blocks.2.attn.key.weight (8, 16), expected (16, 16)',
    }
    assert [path.name for path in tmp_path.iterdir()] == ['released']


@pytest.mark.parametrize(
    ('name', 'shape'),
    [
        ('QnAStage_1/QnA_Block_1/FusedKQnA_0/query', (2,)),
        ('LSAStage_3/MSA_Block_1/MultiHeadSelfAttention_0/to_qkv/kernel', (32, 95)),
        ('StemBlock_0/conv_1x1/kernel', (4, 4, 3)),
    ],
)
def test_names_what_it_cannot_reshape(flax, name, shape):
    with pytest.raises(ValueError, match=name):
        convert({**flax, name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ('content', 'name', 'message'),
    [
        (b'hello', 'released', 'not a msgpack file of Flax'),
        (b'\x80', 'released', 'holds no weights'),
        (b'hello', 'released.npz', 'not an .npz file'),
        (b'PK\x03\x04', 'released.npz', 'not an .npz file'),
    ],
)
def test_rejects_other_files(tmp_path, content, name, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        run(tmp_path / name, tmp_path / 'ours.pth')


@pytest.mark.parametrize('arch', QnAViT.arch_settings)
def test_the_arch_is_found_by_shapes(arch):
    with torch.device('meta'):
        state = classifier(arch).state_dict()
    flax = to_flax(state, QnAViT.arch_settings[arch]['window_depths'])
    assert set(infer_arch(flax)) == {'embed_dims', 'depths', 'window_depths', 'kernel_sizes'}
    assert flax.keys() >= MARKS
    assert FAMILIES['qna_vit'].find_arch(flax) == arch


def test_other_checkpoints_have_no_arch():
    assert not any(infer_arch({'weight': torch.zeros(3)}).values())
