"""What a test leaves beside its metrics: files and pictures of the predictions."""

import os
from collections.abc import Mapping

from mmengine.config import Config

from mmlocalattn.files import check_file, check_folder


def save_predictions(cfg: Config, out: str) -> None:
    """Let a test write its predictions.

    Args:
        cfg: Changed in place.
        out: Of segmentation a folder, for an index map per image; else a ``.pkl`` file, in which
            masks of detections are run-length encoded.

    Raises:
        OSError: If it cannot be written there.
        ValueError: If the task writes a file, and ``out`` is not called as one; if no metric of
            the config writes index maps.
    """
    # A metric, a list of them, or an evaluator of a class of its own that has either.
    owner, key = cfg, 'test_evaluator'
    if isinstance(cfg.test_evaluator, Mapping) and 'metrics' in cfg.test_evaluator:
        owner, key = cfg.test_evaluator, 'metrics'
    metrics = owner[key] if isinstance(owner[key], (list, tuple)) else [owner[key]]
    scope = cfg.get('default_scope')
    if scope == 'mmseg':
        check_folder(out)
        writers = [metric for metric in metrics if metric.type.endswith('IoUMetric')]
        if not writers:
            raise ValueError(f'--out needs an IoUMetric, which writes the maps, in {cfg.filename}')
        for metric in writers:
            metric.output_dir = out
        return
    if not out.endswith(('.pkl', '.pickle')):
        raise ValueError(f'--out must end with .pkl or .pickle, got {out!r}')
    check_file(out)
    kind = 'DumpDetResults' if scope == 'mmdet' else 'DumpResults'
    owner[key] = [*metrics, dict(type=kind, out_file_path=out)]


_HOOKS = {'mmdet': 'DetVisualizationHook', 'mmseg': 'SegVisualizationHook'}


def draw_predictions(cfg: Config, folder: str) -> None:
    """Let the task's visualization hook draw every test image.

    Args:
        cfg: Changed in place.
        folder: Where the pictures go.

    Raises:
        OSError: If they cannot be written there.
    """
    check_folder(folder)
    folder = os.path.abspath(folder)  # else they go below the work dir
    if cfg.get('default_hooks') is None:
        cfg.default_hooks = {}
    hooks = cfg.default_hooks
    scope = cfg.get('default_scope')
    if not hooks.get('visualization'):
        hooks['visualization'] = dict(type=_HOOKS.get(scope, 'VisualizationHook'))
    hook = hooks['visualization']
    if scope == 'mmdet':
        hook.update(draw=True, test_out_dir=folder)
    elif scope == 'mmseg':  # whose own hook paints over the photograph
        hooks['visualization'] = dict(type='mmlocalattn.PicturesHook', folder=folder)
    else:
        hook.update(enable=True, interval=1, out_dir=folder)
