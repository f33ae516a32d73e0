"""Released weights by name, from a server on the loopback interface."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from killing.loopback import Loopback, serve
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.registry import DefaultScope
from tiny_data import SSVIT_ARCH, load_tool, released_ssvit
from torch import nn

from mmlocalattn import download, hub
from mmlocalattn.adapt import BACKBONES
from mmlocalattn.converters import by_name, released
from mmlocalattn.converters.convert import FAMILIES, Classifiers
from mmlocalattn.converters.released import RELEASED, Release, find_release, released_table
from mmlocalattn.download import DownloadError, sha256_of
from mmlocalattn.registry import MODELS
from mmlocalattn.training import RunError, build_errors, read_checkpoint
from mmlocalattn.training.weight_files import check_weight_files

ROOT = Path(__file__).parents[2]
TOOL = load_tool('convert_checkpoint')
CLASSIFIERS = [name for name, entry in RELEASED.items() if entry.arch is not None]


# The table


@pytest.mark.parametrize('name', RELEASED)
def test_entries_are_complete(name: str) -> None:
    entry = RELEASED[name]
    assert entry.family in FAMILIES
    assert (entry.arch is None) == (entry.config is not None)
    assert entry.repository.startswith('https://github.com/')
    assert entry.licence
    assert entry.parameters > 0
    if entry.url is None:
        assert entry.page.startswith('https://')
        assert entry.by_hand
    else:
        assert entry.url.startswith('https://')
        assert entry.page is None


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_classifiers_are_called_as_their_backbones(name: str) -> None:
    entry, family = RELEASED[name], FAMILIES[RELEASED[name].family]
    assert isinstance(family, Classifiers)
    (backbone,) = {re.sub(r'_in(1k|22k).*', '', name)} & {*BACKBONES}
    assert BACKBONES[backbone].name == family.backbone.__name__
    assert BACKBONES[backbone].arch == entry.arch
    with torch.device('meta'):
        built = family.backbone(entry.arch, **entry.backbone)
    millions = sum(each.numel() for each in built.parameters()) / 1e6
    assert entry.parameters - 4 < millions + 1 < entry.parameters + 4  # with a head of 1000 classes


def test_whole_models_are_called_as_their_configs() -> None:
    others = {name: RELEASED[name].config for name in RELEASED if name not in CLASSIFIERS}
    assert others == {name: f'{name}.py' for name in others}
    assert all((ROOT / 'configs' / config).is_file() for config in others.values())


def test_files_have_names_of_their_own() -> None:
    assert len({entry.file for entry in RELEASED.values()}) == len(RELEASED)
    assert RELEASED['nat_t_in1k'].file == 'nat_tiny.pth'
    assert RELEASED['ssvit_s_in1k'].file == 'ssvit_s_in1k.pth'
    assert RELEASED['qna_vit_t_in1k'].file == 'qna_vit_t_in1k.flax'


def test_the_pages_have_them_all() -> None:
    assert released_table(links=True) in (ROOT / 'docs' / 'weights.md').read_text()
    assert f'[{len(RELEASED)} files' in (ROOT / 'README.md').read_text()


def test_an_unknown_name_brings_those_that_are_close() -> None:
    with pytest.raises(ValueError, match=r"no release is called 'ssvit_small': take .*ssvit_s_in1"):
        find_release('ssvit_small')


# The files


@pytest.fixture
def weights(golden) -> dict[str, torch.Tensor]:
    return released_ssvit(golden)


@pytest.fixture
def file(weights: dict, tmp_path: Path) -> Path:
    torch.save({'model': weights}, tmp_path / 'theirs.pth')
    return tmp_path / 'theirs.pth'


@pytest.fixture
def server(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """Its file is the release toy_in1k; another one is had by_hand."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setattr(download, 'PAUSE', 0)
    monkeypatch.delenv('http_proxy', raising=False)
    with serve(file.read_bytes()) as loopback:
        common = dict(family='ssvit', repository='https://a.b', licence='MIT', parameters=1)
        toy = Release('toy_in1k', arch=SSVIT_ARCH, url=loopback.url('toy.pth'), **common)
        hand = replace(toy, name='by_hand', url=None, page='https://pan.c', by_hand='ask there')
        for module in (released, hub):
            monkeypatch.setattr(module, 'RELEASED', {'toy_in1k': toy, 'by_hand': hand})
        yield loopback


