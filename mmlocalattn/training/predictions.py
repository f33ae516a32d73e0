"""What a test leaves beside its metrics: files and pictures of the predictions."""

import os
from collections.abc import Mapping

from mmengine.config import Config


def save_predictions(cfg: Config, out: str) -> None:
    """Let a test write its predictions.

    Args:
        cfg: Changed in place.
        out: Of segmentation a folder, for an index map per image; else a ``.pkl`` file, in which
            masks of detections are run-length encoded.

    Raises:
        ValueError: If the task writes a file, and ``out`` is not called as one.
    """
    # A metric, a list of them, or an evaluator of a class of its own that has either.
    owner, key = cfg, 'test_evaluator'
    if isinstance(cfg.test_evaluator, Mapping) and 'metrics' in cfg.test_evaluator:
        owner, key = cfg.test_evaluator, 'metrics'
    metrics = owner[key] if isinstance(owner[key], (list, tuple)) else [owner[key]]
    if cfg.default_scope == 'mmseg':
        for metric in metrics:
            if metric.type.endswith('IoUMetric'):
                metric.output_dir = out
        return
    if not out.endswith(('.pkl', '.pickle')):
        raise ValueError(f'--out must end with .pkl or .pickle, got {out!r}')
    kind = 'DumpDetResults' if cfg.default_scope == 'mmdet' else 'DumpResults'
    owner[key] = [*metrics, dict(type=kind, out_file_path=out)]


def draw_predictions(cfg: Config, folder: str) -> None:
    """Let the task's visualization hook draw every test image.

    Args:
        cfg: Changed in place.
        folder: Where the pictures go.
    """
    folder = os.path.abspath(folder)  # else they go below the work dir
    hook = cfg.default_hooks.visualization
    if cfg.default_scope == 'mmdet':
        hook.update(draw=True, test_out_dir=folder)
    elif cfg.default_scope == 'mmseg':  # whose own hook paints over the photograph
        cfg.default_hooks.visualization = dict(type='mmlocalattn.PicturesHook', folder=folder)
    else:
        hook.update(enable=True, interval=1, out_dir=folder)
