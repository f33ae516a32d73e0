"""OpenVINO's files with 8-bit integers, and all that is done with a file before it has its name."""

from pathlib import Path

import pytest
import tiny_data
import torch
from packaging.version import Version
from score_file import META, Scores, write_file
from tiny_data import data, quick  # noqa: F401

if Version(torch.__version__) < Version('2.8'):
    pytest.skip('ONNX files need torch 2.8', allow_module_level=True)

from mmlocalattn.export.certificate import INT8_LIMITS, Limits
from mmlocalattn.export.finish import Finish
from mmlocalattn.export.openvino_ir import quantize
from mmlocalattn.export.run_file import load_file
from mmlocalattn.training import load_config

pytestmark = pytest.mark.usefixtures('quick')


def test_eight_bits(tmp_path: Path) -> None:
    path = write_file(tmp_path / 'model.xml', META)
    images = [torch.randn(1, 3, 16, 24) for _ in range(4)]
    quantize(path, images, len(images), {**META, 'int8': {'pictures': 4}})
    file = load_file(path)
    assert file.meta['int8'] == {'pictures': 4}
    assert 'FakeQuantize' in path.read_text()
    expected = Scores()(images[0])[0]
    error = (file(images[0])['scores'] - expected).abs().max() / expected.abs().max()
    assert 1e-4 < error < 0.1


def test_a_text_is_no_file_of_openvino(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It would be shown to all of its readers, some of which print."""
    (tmp_path / 'text.xml').write_text('a text')
    with pytest.raises(ValueError, match=r'be read as \.xml \(it is no XML file\): it'):
        load_file(tmp_path / 'text.xml')
    assert capfd.readouterr().err == ''


def test_what_does_not_go_together(
    tmp_path: Path,
    data: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = load_config(tiny_data.write_config(tmp_path / 'c.py', tiny_data.DETECTION, data))

    def finish(**changes: object) -> Finish:
        options = dict(cfg=cfg, checkpoint='a.pth', out=tmp_path / 'a.xml', sizes=[(64, 64)])
        options |= dict(source='config', number=0, limits=Limits(), with_preprocessing=False)
        options |= dict(calibration=None, report=print)
        return Finish(**{**options, **changes})

    finish(with_preprocessing=True).check('openvino')
    with pytest.raises(ValueError, match='is for --format onnx and openvino, got pt2'):
        finish(with_preprocessing=True).check('pt2')
    with pytest.raises(ValueError, match='--int8 is for --format openvino, and for whole models'):
        finish(calibration=data).check('onnx')
    with pytest.raises(ValueError, match='--int8 is for --format openvino, and for whole models'):
        finish(calibration=data, source=None).check('openvino')
    with pytest.raises(FileNotFoundError, match=r"empty' has no picture to calibrate with"):
        finish(calibration=tmp_path / 'empty').check('openvino')
    finish(calibration=data, limits=INT8_LIMITS).check('openvino')
    with pytest.raises(FileNotFoundError, match='--verify no/folder: there is no such folder'):
        finish(source='no/folder').check('onnx')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match=r"empty' holds 0 files, 0 of them pictures, and no"):
        finish(source=str(tmp_path / 'empty')).check('onnx')
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ModuleNotFoundError, match='need openvino, nncf: pip install openvino nncf'):
        finish(calibration=data).check('openvino')
    with pytest.raises(ModuleNotFoundError, match='need scikit-learn: pip install scikit-learn'):
        finish(source='sample').check('onnx')
