"""Running exported files, and what is said about those that cannot be run."""

import importlib.util
from pathlib import Path

import pytest
import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from score_file import META, Scores, write_file
from torch import nn
from torch.nn import functional

from mmlocalattn.export.metadata import write_metadata
from mmlocalattn.export.run_file import (
    is_exported_file,
    load_file,
    paste_masks,
    resize_masks,
)

SUFFIXES = [
    '.pt',
    *(
        pytest.param(suffix, marks=pytest.mark.needs_torch('2.8', 'the format'))
        for suffix in ('.pt2', '.onnx', '.xml')
    ),
]


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_every_format(tmp_path: Path, suffix: str) -> None:
    path = write_file(tmp_path / f'model{suffix}', META)
    assert is_exported_file(path)
    write_metadata(path, {**META, 'classes': ['a', 'b"<&>']})
    file = load_file(path)
    assert file.classes == ('a', 'b"<&>')
    image = torch.randn(2, 3, 16, 20)
    outputs = file(image)
    assert [*outputs] == ['scores']
    torch.testing.assert_close(outputs['scores'], Scores()(image)[0], rtol=1e-5, atol=1e-5)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"model\..*' cannot be read as .*truncated") as raised:
        load_file(path)
    assert '\n' not in str(raised.value)


def test_images_that_a_file_does_not_take(tmp_path: Path) -> None:
    file = load_file(write_file(tmp_path / 'model.pt', META))
    assert file.size_range == ((8, 8), (16, 24))
    for shape, message in (
        ((1, 3, 16, 25), r'takes images of 8 x 8 to 16 x 24 pixels, got 16 x 25: .*--size'),
        ((1, 3, 7, 8), r'got 7 x 8'),
        ((1, 4, 8, 8), r'takes images \(B, 3, H, W\) of float32, got \(1, 4, 8, 8\) of'),
        ((3, 8, 8), r'got \(3, 8, 8\)'),
    ):
        with pytest.raises(ValueError, match=message):
            file(torch.zeros(shape))
    with pytest.raises(ValueError, match=r'got \(1, 3, 8, 8\) of torch\.uint8'):
        file(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    meta = {**META, 'outputs': ['boxes'], 'preprocessing': {'pad_size_divisor': 8}}
    file = load_file(write_file(tmp_path / 'boxes.pt', meta))
    with pytest.raises(ValueError, match=r'sides are multiples of 8, got 16 x 20: pad'):
        file(torch.zeros(1, 3, 16, 20))


def test_what_is_no_exported_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.onnx' does not exist"):
        load_file(tmp_path / 'no.onnx')
    (tmp_path / 'folder.onnx').mkdir()
    with pytest.raises(IsADirectoryError, match=r' is a folder: name a file in it'):
        load_file(tmp_path / 'folder.onnx')
    with pytest.raises(ValueError, match=r'these end with \.onnx, \.xml, \.pt2, \.pt'):
        load_file(tmp_path / 'model.engine')
    with pytest.raises(ValueError, match=r'was not written by tools/export\.py'):
        load_file(write_file(tmp_path / 'other.pt', {}))
    torch.save({'state_dict': {}}, tmp_path / 'checkpoint.pt')
    assert not is_exported_file(tmp_path / 'checkpoint.pt')
    assert not is_exported_file(tmp_path / 'checkpoint.pth')
    assert not is_exported_file(tmp_path / 'no.pt')
    (tmp_path / 'a.onnx').touch()
    (tmp_path / 'a.xml').touch()
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"a\.onnx' needs onnxruntime: pip install onnxr"):
        load_file(tmp_path / 'a.onnx')
    with pytest.raises(ModuleNotFoundError, match='needs openvino: pip install openvino'):
        load_file(tmp_path / 'a.xml')


def test_masks_in_boxes_are_pasted_as_mmdet_does() -> None:
    height, width = 60, 90
    boxes = torch.tensor(
        [[10.3, 5.6, 70.2, 50.1], [0, 0, 12.5, 9.5], [50, 20, 90, 60], [4, 4, 4, 9]]
    )
    masks = nn.functional.avg_pool2d(torch.rand(4, 11, 11), 3, 1, 1).mul(1.6).clamp(0, 1)
    for threshold in (0.5, 0.1):
        expected, _ = _do_paste_mask(masks[:3, None], boxes[:3], height, width, skip_empty=False)
        actual = paste_masks(masks, boxes, (height, width), threshold)
        assert torch.equal(actual[:3], expected >= threshold)
        assert not actual[3].any()
        assert actual.sum() > 1000


def test_masks_in_images_are_resized_as_mmdet_does() -> None:
    """By the steps of RTMDetInsHead."""
    logits = 3 * torch.randn(2, 8, 12)
    scale = (2.0, 2.0)
    large = functional.interpolate(logits[None], scale_factor=8, mode='bilinear')
    large = functional.interpolate(large, size=(32, 48), mode='bilinear')[..., :30, :45]
    actual = resize_masks(logits.sigmoid(), (64, 96), (30, 45), scale, 0.4)
    assert (actual == (large[0].sigmoid() > 0.4)).float().mean() > 0.999
    assert resize_masks(logits[:0], (64, 96), (30, 45), scale).shape == (0, 30, 45)
