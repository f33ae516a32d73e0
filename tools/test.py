"""Test a detector, segmentor or classifier: python tools/test.py CONFIG CHECKPOINT."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.evaluator import DumpResults
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmlocalattn.data import check_data
from mmlocalattn.training import (
    adapt_to_device,
    add_common_arguments,
    allow_mmengine_checkpoints,
    config_of,
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Test a detector, segmentor or classifier.')
    add_common_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out',
        metavar='F',
        help='save the predictions: a .pkl file, or for segmentation a folder of index maps',
    )
    parser.add_argument(
        '--show-dir',
        metavar='D',
        help='draw the predictions (of the first process) into this folder',
    )
    return parser.parse_args(argv)


def build_config(args: argparse.Namespace) -> Config:
    """The config file with the command line applied.

    Raises:
        FileNotFoundError: If the config, the data or the checkpoint does not exist.
        ModuleNotFoundError: If a package the config needs is not installed.
        ValueError: If the backbone cannot be replaced, or ``--out`` is not what the task can write.
    """
    cfg = config_of(args)
    if not os.path.isfile(args.checkpoint):
        raise FileNotFoundError(f'checkpoint {args.checkpoint!r} does not exist')
    check_data(cfg, ('test',))
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    cfg.load_from = args.checkpoint
    if args.show_dir:
        draw_into(cfg, os.path.abspath(args.show_dir))
    if args.out and cfg.default_scope == 'mmseg':
        metrics = cfg.test_evaluator
        for metric in metrics if isinstance(metrics, list) else [metrics]:
            if metric.type.endswith('IoUMetric'):
                metric.output_dir = args.out
    elif args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise ValueError(f'--out must end with .pkl or .pickle, got {args.out!r}')
    return cfg


def draw_into(cfg: Config, folder: str) -> None:
    """Let the task's visualization hook draw every test image.

    Args:
        cfg: Changed in place.
        folder: Absolute path, where the pictures go.
    """
    hook = cfg.default_hooks.visualization
    if cfg.default_scope == 'mmdet':
        hook.update(draw=True, test_out_dir=folder)
    elif cfg.default_scope == 'mmseg':
        hook.update(draw=True, interval=1)
        cfg.visualizer.vis_backends = [dict(type='LocalVisBackend', img_save_dir=folder)]
    else:
        hook.update(enable=True, interval=1, out_dir=folder)


def dump_metric(cfg: Config, out: str) -> DumpResults:
    """A metric that writes the predictions to the file ``out``; detection encodes its masks."""
    if cfg.default_scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults

        return DumpDetResults(out)
    return DumpResults(out)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    allow_mmengine_checkpoints()
    try:
        cfg = build_config(args)
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        raise SystemExit(f'error: {error}') from None
    adapt_to_device(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if args.out and cfg.default_scope != 'mmseg':
        runner.test_evaluator.metrics.append(dump_metric(cfg, args.out))
    runner.test()


if __name__ == '__main__':
    main()
