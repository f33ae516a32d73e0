"""Configs are found and merged."""

import importlib.machinery
import importlib.util
from pathlib import Path

import pytest
from mmengine.config import Config

from mmlocalattn.training import config, load_config


def test_own_base_by_package_name(tmp_path: Path) -> None:
    file = tmp_path / 'c.py'
    file.write_text(
        "_base_ = 'mmlocalattn::semfpn_ssvit_s_80k_ade20k.py'\n"
        "model = dict(backbone=dict(arch='base'))\n"
    )
    cfg = load_config(str(file), {'train_dataloader.batch_size': 7})
    assert cfg.model.backbone.arch == 'base'
    assert cfg.model.backbone.drop_path_rate == 0.15
    assert cfg.train_dataloader.batch_size == 7


def test_installed_configs_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / 'mmlocalattn'
    spec = importlib.machinery.ModuleSpec('mmlocalattn', None, origin=str(package / '__init__.py'))
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: spec)
    for configs in (tmp_path / 'configs', package / '.mim' / 'configs'):
        configs.mkdir(parents=True)
        (configs / 'a.py').write_text('')
        found = config._find_base('mmlocalattn::a.py', 'c.py')
        assert found == (str(configs / 'a.py'), None)


def test_mmengine_is_left_as_it_was(tmp_path: Path) -> None:
    before = Config.__dict__['_get_cfg_path']
    with pytest.raises(FileNotFoundError, match='does not exist'):
        load_config(str(tmp_path / 'c.py'))
    assert Config.__dict__['_get_cfg_path'] is before


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a = dict(\nb = 1\n', r"^config c\.py, line 1: '\(' was never closed$"),
        ('a = 1\nb = nothing', r"c\.py, line 2: NameError: name 'nothing' is not defined$"),
        ("with open('a') as f: pass", r'^config c\.py: ConfigParsingError: Only `read_base`'),
        (
            'from mmengine.runner import No\nmodel = dict(type=No)',
            r'^config c\.py: ImportError: Failed to import No from mmengine\.runner in c\.py, line',
        ),
        (
            "custom_imports = dict(imports=['nothing_of_this_name'])",
            r"^config c\.py: ImportError: Failed to import custom modules from \{'imports': \[",
        ),
        (
            "data = dict(samples_per_gpu=2)\ntotal_epochs = 12\noptimizer = dict(type='SGD')",
            r'^config c\.py is of MMDetection 2, MMSegmentation 0 or MMClassification 0 \(data, ',
        ),
    ],
)
def test_configs_that_do_not_run(folder: Path, text: str, message: str) -> None:
    Path('c.py').write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        load_config('c.py')
    assert '\n' not in str(raised.value)


def test_errors_of_bases_name_the_base(folder: Path) -> None:
    Path('c.py').write_text("_base_ = './base.py'")
    with pytest.raises(FileNotFoundError, match=r"^'.*base\.py', a _base_ of .*, does not exist$"):
        load_config('c.py')
    for text, message in (
        ('a = (', r"^config .*base\.py, line 1: '\(' was never closed$"),
        ('\na = b', r'^config .*base\.py, line 2: NameError: '),
    ):
        Path('base.py').write_text(text)
        with pytest.raises(ValueError, match=message):
            load_config('c.py')
    Path('base.py').write_bytes(b'a = "\xff"')
    with pytest.raises(ValueError, match=r'^config .*base\.py is not text in UTF-8: '):
        load_config('c.py')


def test_options_that_do_not_fit(folder: Path) -> None:
    Path('c.py').write_text('model = dict(depth=5)')
    with pytest.raises(ValueError, match=r"^the options \{'model.depth.x': 3\} do not fit c\.py: "):
        load_config('c.py', {'model.depth.x': 3})


@pytest.mark.parametrize(
    ('classes', 'expected'),
    [(0, ('0',)), ([0, 1], ('0', '1')), ('cat', ('cat',)), (('a', 'b'), ('a', 'b'))],
)
def test_classes_are_names(folder: Path, classes: object, expected: tuple) -> None:
    """MMEngine reads ``classes=0`` as a number, and would take 'cat' for three classes."""
    Path('c.py').write_text('data = dict(metainfo=dict(palette=[]))')
    assert load_config('c.py', {'data.metainfo.classes': classes}).data.metainfo.classes == expected


def test_a_file_of_classes_is_left_alone(folder: Path) -> None:
    Path('names.txt').write_text('cat\ndog\n')
    Path('c.py').write_text("data = dict(metainfo=dict(classes='names.txt'))")
    assert load_config('c.py').data.metainfo.classes == 'names.txt'


@pytest.mark.parametrize('entry', ['', 'visualizer = None'])
def test_there_is_a_visualizer(folder: Path, entry: str) -> None:
    Path('c.py').write_text(f"default_scope = 'mmseg'\n{entry}")
    assert load_config('c.py').visualizer.type == 'SegLocalVisualizer'


def test_validation_data_serve_for_tests(folder: Path) -> None:
    Path('c.py').write_text(
        'val_dataloader, val_cfg, val_evaluator = dict(a=1), dict(b=2), dict(c=3)'
    )
    cfg = load_config('c.py')
    assert (cfg.test_dataloader, cfg.test_cfg, cfg.test_evaluator) == (dict(a=1), {}, dict(c=3))


def test_options_reach_test_data_that_are_those_of_the_validation(folder: Path) -> None:
    Path('c.py').write_text('val_dataloader = dict(batch_size=1, num_workers=2, dataset=dict(a=1))')
    options = {'val_dataloader.num_workers': 3, 'test_dataloader.batch_size': 7}
    cfg = load_config('c.py', options)
    assert cfg.val_dataloader == dict(batch_size=1, num_workers=3, dataset=dict(a=1))
    assert cfg.test_dataloader == dict(batch_size=7, num_workers=3, dataset=dict(a=1))


def test_a_scope_that_is_not_installed(folder: Path) -> None:
    Path('c.py').write_text("default_scope = 'mmnothing'")
    with pytest.raises(
        ModuleNotFoundError, match=r'^config .*c\.py. needs mmnothing, which is not'
    ):
        load_config('c.py')
    cfg = load_config('c.py', {'default_scope': 'mmengine'})
    assert cfg.default_scope == 'mmengine'


def test_options_that_would_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / 'c.py'
    path.write_text(
        "data_root = 'a/'\nown = 1\nload_from = None\n"
        'train_dataloader = dict(dataset=dict(data_root=data_root))\n'
    )
    message = r'^data_root is a variable of .*c\.py, which has used its value already: set '
    message += r'train_dataloader\.dataset\.data_root instead$'
    with pytest.raises(ValueError, match=message):
        load_config(str(path), {'data_root': 'b/'})
    assert load_config(str(path), {'own': 2, 'load_from': 'x'}).own == 2
