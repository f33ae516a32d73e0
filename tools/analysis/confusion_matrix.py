"""Count which class is taken for which, from the predictions that tools/test.py --out saves.

    python tools/test.py CONFIG CHECKPOINT --out PREDICTIONS
    python tools/analysis/confusion_matrix.py CONFIG PREDICTIONS SAVE_DIR

Rows are the true classes, columns the predicted ones. Counted are images for classification and
pixels for segmentation. For detection, mmdet's script of this name counts: each pair of a detection
above the score threshold and an object that it overlaps, detections that overlap no object as
background taken for their class, and objects without a detection of their class as taken for the
background. That of mmsegmentation 1.2.2 is not used: it adds in 8 bits, which is wrong with more
than 16 classes, and shifts the labels of data sets such as ADE20K.
"""

import argparse
import json
import runpy
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import cv2
import matplotlib
import mmengine
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, init_default_scope
from numpy.typing import NDArray
from rich.progress import track

from mmlocalattn.data import check_data
from mmlocalattn.training import add_config_arguments, config_of

matplotlib.use('Agg')
from matplotlib import pyplot as plt

MAX_VALUES = 30  # classes; more would leave no room for numbers in the cells
NUM_CONFUSIONS = 5  # to print


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add_config_arguments(parser)
    parser.add_argument('predictions', type=Path, help='what --out of tools/test.py named')
    parser.add_argument('save_dir', type=Path, help='folder for the matrix and its picture')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='detection: lowest score that counts'
    )
    parser.add_argument(
        '--tp-iou-thr', type=float, default=0.5, help='detection: lowest IoU that counts'
    )
    return parser.parse_args(argv)


def count_boxes(dataset: BaseDataset, args: argparse.Namespace) -> NDArray[np.int64]:
    """(C + 1, C + 1) pairs of objects and detections; the last class is the background."""
    script = '.mim/tools/analysis_tools/confusion_matrix.py'
    count = run_toolbox_script('mmdet', script)['calculate_confusion_matrix']
    results = load_results(dataset, args.predictions)
    matrix = count(dataset, results, args.score_thr, tp_iou_thr=args.tp_iou_thr)
    print()  # the line of its progress bar ends
    return matrix.astype(np.int64)


def run_toolbox_script(package: str, script: str) -> dict:
    """The names that a script which an installed package brings defines.

    Raises:
        FileNotFoundError: If the installation has no such script.
    """
    path = Path(find_spec(package).origin).parent / script
    if not path.is_file():
        raise FileNotFoundError(f'{path}, which {package} brings when it is installed, is missing')
    return runpy.run_path(str(path))


def count_images(dataset: BaseDataset, args: argparse.Namespace) -> NDArray[np.int64]:
    """(C, C) images."""
    from mmpretrain.evaluation import ConfusionMatrix

    results = load_results(dataset, args.predictions)
    labels, scores = (
        torch.stack([torch.as_tensor(result[key]).squeeze() for result in results])
        for key in ('gt_label', 'pred_score')
    )
    return ConfusionMatrix.calculate(scores, labels, num_classes=scores.shape[1]).numpy()


def load_results(dataset: BaseDataset, path: Path) -> list[dict]:
    """The predictions of tools/test.py, one for each image.

    Raises:
        ValueError: If the file is of another kind or for another number of images.
    """
    if path.suffix not in ('.pkl', '.pickle'):
        raise ValueError(f'predictions are a .pkl file that tools/test.py --out wrote, got {path}')
    results = mmengine.load(path)
    if len(results) != len(dataset):
        raise ValueError(
            f'{path} has predictions for {len(results)} images and the test data {len(dataset)}'
        )
    return results


