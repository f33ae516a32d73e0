"""Which class is taken for which: counts of predictions that were saved, and their picture.

Rows are the true classes, columns the predicted ones. Counted are images for classification and
pixels for segmentation. For detection, mmdet's confusion_matrix.py counts: each pair of a detection
above the score threshold and an object that it overlaps, detections that overlap no object as
background taken for their class, and objects without a detection of their class as taken for the
background. That of mmsegmentation 1.2.2 is not used: it adds in 8 bits, which is wrong with more
than 16 classes, and shifts the labels of data sets such as ADE20K.
"""

import pickle
import runpy
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import cv2
import mmengine
import numpy as np
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from numpy.typing import NDArray
from rich.progress import track

from mmlocalattn.files import whole_file
from mmlocalattn.visualisation.pictures import build_dataset

MAX_VALUES = 30  # classes; more would leave no room for numbers in the cells
NUM_CONFUSIONS = 5  # the largest


class Confusion(NamedTuple):
    """What was predicted for what.

    Attributes:
        matrix: (C, C) counts.
        classes: C names; for detection the last one is the background.
    """

    matrix: NDArray[np.int64]
    classes: list[str]

    def shares(self) -> NDArray[np.float64]:
        """(C, C) percentages of each row; 0 where a row is empty."""
        return 100 * self.matrix / np.maximum(self.matrix.sum(axis=1, keepdims=True), 1)

    def largest(self) -> list[str]:
        """What is most often taken for something else, one line for each."""
        shares = self.shares()
        np.fill_diagonal(shares, 0)
        order = np.argsort(shares, axis=None)[::-1][:NUM_CONFUSIONS]
        pairs = (np.unravel_index(position, shares.shape) for position in order)
        return [
            f'{shares[true, predicted]:5.1f} % of {self.classes[true]} '
            f'taken for {self.classes[predicted]}'
            for true, predicted in pairs
            if shares[true, predicted] > 0
        ]


def count_confusion(
    cfg: Config, predictions: Path, score_thr: float = 0.3, iou_thr: float = 0.5
) -> Confusion:
    """Compare saved predictions with the test data of a config.

    Args:
        cfg: Of mmdet, mmsegmentation or mmpretrain.
        predictions: What ``--out`` of tools/test.py named: a .pkl file, or for segmentation a
            folder of index maps.
        score_thr: Detection: lowest score that counts.
        iou_thr: Detection: lowest IoU that counts.

    Raises:
        FileNotFoundError: If the predictions or the test data do not exist.
        ValueError: If they do not fit each other, or the config is of another package.
    """
    scope = cfg.get('default_scope')
    if scope not in ('mmdet', 'mmseg', 'mmpretrain'):
        raise ValueError(f'default_scope must be mmdet, mmseg or mmpretrain, got {scope!r}')
    if not predictions.exists():
        raise FileNotFoundError(
            f'{predictions} does not exist; tools/test.py --out {predictions} makes it'
        )
    dataset = build_dataset(cfg, 'test')
    if scope == 'mmdet':
        matrix = _count_boxes(dataset, predictions, score_thr, iou_thr)
    elif scope == 'mmseg':
        matrix = _count_pixels(dataset, predictions)
    else:
        matrix = _count_images(dataset, predictions)
    classes = [*dataset.metainfo.get('classes', range(len(matrix)))]
    return Confusion(matrix, [*map(str, classes), 'background'][: len(matrix)])


def _count_boxes(
    dataset: BaseDataset, predictions: Path, score_thr: float, iou_thr: float
) -> NDArray[np.int64]:
    """(C + 1, C + 1) pairs of objects and detections; the last class is the background."""
    script = '.mim/tools/analysis_tools/confusion_matrix.py'
    count = _run_toolbox_script('mmdet', script)['calculate_confusion_matrix']
    results = _load_results(dataset, predictions)
    matrix = count(dataset, results, score_thr, tp_iou_thr=iou_thr)
    print()  # the line of its progress bar ends
    return matrix.astype(np.int64)


def _run_toolbox_script(package: str, script: str) -> dict:
    """The names that a script which an installed package brings defines.

    Raises:
        FileNotFoundError: If the installation has no such script.
    """
    spec = find_spec(package)
    assert spec is not None  # the data set is of this package
    assert spec.origin is not None
    path = Path(spec.origin).parent / script
    if not path.is_file():
        raise FileNotFoundError(f'{path}, which {package} brings when it is installed, is missing')
    return runpy.run_path(str(path))