def ours(name: str = 'toy_in1k', **options: object) -> dict:
    init_cfg = dict(type='mmlocalattn.Released', name=name, **options)
    return dict(type='mmlocalattn.SSViT', arch=SSVIT_ARCH, init_cfg=init_cfg)


def cached(tmp_path: Path) -> list[str]:
    folder = tmp_path / 'hub' / 'checkpoints'
    return sorted(path.name for path in folder.glob('*')) if folder.exists() else []


def test_a_backbone_gets_them_from_a_toolbox(server: Loopback, weights: dict) -> None:
    """Downloaded once, whatever builds the backbone; its output norms stay as they were."""
    for scope in ('mmdet', 'mmseg', 'mmpretrain'):
        with DefaultScope.overwrite_default_scope(scope):
            backbone = MODELS.build(ours())
            backbone.init_weights()
        assert torch.equal(backbone.stem[0].weight, weights['patch_embed.proj.0.weight'])
        last = backbone.stages[3].blocks[1].ffn.fc2.bias
        assert torch.equal(last, weights['layers.3.blocks.1.ffn.fc2.bias'])
        assert torch.equal(backbone.output_norms['3'].weight, torch.ones(96))
    assert server.requests == ['']


def test_a_whole_model_gets_them_behind_its_parts(server: Loopback, weights: dict) -> None:
    class Classifier(BaseModule):
        def __init__(self, classes: int, init_cfg: dict) -> None:
            super().__init__(init_cfg)
            init = dict(type='Constant', layer='Linear', val=7, bias=7)
            self.backbone = MODELS.build(dict(ours(), out_indices=(3,), output_norm=False))
            self.backbone.init_cfg = None
            self.neck = MODELS.build(
                dict(type='mmlocalattn.SSViTNeck', in_channels=96, out_channels=64)
            )
            self.head = BaseModule(init)
            self.head.fc = nn.Linear(64, classes)

    model = Classifier(10, ours()['init_cfg'])
    model.init_weights()
    assert torch.equal(model.head.fc.bias, weights['head.bias'])
    assert torch.equal(model.neck.proj.bias, weights['proj.bias'])
    other = Classifier(3, ours()['init_cfg'])
    other.init_weights()  # what does not fit has what its own part gives it
    assert torch.equal(other.head.fc.bias, torch.full((3,), 7.0))
    assert torch.equal(other.neck.proj.bias, weights['proj.bias'])


def test_what_does_not_fit_is_a_table(server: Loopback, capsys: pytest.CaptureFixture) -> None:
    MMLogger._instance_dict.clear()  # of another test, which prints elsewhere
    backbone = MODELS.build(dict(ours(), in_channels=1, out_indices=(1, 2)))
    backbone.init_weights()
    printed = capsys.readouterr().out
    assert 'Of toy_in1k is loaded what fits' in printed
    rows = [line for line in printed.splitlines() if line.startswith('|')]
    assert len(rows) == 3
    assert rows[2].startswith('| backbone.stem.0.weight | [8, 3, 3, 3] | [8, 1, 3, 3]')
    with pytest.raises(ValueError, match="checkpoint 'toy_in1k' has no weight that fits the backb"):
        by_name.Released('toy_in1k')(nn.Linear(2, 2))


def test_a_backbone_outside_of_configs(server: Loopback, weights: dict) -> None:
    model = hub.create('ssvit_t', arch=SSVIT_ARCH, out_indices=(0, 2), pretrained='toy_in1k')
    assert torch.equal(model.backbone.stem[0].weight, weights['patch_embed.proj.0.weight'])
    assert hub.list_released('toy*') == ['toy_in1k']
    with pytest.raises(ValueError, match="checkpoint 'toy_in1k' is not of this config"):
        hub.create('ssvit_t', arch=SSVIT_ARCH, in_chans=1, pretrained='toy_in1k')


