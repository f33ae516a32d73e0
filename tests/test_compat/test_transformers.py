"""Backbones in the models of transformers, which lies in a folder that no other test sees.

transformers 5 keeps mmpretrain from being imported; tools/setup_env.sh installs it apart.
"""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = Path(sys.prefix, 'transformers')
pytestmark = [
    pytest.mark.needs_torch('2.4', 'transformers'),
    pytest.mark.xdist_group('transformers'),  # they share a process of their own
]

PREAMBLE = """
import sys

BLOCKED = {'mmcv', 'mmdet', 'mmpretrain', 'mmseg', 'natten', 'timm'}

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in BLOCKED:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Block())
import torch
from torch import nn
from mmlocalattn import hub
from mmlocalattn.compat.transformers import LocalAttentionBackbone, LocalAttentionConfig
from transformers import AutoBackbone, AutoConfig

ARCH = dict(
    embed_dims=(8, 16, 16, 16), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), mlp_ratios=(1, 1, 1, 1)
)

def config(name='ssvit_t', **options):
    return LocalAttentionConfig(backbone_name=name, options=dict(arch=ARCH), **options)
"""

BACKBONE = """
backbone = AutoBackbone.from_config(config(out_features=['stage2', 'stage3'])).eval()
assert type(backbone) is LocalAttentionBackbone
assert backbone.channels == [16, 16] and backbone.out_indices == [1, 2]
assert len(backbone.backbone.stages) == 3
image = torch.randn(1, 3, 65, 70)
output = backbone(image, output_hidden_states=True)
assert [tuple(each.shape) for each in output.feature_maps] == [(1, 16, 9, 9), (1, 16, 5, 5)]
assert output.hidden_states is output.feature_maps and output.attentions is None
assert len(backbone(image, return_dict=False)) == 1
assert AutoBackbone.from_config(config()).out_features == ['stage4']

# Built with the values that the class gives.
torch.manual_seed(0)
theirs = AutoBackbone.from_config(config(out_indices=(0, 3))).backbone.state_dict()
torch.manual_seed(0)
ours = hub.create('ssvit_t', arch=ARCH, out_indices=(0, 3)).backbone.state_dict()
assert all(torch.equal(ours[name], value) for name, value in theirs.items())

# Saved and loaded, what is not saved (shift_weight of slide attention) too.
for name, options in (('ssvit_t', dict(arch=ARCH)), ('slide_pvt_t', {})):
    chosen = LocalAttentionConfig(backbone_name=name, options=options, out_indices=(0, 2))
    saved = AutoBackbone.from_config(chosen).eval()
    saved.save_pretrained('saved')
    loaded = LocalAttentionBackbone.from_pretrained('saved').eval()
    assert AutoConfig.from_pretrained('saved').out_features == ['stage1', 'stage3']
    for left, right in zip(saved(image).feature_maps, loaded(image).feature_maps):
        assert torch.equal(left, right)
assert any('shift_weight' in name for name, _ in saved.named_buffers())
assert not any('shift_weight' in name for name in saved.state_dict())

# What a checkpoint does not have is as it is built, too.
state = saved.state_dict()
kept = {name: value for name, value in state.items() if 'stages.0' not in name}
loaded = LocalAttentionBackbone.from_pretrained(None, config=chosen, state_dict=kept)
fresh = loaded.state_dict()
assert all(torch.equal(fresh[name], value) for name, value in kept.items())
for name, value in state.items():
    spread = value.float().std(correction=0)
    if value.numel() > 100 or spread == 0:  # else its spread is chance
        assert torch.allclose(fresh[name].float().std(correction=0), spread, rtol=0.2), name

torch.save(backbone.backbone.state_dict(prefix='backbone.'), 'weights.pth')
other = AutoBackbone.from_config(config(out_features=['stage2', 'stage3'])).eval()
other.load('weights.pth')
assert torch.equal(other(image).feature_maps[1], output.feature_maps[1])

for wrong in (dict(backbone_name='ssvit_x'), dict(out_features=['stem'])):
    try:
        LocalAttentionConfig(**wrong)
    except ValueError as error:
        print(error)
"""

