"""Export a model of a config: python tools/export.py CONFIG CKPT --format {onnx,torchscript,pt2}.

Models are exported whole, without pre-processing: detectors up to boxes, scores, labels and masks,
segmentors and classifiers up to the scores before the softmax. Files of the formats torchscript and
pt2 hold the operators of this package: `import mmlocalattn.ops` before loading them, and of most
detectors `import torchvision`. They refuse images that they do not serve. An ONNX file cannot, so
let --size name all kinds of images that it is to be used for.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mmlocalattn.command_line import add_config_arguments, image_size, one_line_errors, output_file
from mmlocalattn.export.formats import SUFFIXES
from mmlocalattn.files import check_file


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
    args = parser.parse_args(argv)
    if (args.checkpoint is None) != args.random_weights:
        parser.error('give either a checkpoint or --random-weights')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from mmlocalattn.export import build_exportable, default_sizes, describe, export
    from mmlocalattn.training import config_of

    out = args.out or Path(Path(args.config).with_suffix(SUFFIXES[args.format]).name)
    with one_line_errors():
        check_file(out)
        cfg = config_of(args)
        sizes = args.size or default_sizes(cfg, args.format)
        module = build_exportable(cfg, args.checkpoint, args.part, args.labels)
        meta = describe(cfg, args.part, sizes, args.format, module)
        export(module, out, args.format, sizes, meta, partial(print, flush=True))
    print(out)


if __name__ == '__main__':
    main()