def count_pixels(dataset: BaseDataset, args: argparse.Namespace) -> NDArray[np.int64]:
    """(C, C) pixels; those that the data set ignores do not count.

    Raises:
        FileNotFoundError: If an image has no index map.
        ValueError: If an index map has another size, or classes that the data set has not.
    """
    number = len(dataset.metainfo['classes'])
    matrix = np.zeros((number, number), np.int64)
    for index in track(range(len(dataset)), description='counting'):
        sample = dataset[index]['data_samples']
        path = args.predictions / f'{Path(sample.img_path).stem}.png'
        if not path.is_file():
            raise FileNotFoundError(f'{path}, the index map of {sample.img_path}, does not exist')
        true = sample.gt_sem_seg.data.squeeze().numpy().astype(np.int64)
        predicted = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.int64)
        predicted -= sample.get('reduce_zero_label', False)  # which IoUMetric added
        if predicted.shape != true.shape:
            raise ValueError(f'{path} has the size {predicted.shape}, its image {true.shape}')
        counted = true != dataset.ignore_index
        pairs = number * true[counted] + predicted[counted]
        if predicted.max() >= number or true[counted].max(initial=0) >= number:
            raise ValueError(f'{path} or its annotation has a class above {number - 1}')
        matrix += np.bincount(pairs, minlength=number**2).reshape(number, number)
    return matrix


COUNT: dict[str, Callable] = {
    'mmdet': count_boxes,
    'mmseg': count_pixels,
    'mmpretrain': count_images,
}


def row_shares(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """(C, C) percentages of each row; 0 where a row is empty."""
    return 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


def draw(matrix: NDArray[np.int64], classes: Sequence[str], path: Path) -> None:
    """Draw the percentages of each row; up to 30 classes with numbers."""
    shares = row_shares(matrix)
    side = min(4 + 0.4 * len(classes), 24)
    figure, axes = plt.subplots(figsize=(side, side))
    image = axes.imshow(shares, vmin=0, vmax=100)
    figure.colorbar(image, label='% of the true class', shrink=0.7)
    ticks = range(len(classes))
    small = dict(fontsize=8 if len(classes) <= MAX_VALUES else 4)
    axes.set_xticks(ticks, classes, rotation=90, **small)
    axes.set_yticks(ticks, classes, **small)
    axes.set(xlabel='predicted', ylabel='true')
    if len(classes) <= MAX_VALUES:
        for (row, column), share in np.ndenumerate(shares):
            color = 'black' if share > 60 else 'white'
            axes.text(column, row, f'{share:.0f}', ha='center', va='center', color=color, **small)
    figure.savefig(path, dpi=150, bbox_inches='tight')
    plt.close(figure)


def largest_confusions(matrix: NDArray[np.int64], classes: Sequence[str]) -> list[str]:
    """What is most often taken for something else, one line for each."""
    shares = row_shares(matrix)
    np.fill_diagonal(shares, 0)
    order = np.argsort(shares, axis=None)[::-1][:NUM_CONFUSIONS]
    pairs = (np.unravel_index(position, shares.shape) for position in order)
    return [
        f'{shares[true, predicted]:5.1f} % of {classes[true]} taken for {classes[predicted]}'
        for true, predicted in pairs
        if shares[true, predicted] > 0
    ]


def confusion_matrix(cfg: Config, args: argparse.Namespace) -> tuple[NDArray[np.int64], list[str]]:
    """Count, and name the rows.

    Raises:
        FileNotFoundError: If the predictions do not exist.
        ValueError: If they do not fit the test data, or the config is of another package.
    """
    scope = cfg.get('default_scope')
    if scope not in COUNT:
        raise ValueError(f'default_scope must be one of {", ".join(COUNT)}, got {scope!r}')
    if not args.predictions.exists():
        raise FileNotFoundError(
            f'{args.predictions} does not exist; tools/test.py --out {args.predictions} makes it'
        )
    check_data(cfg, ('test',))
    init_default_scope(scope)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    matrix = COUNT[scope](dataset, args)
    classes = [*dataset.metainfo.get('classes', range(len(matrix)))]
    return matrix, [*map(str, classes), 'background'][: len(matrix)]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        matrix, classes = confusion_matrix(config_of(args), args)
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        raise SystemExit(f'error: {error}') from None
    args.save_dir.mkdir(parents=True, exist_ok=True)
    draw(matrix, classes, args.save_dir / 'confusion_matrix.png')
    content = json.dumps(dict(classes=classes, matrix=matrix.tolist()))
    (args.save_dir / 'confusion_matrix.json').write_text(content)
    print(*largest_confusions(matrix, classes), f'{args.save_dir}/confusion_matrix.png', sep='\n')


if __name__ == '__main__':
    main()
