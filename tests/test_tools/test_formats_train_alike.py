"""Copies of the sample data in each format train alike, to the last digit of every loss.

All formats carry what is needed for that: coordinates have two digits in pixels, which six digits
of YOLO's shares of the picture give back. Pascal VOC carries no polygons.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sample_folders
import tiny_data
from PIL import Image
from sample_folders import Sample
from tiny_data import quick  # noqa: F401

from mmlocalattn.training import read_history

TRAIN = tiny_data.load_tool('train')
pytestmark = pytest.mark.usefixtures('quick')

Writer = Callable[[Path, Sample], None]

NUMBER, ITERATIONS = 20, 8  # of pictures; of 16 of them for training, two at once
SIZE = "pipeline[2]['scale'] = (96, 96)"
NO_MASKS = """
model.update(type='FasterRCNN')
model['roi_head'].update(mask_roi_extractor=None, mask_head=None)
pipeline[1].update(with_mask=False)
"""
LENGTH = {
    'DETECTION': [
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=1',
        # So short a training finds something where much is found.
        'model.test_cfg.rpn.nms_pre=100',
        'model.test_cfg.rpn.max_per_img=100',
        'model.test_cfg.rcnn.max_per_img=100',
        'val_evaluator.metric_items=[mAP,mAP_50,mAP_s,mAP_m,AR@100]',
    ],
    'SEGMENTATION': [
        'train_cfg.max_iters=8',
        'default_hooks.checkpoint.interval=8',
        'train_cfg.val_interval=8',
    ],
}
COLOURS = [(0, 0, 0), (9, 9, 200), (0, 128, 0)]


@pytest.fixture(scope='module')
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return sample_folders.digit_cards(tmp_path_factory.mktemp('sample') / 'cards', NUMBER)


def train(task: str, extra: str, write: Writer, sample: Sample, tmp_path: Path) -> tuple:
    """All that a training of a folder logs but for times, and what its evaluation gives."""
    (tmp_path / 'mine').mkdir(parents=True)
    write(tmp_path / 'mine', sample)
    config = tiny_data.write_config(
        tmp_path / 'c.py', getattr(tiny_data, task), tmp_path / 'nowhere', extra
    )
    options = [*LENGTH[task], 'randomness.seed=3']
    options += ['default_hooks.logger.interval=1', 'log_processor.window_size=1']
    argv = [config, '--data', tmp_path / 'mine', '--work-dir', tmp_path / 'run']
    tiny_data.run(TRAIN, *argv, '--cfg-options', *options)
    history = read_history(tmp_path / 'run')
    times = ('time', 'data_time', 'step')
    return tuple(
        {i: {key: row[key] for key in row if key not in times} for i, row in rows.items()}
        for rows in (history.train, history.val)
    )


def assert_alike(
    task: str, extra: str, writers: dict[str, Writer], sample: Sample, tmp_path: Path
) -> tuple[dict[int, dict[str, float]], dict[str, float]]:
    """The losses by iteration and the scores, which are the same for all."""
    found = {
        name: train(task, extra, write, sample, tmp_path / name.replace(' ', '_'))
        for name, write in writers.items()
    }
    first = next(iter(found.values()))
    for name, logged in found.items():
        assert logged == first, name
    losses, (scores,) = first[0], first[1].values()
    assert len({row['loss'] for row in losses.values()}) == len(losses) == ITERATIONS
    return losses, scores


def of_objects(masks: bool) -> dict[str, Writer]:
    def writer(write: Callable[..., None]) -> Writer:
        return lambda root, sample: write(root, masks, sample)

    writers = {**sample_folders.WRITERS, 'COCO splits': sample_folders.write_coco_splits}
    if masks:
        del writers['Pascal VOC']
    return {name: writer(write) for name, write in writers.items()}


def test_boxes(sample: Sample, tmp_path: Path) -> None:
    _, scores = assert_alike('DETECTION', SIZE + NO_MASKS, of_objects(False), sample, tmp_path)
    assert scores['coco/bbox_mAP_50'] > 0
    assert 'coco/segm_mAP' not in scores


def test_masks(sample: Sample, tmp_path: Path) -> None:
    losses, scores = assert_alike('DETECTION', '', of_objects(True), sample, tmp_path)
    assert len({row['loss_mask'] for row in losses.values()}) == ITERATIONS
    assert scores['coco/bbox_mAP_50'] > 0
    assert 'coco/segm_mAP' in scores  # masks take longer to learn


def write_palette_maps(root: Path, sample: Sample) -> None:
    """Index maps whose colours are those of a palette, as those of Pascal VOC."""
    sample_folders.write_maps(root, sample=sample)
    for path in (root / 'masks').iterdir():
        image = Image.open(path)
        image.putpalette(np.array(COLOURS, np.uint8).tobytes())
        image.save(path)


def test_maps(sample: Sample, tmp_path: Path) -> None:
    def write_colours(root: Path, sample: Sample) -> None:
        sample_folders.write_maps(root, COLOURS, sample)
        lines = [f'class_{i} {r} {g} {b}' for i, (r, g, b) in enumerate(COLOURS)]
        (root / 'classes.txt').write_text('\n'.join(lines))

    writers: dict[str, Writer] = {
        'index maps': lambda root, sample: sample_folders.write_maps(root, sample=sample),
        'colours': write_colours,
        'gaps': lambda root, sample: sample_folders.write_maps(root, [0, 7, 90], sample),
        'palette': write_palette_maps,
    }
    _, scores = assert_alike('SEGMENTATION', '', writers, sample, tmp_path)
    assert scores['mIoU'] > 0
