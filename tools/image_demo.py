"""Draw what a model sees: images, folders of images, videos.

    python tools/image_demo.py CONFIG CHECKPOINT photo.jpg pictures/ street.mp4 --out-dir seen

The models of mmdet, mmsegmentation and mmpretrain run through the inferencer of their package.
Classes and colors are those of the test data of the config.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmlocalattn.command_line import (
    add_config_arguments,
    add_dtype_argument,
    one_line_errors,
    output_folder,
    positive,
    share,
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add_config_arguments(parser)
    parser.add_argument('checkpoint', type=Path, help='checkpoint file')
    parser.add_argument(
        'inputs', nargs='+', type=Path, help='images, videos, or folders of them', metavar='INPUT'
    )
    parser.add_argument(
        '--allow-partial',
        action='store_true',
        help='draw with what fits of a checkpoint of another model, and the rest random',
    )
    parser.add_argument('--out-dir', type=output_folder, default='work_dirs/demo')
    parser.add_argument('--device', help='cpu, cuda, cuda:N, ...; default a GPU if there is one')
    add_dtype_argument(parser)
    parser.add_argument(
        '--batch-size',
        type=positive,
        default=1,
        help='images of one size, and frames of a video, that the model gets at once',
    )
    parser.add_argument(
        '--score-thr', type=share, default=0.3, help='detection: lowest score that is drawn'
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from mmengine.device import get_device

    from mmlocalattn.memory import keep_freed_memory
    from mmlocalattn.training import config_of, set_dtype
    from mmlocalattn.visualisation.predictor import Predictor, draw_files, is_video, plan_outputs

    device = args.device or get_device()
    with one_line_errors():
        targets = plan_outputs(args.inputs, args.out_dir)
        cfg = config_of(args)
        if args.dtype:
            set_dtype(cfg, args.dtype)
        keep_freed_memory()
        predictor = Predictor(cfg, args.checkpoint, device, args.score_thr, args.allow_partial)
        draw_files(predictor, targets, args.batch_size)
    videos = sum(map(is_video, targets))
    print(f'{len(targets) - videos} images and {videos} videos in {args.out_dir}')


if __name__ == '__main__':
    main()