def _count_images(dataset: BaseDataset, predictions: Path) -> NDArray[np.int64]:
    """(C, C) images."""
    results = _load_results(dataset, predictions)
    true = np.array([int(result['gt_label']) for result in results])
    scores = np.stack([np.asarray(result['pred_score']).squeeze() for result in results])
    return _count_pairs(true, scores.argmax(1), scores.shape[1])


def _load_results(dataset: BaseDataset, path: Path) -> list[dict]:
    """The predictions of tools/test.py, one for each image.

    Raises:
        ValueError: If the file is of another kind or for another number of images.
    """
    if path.suffix not in ('.pkl', '.pickle'):
        raise ValueError(f'predictions are a .pkl file that tools/test.py --out wrote, got {path}')
    try:
        results = mmengine.load(path)
        first = results[0]
    except (pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f'{path} is no file of predictions that tools/test.py --out wrote'
        ) from error
    if not isinstance(first, dict) or not {'pred_instances', 'pred_score'} & first.keys():
        raise ValueError(f'{path} has no predictions of detections or classes')
    if len(results) != len(dataset):
        raise ValueError(
            f'{path} has predictions for {len(results)} images and the test data {len(dataset)}'
        )
    return results


def _count_pixels(dataset: BaseDataset, predictions: Path) -> NDArray[np.int64]:
    """(C, C) pixels; those that the data set ignores do not count.

    Raises:
        FileNotFoundError: If an image has no index map.
        ValueError: If an index map has another size, or classes that the data set has not.
    """
    number = len(dataset.metainfo['classes'])
    matrix = np.zeros((number, number), np.int64)
    for index in track(range(len(dataset)), description='counting'):
        sample = dataset[index]['data_samples']
        path = predictions / f'{Path(sample.img_path).stem}.png'
        if not path.is_file():
            raise FileNotFoundError(f'{path}, the index map of {sample.img_path}, does not exist')
        true = sample.gt_sem_seg.data.squeeze().numpy().astype(np.int64)
        index_map = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if index_map is None:
            raise ValueError(f'{path} is no image that OpenCV reads')
        predicted = index_map.astype(np.int64)
        predicted -= sample.get('reduce_zero_label', False)  # which IoUMetric added
        if predicted.shape != true.shape:
            raise ValueError(f'{path} has the size {predicted.shape}, its image {true.shape}')
        counted = true != dataset.ignore_index
        true, predicted = true[counted], predicted[counted]
        highest = max(true.max(initial=0), predicted.max(initial=0))
        if predicted.min(initial=0) < 0 or highest >= number:
            raise ValueError(f'{path} or its annotation has a class outside 0 to {number - 1}')
        matrix += _count_pairs(true, predicted, number)
    return matrix


def _count_pairs(
    true: NDArray[np.integer], predicted: NDArray[np.integer], number: int
) -> NDArray[np.int64]:
    """(C, C) how often each pair of ``number`` classes stands in two flat arrays."""
    return np.bincount(number * true + predicted, minlength=number**2).reshape(number, number)


def draw_confusion(confusion: Confusion, path: Path) -> None:
    """Draw the percentages of each row; up to 30 classes with numbers.

    Args:
        confusion: To draw.
        path: Of the picture.
    """
    shares, classes = confusion.shares(), confusion.classes
    side = min(4 + 0.4 * len(classes), 24)
    figure = Figure((side, side))
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=100)
    figure.colorbar(image, label='% of the true class', shrink=0.7)
    ticks: Sequence[int] = range(len(classes))
    font_size = 8 if len(classes) <= MAX_VALUES else 4
    axes.set_xticks(ticks, classes, rotation=90, fontsize=font_size)
    axes.set_yticks(ticks, classes, fontsize=font_size)
    axes.set(xlabel='predicted', ylabel='true')
    if len(classes) <= MAX_VALUES:
        for (row, column), share in np.ndenumerate(shares):
            axes.text(
                column,
                row,
                f'{share:.0f}',
                ha='center',
                va='center',
                color='black' if share > 60 else 'white',
                fontsize=font_size,
            )
    with whole_file(path) as partial:
        figure.savefig(partial, format=path.suffix[1:] or 'png', dpi=150, bbox_inches='tight')
