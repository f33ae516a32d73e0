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
from mmengine.logging import MMLogger
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


def test_prints(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_data.write_config(tmp_path / 'config.py', tiny_data.SEGMENTATION, tmp_path)
    tool.main([path, '--json', '--size', '64x96'])
    result = json.loads(capsys.readouterr().out)
    assert (result['config'], result['shape']) == ('config', [64, 96])
    assert result['not_counted'] == []
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
    options = ['--json', '--size', '64x96']
    tool.main([path, *options])
    before = json.loads(capsys.readouterr().out)
    tool.main([path, *options, '--backbone', 'slide_pvt_t'])
    printed = capsys.readouterr()
    assert json.loads(printed.out)['params'] > before['params'] + 10e6
    assert 'SlidePVT' in printed.err


def test_says_what_is_not_counted(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = "model['auxiliary_head'] = dict(type='FCNHead', in_channels=16, channels=8, in_index=2"
    extra = f'{head}, num_classes=3)\n'
    path = tiny_data.write_config(tmp_path / 'c.py', tiny_data.SEGMENTATION, tmp_path, extra)
    tool.main([path, '--size', '64x96'])
    assert capsys.readouterr().out.splitlines()[1] == '  not counted: auxiliary_head'
