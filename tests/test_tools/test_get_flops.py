"""tools/analysis/get_flops.py, and those of mmdet and mmseg as they come, on our configs."""

import importlib
import importlib.util
import json
from argparse import Namespace
from collections import Counter
from pathlib import Path
from types import ModuleType

import mmengine.analysis
import pytest
import tiny_data
import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from tiny_data import data, quick  # noqa: F401

pytestmark = pytest.mark.usefixtures('quick')


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """What MMEngine's analyzer says of each operator of the last model."""
    counts = Counter()
    analyze = mmengine.analysis.FlopAnalyzer.total

    def total(self: mmengine.analysis.FlopAnalyzer, module_name: str = '') -> int:
        counts.update(self.by_operator())
        return analyze(self, module_name)

    monkeypatch.setattr(mmengine.analysis.FlopAnalyzer, 'total', total)
    return counts


def load_stock_tool(package: str) -> ModuleType:
    folder = Path(importlib.import_module(package).__file__).parent
    path = folder / '.mim' / 'tools' / 'analysis_tools' / 'get_flops.py'
    spec = importlib.util.spec_from_file_location(f'{package}_get_flops', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def attention() -> int:
    """Multiply-adds of the tiny backbone on a 64 x 64 image: maps of 16, 8, 4 and 2 rows."""
    pixels, channels, windows = (256, 64, 16, 4), (8, 16, 24, 32), (7 * 7 + 3 * 3, 7 * 7, 2 * 9, 0)
    return sum(2 * p * c * w for p, c, w in zip(pixels, channels, windows))


def test_mmdet(data: Path, tmp_path: Path, counts: Counter) -> None:  # noqa: F811
    config = tiny_data.write_config(tmp_path / 'config.py', tiny_data.DETECTION, data)
    tool = load_stock_tool('mmdet')
    args = Namespace(config=config, num_images=1, cfg_options=None)
    result = tool.inference(args, MMLogger.get_instance('get_flops'))
    assert result['pad_shape'] == (64, 64)
    assert counts['sparse_scan_attention'] == attention()


def test_mmseg(
    data: Path,  # noqa: F811
    tmp_path: Path,
    counts: Counter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_data.write_config(tmp_path / 'config.py', tiny_data.SEGMENTATION, data)
    tool = load_stock_tool('mmseg')
    # mmsegmentation 1.2.2 passes a shape and inputs, which MMEngine 0.10 refuses for every model;
    # onedl's passes input_shape=None.
    count = tool.get_model_complexity_info
    monkeypatch.setattr(
        tool,
        'get_model_complexity_info',
        lambda model, *_, inputs, **__: count(model, inputs=inputs),
    )
    args = Namespace(config=config, shape=[64, 64], cfg_options=None)
    tool.inference(args, MMLogger.get_instance('get_flops'))
    assert counts['sparse_scan_attention'] == attention()


@pytest.fixture
def tool() -> ModuleType:
    return tiny_data.load_tool('analysis/get_flops')


def read(tmp_path: Path, text: str) -> Config:
    return Config.fromfile(tiny_data.write_config(tmp_path / 'config.py', text, tmp_path))


SLIDE_SWIN = """
_base_ = '{configs}/slide_swin_t_300e_imagenet.py'
model = dict(
    backbone=dict(arch=dict(
        _delete_=True, embed_dims=[8, 16, 24, 32], depths=[1, 1, 2, 1], num_heads=[1, 2, 3, 4],
        mlp_ratios=[2, 2, 2, 2])),
    head=dict(in_channels=32))
"""


@pytest.mark.parametrize('text', [tiny_data.CLASSIFICATION, tiny_data.SEGMENTATION, SLIDE_SWIN])
def test_counts_as_mmengine(tool: ModuleType, tmp_path: Path, text: str) -> None:
    cfg = read(tmp_path, text)
    found = tool.count(cfg, (64, 96))
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    assert found['params'] == sum(parameter.numel() for parameter in model.parameters())

    inner = model.forward

    def forward(images: torch.Tensor) -> object:
        if cfg.default_scope == 'mmseg':
            return model.encode_decode(images, [dict(img_shape=(64, 96))])
        return inner(images)

    model.forward = forward
    counts = FlopAnalyzer(model, (torch.rand(1, 3, 64, 96),)).by_operator()
    counts.pop('adaptive_avg_pool2d', None)  # a mean for PyTorch
    assert found['flops'] == sum(counts.values())


def test_regions_do_not_depend_on_the_weights(tool: ModuleType, tmp_path: Path) -> None:
    cfg = read(tmp_path, tiny_data.DETECTION)
    counts = {}
    for proposals, detections in ((0, 0), (1000, 0), (0, 100)):
        cfg.model.test_cfg.rpn.max_per_img = proposals
        cfg.model.test_cfg.rcnn.max_per_img = detections
        counts[proposals, detections] = tool.count(cfg, (64, 64))['flops']
    box = 16 * 49 * 16 + 16 * 16 + 16 * (3 + 8)  # two hidden layers; classes and offsets
    mask = 4 * 9 * 16 * 16 * 14**2 + 16 * 16 * 28**2 + 16 * 2 * 28**2  # two by two taps, stride two
    assert counts[1000, 0] - counts[0, 0] == 1000 * box
    assert counts[0, 100] - counts[0, 0] == 100 * mask


def test_prints(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_data.write_config(tmp_path / 'config.py', tiny_data.SEGMENTATION, tmp_path)
    tool.main([path, '--json', '--shape', '64', '96'])
    result = json.loads(capsys.readouterr().out)
    assert result['config'] == 'config'
    assert result['shape'] == [64, 96]
    tool.main([path, path, '--cfg-options', 'model.decode_head.num_classes=7'])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith('at 512 x 2048')
    assert f'{(result["params"] + 4 * 17) / 1e6:.2f} M parameters' in lines[0]
    with pytest.raises(SystemExit, match=r"'no\.py' does not exist"):
        tool.main(['no.py'])


def test_swaps_the_backbone(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_data.write_config(tmp_path / 'config.py', tiny_data.SEGMENTATION, tmp_path)
    options = ['--json', '--shape', '64', '96']
    tool.main([path, *options])
    before = json.loads(capsys.readouterr().out)
    tool.main([path, *options, '--backbone', 'slide_pvt_t'])
    printed = capsys.readouterr()
    assert json.loads(printed.out)['params'] > before['params'] + 10e6
    assert 'SlidePVT' in printed.err


def test_table_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tiny_data.ROOT / 'tools' / 'analysis'))
    tool = tiny_data.load_tool('analysis/flops_table')
    lines = (tiny_data.ROOT / 'docs' / 'flops.md').read_text().splitlines(keepends=True)
    rows = [line for line in lines if line.startswith('| `')]
    assert all(float(row.split('|')[5].strip().strip('%')) < 4 for row in rows)
    names = ('nat_m_300e', 'slide_pvt_t_300e', 'slide_swin_t_300e', 'maskrcnn_slide_pvtv2_b1')
    chosen = [row for row in rows if row.startswith(tuple(f'| `{name}' for name in names))]
    assert len(chosen) == 5
    assert [tool.fill(row) for row in chosen] == chosen
    assert tool.fill('| config | image |\n') == '| config | image |\n'