MODELS = """
from transformers import DFineConfig, DFineForObjectDetection
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation
from transformers import RTDetrV2Config, RTDetrV2ForObjectDetection

torch.manual_seed(0)
images = torch.randn(2, 3, 64, 64)

def step(model, encoder, **targets):
    assert isinstance(encoder, LocalAttentionBackbone)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    before = {name: value.clone() for name, value in encoder.named_parameters()}
    loss = model.train()(images, **targets).loss
    loss.backward()
    optimizer.step()
    still = [name for name, value in encoder.named_parameters() if torch.equal(value, before[name])]
    print(type(model).__name__, bool(loss.isfinite()), still)

model = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(
    backbone_config=config(out_indices=(0, 1, 2, 3)), feature_size=32, mask_feature_size=32,
    hidden_dim=32, encoder_feedforward_dim=16, encoder_layers=1, decoder_layers=2,
    num_attention_heads=2, dim_feedforward=16, num_queries=5, train_num_points=32, num_labels=2))
masks = torch.zeros(2, 1, 64, 64)
masks[..., 8:40, 8:40] = 1
labels = [torch.tensor([1])] * 2
step(model, model.model.pixel_level_module.encoder, mask_labels=list(masks), class_labels=labels)

labels = [dict(class_labels=torch.tensor([1]), boxes=torch.tensor([[0.4, 0.4, 0.5, 0.5]]))] * 2
for kind, detector in ((RTDetrV2Config, RTDetrV2ForObjectDetection),
                       (DFineConfig, DFineForObjectDetection)):
    model = detector(kind(
        backbone_config=config(out_features=['stage2', 'stage3', 'stage4']).to_dict(),
        encoder_in_channels=[16, 16, 16], encoder_hidden_dim=16, encoder_ffn_dim=16,
        encoder_attention_heads=2, d_model=16, num_queries=5, decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16, decoder_layers=2, decoder_attention_heads=2, num_denoising=2,
        num_labels=2, freeze_backbone_batch_norms=kind is RTDetrV2Config))
    step(model, model.model.backbone.model, labels=labels)
print(sorted(BLOCKED & sys.modules.keys()))
"""


@pytest.fixture(scope='module')
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What all of the above and the page print, in one process: it takes long to import."""
    assert FOLDER.is_dir(), f'{FOLDER} is missing: run `bash tools/setup_env.sh`'
    path = os.pathsep.join([str(ROOT), str(FOLDER)])
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', PREAMBLE + BACKBONE + MODELS + page_block()],
        env=os.environ | dict(PYTHONPATH=path, HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1'),
        cwd=tmp_path_factory.mktemp('transformers'),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def page_block() -> str:
    page = (ROOT / 'docs' / 'compat.md').read_text()
    (block,) = re.findall(r'^```py\n(.*?)^```$', page, re.MULTILINE | re.DOTALL)
    return block


def test_a_backbone_is_one_of_theirs(printed: list[str]) -> None:
    assert printed[0].startswith("no backbone is called 'ssvit_x': take ssvit_")
    assert printed[1].startswith('out_features must be a subset of stage_names')


def test_models_of_theirs_train(printed: list[str]) -> None:
    """One step each changes every weight of the backbone."""
    assert printed[2:5] == [
        'Mask2FormerForUniversalSegmentation True []',
        'RTDetrV2ForObjectDetection True []',
        'DFineForObjectDetection True []',
    ]


def test_no_toolbox_is_needed(printed: list[str]) -> None:
    assert printed[5] == '[]'


def test_the_page_runs(printed: list[str]) -> None:
    assert printed[6:] == re.findall(r'^# (.*)$', page_block(), re.MULTILINE)


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'transformers', None)
    message = (
        r'mmlocalattn\.compat\.transformers needs another .*: pip install "transformers>=5\.24'
    )
    with pytest.raises(ImportError, match=message):
        importlib.import_module('mmlocalattn.compat.transformers')
