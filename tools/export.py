"""Export a model of a config: python tools/export.py CONFIG CKPT --format {onnx,openvino,pt2,...}.

Models are exported whole, and without pre-processing unless it is asked for: detectors up to boxes,
scores, labels and masks, segmentors and classifiers up to the scores before the softmax. Files of
the formats torchscript and pt2 hold the operators of this package: `import mmlocalattn.ops` before
loading them, and of most detectors `import torchvision`. They refuse images that they do not serve.
An ONNX file cannot, so let --size name all kinds of images that it is to be used for. A file is
kept only if it does on images as its model does: it has a certificate, which --show FILE prints.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mmlocalattn.command_line import (
    add_config_arguments,
    image_size,
    number_from_0,
    one_line_errors,
    output_file,
    share,
)
from mmlocalattn.export.formats import SUFFIXES
from mmlocalattn.files import check_file

if TYPE_CHECKING:
    from mmengine.config import Config

    from mmlocalattn.export.finish import Finish


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    show = argparse.ArgumentParser(add_help=False)
    show.add_argument(
        '--show', type=Path, metavar='FILE', help='print the certificate of a file, nothing else'
    )
    shown, rest = show.parse_known_args(argv)
    if shown.show and not rest:
        return shown
    if shown.show:
        show.error(f'--show FILE stands alone, got {" ".join(rest)} too')
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[show]
    )
    add_config_arguments(parser)
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file')
    parser.add_argument('--random-weights', action='store_true', help='export without a checkpoint')
    parser.add_argument('--format', choices=SUFFIXES, required=True)
    parser.add_argument('--out', type=output_file, help='default: the name of the config')
    parser.add_argument('--part', choices=('model', 'neck', 'backbone'), default='model')
    parser.add_argument(
        '--labels', action='store_true', help='of a segmentor the best class of every pixel'
    )
    parser.add_argument(
        '--size',
        nargs='+',
        type=image_size,
        metavar='HxW',
        help='image sizes on which the file is verified; it takes what lies between the smallest '
        'and the largest height and width, or with one size that alone',
    )
    add_certificate_arguments(parser)
    args = parser.parse_args(argv)
    if (args.checkpoint is None) != args.random_weights:
        parser.error('give either a checkpoint or --random-weights')
    suffix = SUFFIXES[args.format]
    if args.out and args.out.suffix != suffix:
        parser.error(
            f'argument --out: {str(args.out)!r} must end with {suffix}, as files of --format '
            f'{args.format} do'
        )
    if args.verify not in (None, 'none') and (args.random_weights or args.part != 'model'):
        parser.error('--verify is for whole models with the weights of a checkpoint')
    return args


def add_certificate_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        'certificate', 'The file runs on images beside its model; what differs more is not kept.'
    )
    group.add_argument(
        '--verify',
        metavar='DATA',
        help="'config' for its validation data, a folder as tools/train.py --data takes, 'sample' "
        "(default) for drawn images, or 'none' for random tensors alone, which is also what a part "
        'of a model and random weights get',
    )
    group.add_argument(
        '--verify-images',
        type=number_from_0,
        default=100,
        metavar='N',
        help='at most so many images of DATA, evenly spread over it; 0 for all, default 100',
    )
    group.add_argument(
        '--max-ap-drop',
        type=share,
        metavar='SHARE',
        help='by which box and mask AP, mIoU or top-1 may fall; default 0.001',
    )
    group.add_argument(
        '--min-matched',
        type=share,
        metavar='SHARE',
        help='of boxes that have a partner, or pixels or images of equal label; default 0.995',
    )
    parser.add_argument(
        '--with-preprocessing',
        action='store_true',
        help='onnx, openvino: take bytes of images of any size; resizing, padding, normalisation '
        'and the way back to the pixels of the image are in the file',
    )
    parser.add_argument(
        '--int8',
        type=Path,
        metavar='FOLDER',
        help='openvino: 8-bit integers, calibrated with the pictures of FOLDER and kept only if '
        'the limits hold, which are 0.01 and 0.9 then, with an IoU from 0.5',
    )


def finish_of(
    args: argparse.Namespace, cfg: 'Config', out: Path, sizes: list[tuple[int, int]]
) -> 'Finish':
    """What is done with the file before it gets its name."""
    from mmlocalattn.export.certificate import INT8_LIMITS, Limits
    from mmlocalattn.export.finish import Finish

    given = dict(max_ap_drop=args.max_ap_drop, min_matched=args.min_matched)
    limits = INT8_LIMITS if args.int8 else Limits()
    is_whole = args.checkpoint and args.part == 'model' and args.verify != 'none'
    finish = Finish(
        cfg=cfg,
        checkpoint=args.checkpoint,
        out=out,
        sizes=sizes,
        source=args.verify or 'sample' if is_whole else None,
        number=args.verify_images,
        limits=replace(limits, **{k: v for k, v in given.items() if v is not None}),
        with_preprocessing=args.with_preprocessing,
        calibration=args.int8,
        report=partial(print, flush=True),
    )
    finish.check(args.format)
    return finish


def show_file(path: Path) -> None:
    from mmlocalattn.export.run_file import load_file
    from mmlocalattn.export.show import lines_of

    file = load_file(path)
    try:
        lines = list(lines_of(file.meta))
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(
            f'{str(path)!r} has a certificate that cannot be read ({error!r}): tools/export.py '
            'did not write it'
        ) from error
    print(*lines, sep='\n')


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with one_line_errors():
        if args.show:
            show_file(args.show)
        else:
            export_model(args)


def export_model(args: argparse.Namespace) -> None:
    from mmlocalattn.export import (
        build_exportable,
        check_forward,
        check_sizes,
        default_sizes,
        describe,
        export,
    )
    from mmlocalattn.training import config_of
    from mmlocalattn.training.data_check import check_class_names

    out = args.out or Path(Path(args.config).with_suffix(SUFFIXES[args.format]).name)
    check_file(out)
    cfg = config_of(args)
    sizes = args.size or default_sizes(cfg, args.format)
    check_sizes(cfg, sizes, args.format, args.part)
    check_class_names(cfg)
    finish = finish_of(args, cfg, out, sizes)
    module = build_exportable(cfg, args.checkpoint, args.part, args.labels)
    check_forward(cfg, module, min(sizes))
    meta = describe(cfg, args.part, sizes, args.format, module)
    export(module, out, args.format, sizes, meta, partial(print, flush=True), finish)
    show_file(out)
    print(out)


if __name__ == '__main__':
    main()