def test_what_a_person_downloads(server: Loopback, file: Path, tmp_path: Path) -> None:
    backbone = MODELS.build(ours('by_hand'))
    place = tmp_path / 'hub' / 'checkpoints' / 'by_hand.pth'
    message = (
        'by_hand has to be downloaded by a person: ask there. Visit https://pan.c (from '
        'https://a.b) and give a file that you have: file=FILE in init_cfg, --from FILE of '
        f'tools/convert_checkpoint.py, or put it to {place} (TORCH_HOME moves that folder)'
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        backbone.init_weights()
    MODELS.build(ours('by_hand', file=str(file))).init_weights()
    assert cached(tmp_path) == []
    with pytest.raises(FileNotFoundError, match=r"released file 'no\.pth' does not exist"):
        by_name.load_released('by_hand', 'no.pth')
    TOOL.main(['--released', 'by_hand', '--from', str(file)])
    assert place.read_bytes() == file.read_bytes()
    backbone.init_weights()
    assert server.requests == []


def test_a_file_that_is_another_one(
    server: Loopback, file: Path, weights: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that is not the release is kept under its name."""
    del weights['norm.weight']
    torch.save(weights, tmp_path / 'less.pth')
    with pytest.raises(SystemExit, match=r'error: toy_in1k: .*less\.pth: does not match the model'):
        TOOL.main(['--released', 'toy_in1k', '--from', str(tmp_path / 'less.pth')])
    server.content = b'no checkpoint'
    message = r'toy_in1k: http.* sent something else.*no checkpoint: torch\.save has not written it'
    with pytest.raises(DownloadError, match=message):
        by_name.load_released('toy_in1k')
    server.statuses = [404]
    with pytest.raises(DownloadError, match=r'HTTP 404 Not Found\. See https://a\.b, or give a f'):
        by_name.load_released('toy_in1k')
    assert cached(tmp_path) == ['.toy.pth.lock']
    entry = released.RELEASED['toy_in1k']
    for key, value in dict(size=5, sha256='0').items():
        monkeypatch.setitem(released.RELEASED, 'toy_in1k', replace(entry, **{key: value}))
        with pytest.raises(ValueError, match=rf'theirs\.pth has .* and toy_in1k has {value}$'):
            by_name.load_released('toy_in1k', file)
    known = dict(size=file.stat().st_size, sha256=sha256_of(file))
    monkeypatch.setitem(released.RELEASED, 'toy_in1k', replace(entry, **known))
    server.content = file.read_bytes()
    by_name.load_released('toy_in1k')
    assert 'toy.pth' in cached(tmp_path)


def test_a_training_gets_them_before_its_model_is_built(server: Loopback) -> None:
    def check(**backbone: object) -> None:
        check_weight_files(Config(dict(model=dict(backbone=backbone)), filename=__file__))

    check(init_cfg=[dict(type='Normal', layer='Conv2d', std=0.1), ours()['init_cfg']])
    assert server.requests == ['']
    with pytest.raises(ValueError, match=r'^model.backbone.init_cfg of .*py: no release is call'):
        check(init_cfg=dict(type='mmlocalattn.Released', name='nat_huge'))
    with pytest.raises(ValueError, match=r'^model.backbone.init_cfg of .*py: .*checkpoint'):
        check(init_cfg=dict(type='mmlocalattn.Released', checkpoint='a.pth'))
    with pytest.raises(RunError, match=r'by_hand has to be downloaded'), build_errors('a.py'):
        MODELS.build(ours('by_hand')).init_weights()


# The command


def test_the_command_writes_a_checkpoint(
    server: Loopback, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    dst = tmp_path / 'new' / 'ours.pth'
    TOOL.main(['--released', 'toy_in1k', str(dst)])
    checkpoint = read_checkpoint(dst)
    assert checkpoint['meta']['source'] == 'toy_in1k'
    count = len(checkpoint['state_dict'])
    assert capsys.readouterr().out.splitlines()[-1] == (
        f'{dst}: toy_in1k, arch {SSVIT_ARCH}, {count} tensors in backbone, head, neck'
    )
    TOOL.main(['--released', 'toy_in1k'])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f'{tmp_path}/hub/checkpoints/toy.pth: toy_in1k, arch')
    assert second == "init_cfg=dict(type='mmlocalattn.Released', name='toy_in1k') loads it"
    assert server.requests == ['']
    TOOL.main(['--list'])
    assert capsys.readouterr().out == f'{released_table()}\n'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('', 'FAMILY SRC DST, --released NAME or --list is needed'),
        ('ssvit a.pth', 'FAMILY SRC DST, --released NAME or --list is needed'),
        ('resnet a.pth b.pth', "no family is called 'resnet': choose from ssvit, slide_swin"),
        ('--released a --arch tiny', '--released knows its --arch or --config'),
        ('--released a b.pth c.pth', '--released takes DST and nothing else, got b.pth c.pth'),
        ('--from a.pth ssvit b.pth c.pth', '--from needs --released'),
        ('--list --released a', '--list takes nothing else'),
        ('--released a /', "'/' is a folder: name a file"),
    ],
)
def test_wrong_arguments(arguments: str, message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        TOOL.parse_args(arguments.split())
    assert message in capsys.readouterr().err
