"""A detector in a program without Python finds what it finds in Python."""

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_data
import torch
from tiny_data import DETECTION, SEGMENTATION
from torch import Tensor
from torch.nn import functional

from mmlocalattn.export import build_exportable, describe, export
from mmlocalattn.training import load_config

pytestmark = pytest.mark.xdist_group('examples_cpp')  # one process builds

ROOT = Path(__file__).parents[2]
SIZE = (64, 96)
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CLASSES = ('dark', 'light')


@pytest.fixture(scope='module')
def program() -> list[str]:
    """The command, with the extension."""
    extension = find_spec('mmlocalattn._ext')
    missing = [name for name in ('g++', 'cmake', 'ninja') if shutil.which(name) is None]
    if extension is None or missing:
        pytest.skip(f'{", ".join(missing) or "the extension"} is not there')
    worker = os.getenv('PYTEST_XDIST_WORKER', 'main')  # never two builds in a folder
    folder = ROOT / 'build' / 'examples_cpp' / worker
    define = [f'-DTORCH={Path(torch.__file__).parent}', '-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror']
    for command in (
        ['cmake', '-G', 'Ninja', '-S', str(ROOT / 'examples' / 'cpp'), '-B', str(folder), *define],
        ['cmake', '--build', str(folder)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return [str(folder / 'detect'), '--operators', extension.origin, '--threads', '1']


def write_model(path: Path, config: str, part: str, labels: bool = False) -> None:
    cfg = load_config(tiny_data.write_config(path.with_suffix('.py'), config, path.parent))
    torch.manual_seed(0)
    module = build_exportable(cfg, part=part, labels=labels)
    meta = describe(cfg, part, [SIZE], 'torchscript', module)
    export(module, path, 'torchscript', [SIZE], meta)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mask R-CNN, its neck, a segmentor, and images."""
    folder = tmp_path_factory.mktemp('cpp')
    tiny_data.make_data(folder)
    write_model(folder / 'model.pt', DETECTION, 'model')
    write_model(folder / 'neck.pt', DETECTION, 'neck')
    write_model(folder / 'segmentor.pt', SEGMENTATION, 'model', labels=True)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    for name, height, width in (('fits.ppm', *SIZE), ('fits.png', *SIZE), ('other.ppm', 70, 90)):
        cv2.imwrite(str(folder / name), cv2.resize(coarse, (width, height)))
    return folder


def run(program: list[str], *arguments: object) -> list[str]:
    command = [*program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def fails(program: list[str], *arguments: object) -> str:
    command = [*program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr.startswith('error: ')
    assert done.stderr.count('\n') == 1
    return done.stderr


def prepared(pixels: np.ndarray) -> Tensor:
    """BGR (H, W, 3) to what the model takes."""
    image = torch.from_numpy(pixels[..., ::-1].copy()).permute(2, 0, 1)[None].float()
    image = (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return functional.pad(image, (0, SIZE[1] - image.shape[3], 0, SIZE[0] - image.shape[2]))


def detections(lines: list[str]) -> tuple[list[str], np.ndarray]:
    """Class names, and rows of score and box."""
    words = [line.split() for line in lines]
    return [row[0] for row in words], np.array([row[1:] for row in words], float)


def expected(model: Path, image: Tensor, scale: float, limits: tuple[int, int]) -> tuple:
    with torch.no_grad():
        boxes, scores, labels, _ = torch.jit.load(model)(image)
    boxes = (boxes[0] / scale).minimum(torch.tensor([*limits, *limits]))
    names = [CLASSES[label] for label in labels[0]]
    return names, torch.cat((scores[0][:, None], boxes), 1).numpy()


@pytest.mark.parametrize('image', ['fits.ppm', 'fits.png'])
def test_boxes_are_those_of_python(program: list[str], folder: Path, image: str) -> None:
    names, rows = detections(run(program, folder / 'model.pt', folder / image, '--score', 0))
    pixels = cv2.imread(str(folder / image))
    expected_names, expected_rows = expected(
        folder / 'model.pt', prepared(pixels), 1, (SIZE[1], SIZE[0])
    )
    assert len(names) == 5
    assert names == expected_names
    np.testing.assert_allclose(rows, expected_rows, rtol=1e-4, atol=0.006)  # two decimals


def test_an_image_of_another_size_is_resized_and_padded(program: list[str], folder: Path) -> None:
    pixels = cv2.imread(str(folder / 'other.ppm'))
    scale = 64 / 70
    as_mmcv = cv2.resize(pixels, (82, 64))
    nchw = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    resized = functional.interpolate(nchw, (64, 82), mode='bilinear').round()[0].permute(1, 2, 0)
    assert np.abs(resized.numpy() - as_mmcv).max() <= 1
    names, rows = detections(run(program, folder / 'model.pt', folder / 'other.ppm', '--score', 0))
    expected_names, expected_rows = expected(
        folder / 'model.pt', prepared(resized.numpy()), scale, (90, 70)
    )
    assert names == expected_names
    np.testing.assert_allclose(rows, expected_rows, rtol=1e-4, atol=0.006)


def test_low_scores_are_left_out_and_runs_are_timed(program: list[str], folder: Path) -> None:
    lines = run(program, folder / 'model.pt', folder / 'fits.ppm', '--score', 1, '--repeat', 3)
    assert len(lines) == 1
    assert lines[0].startswith('median of 3 runs ')


def test_maps_of_a_neck(program: list[str], folder: Path) -> None:
    lines = run(program, folder / 'neck.pt', folder / 'fits.ppm')
    with torch.no_grad():
        maps = torch.jit.load(folder / 'neck.pt')(prepared(cv2.imread(str(folder / 'fits.ppm'))))
    assert len(lines) == len(maps) == 5
    for line, level in zip(lines, maps):
        _, shape, magnitude = line.replace(', ', ',').split()
        assert shape == str(list(level.shape)).replace(' ', '')
        assert float(magnitude) == pytest.approx(level.abs().mean().item(), rel=1e-4)


def test_labels_of_a_segmentor(program: list[str], folder: Path) -> None:
    lines = run(program, folder / 'segmentor.pt', folder / 'fits.ppm')
    with torch.no_grad():
        (labels,) = torch.jit.load(folder / 'segmentor.pt')(
            prepared(cv2.imread(str(folder / 'fits.ppm')))
        )
    shares = labels.flatten().bincount(minlength=3) / labels.numel()
    classes = ('background', 'dark', 'light')
    assert lines == [f'{name} {share:.4f}' for name, share in zip(classes, shares) if share > 0]


def test_errors_are_one_line(program: list[str], folder: Path, tmp_path: Path) -> None:
    model, image = folder / 'model.pt', folder / 'fits.ppm'
    assert 'Unknown builtin op: mmlocalattn::' in fails(program[:1], model, image)
    assert f'there is no image {tmp_path}/none.ppm' in fails(program, model, tmp_path / 'none.ppm')
    assert f'there is no model {tmp_path}/none.pt' in fails(program, tmp_path / 'none.pt', image)
    assert 'usage: detect' in fails(program, model)
    assert 'there is no option --foo' in fails(program, '--foo', 1, model, image)
    (tmp_path / 'short.ppm').write_bytes(image.read_bytes()[:-1])
    assert 'short.ppm ends before its last row' in fails(program, model, tmp_path / 'short.ppm')
    assert 'model.pt is no binary PPM' in fails(program, model, model)
    (tmp_path / 'short.pt').write_bytes(model.read_bytes()[:-100])
    fails(program, tmp_path / 'short.pt', image)
    (tmp_path / 'other.pt').write_bytes(image.read_bytes())
    fails(program, tmp_path / 'other.pt', image)
    assert 'cannot load operators: ' in fails([program[0], '--operators', str(model)], model, image)
