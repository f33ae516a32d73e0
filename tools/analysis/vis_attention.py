"""Draw where the local attention of a model looks, for chosen points of an image.

Into the folder go a PNG file for each point and stage, and attention.html: a page that shows the
attention of any pixel under the pointer and needs nothing else, no network either. What is drawn
are the weights that the layers of the model apply to this image, both steps of sparse scan
attention multiplied out.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmlocalattn.command_line import add_config_arguments, one_line_errors, output_path
from mmlocalattn.files import check_folder


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition('\n')[0],
        usage='%(prog)s CONFIG [CKPT] IMAGE --out DIR [--points X,Y ...] [options]',
    )
    add_config_arguments(parser)
    parser.add_argument('checkpoint', nargs='?', help='weights; without it they are random')
    parser.add_argument('image', help='image file')
    parser.add_argument(
        '--allow-partial',
        action='store_true',
        help='take what fits of a checkpoint of another backbone, and the rest random',
    )
    parser.add_argument(
        '--out', type=output_path, required=True, metavar='DIR', help='folder for the pictures'
    )
    parser.add_argument(
        '--points',
        nargs='+',
        type=point,
        metavar='X,Y',
        help='queries, in pixels of the image from its top left corner; default its centre',
    )
    parser.add_argument('--stages', nargs='+', type=int, metavar='I', help='default all, from 0')
    parser.add_argument(
        '--blocks',
        nargs='+',
        metavar='J',
        help="blocks of each stage, from 0, or 'down' for the step down to it; default the last "
        'two with local attention',
    )
    parser.add_argument('--heads', nargs='+', type=int, metavar='N', help='default all, from 0')
    parser.add_argument(
        '--short-side',
        type=int,
        default=224,
        metavar='PIXELS',
        help='shorter side that the model sees (default: %(default)s)',
    )
    parser.add_argument(
        '--max-mb',
        type=float,
        default=8,
        metavar='MB',
        help='bound on attention.html; it leaves out queries to stay below (default: %(default)g)',
    )
    return parser.parse_intermixed_args(argv)


def point(text: str) -> tuple[int, int]:
    x, y = text.split(',')
    return int(x), int(y)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from mmlocalattn.data.images import as_picture
    from mmlocalattn.training import config_of
    from mmlocalattn.visualisation.draw import (
        attention_of,
        check_points,
        draw_layers,
        select_layers,
    )
    from mmlocalattn.visualisation.pictures import image_reader

    with one_line_errors():
        check_folder(args.out)
        cfg = config_of(args)
        image = image_reader(cfg)(args.image)
        points = args.points or [(image.shape[1] // 2, image.shape[0] // 2)]
        check_points(points, image)
        records = attention_of(cfg, image, args.checkpoint, args.short_side, args.allow_partial)
        layers = select_layers(records, args.stages, args.blocks, args.heads)
        title = Path(args.config).stem + (f' with {args.backbone}' if args.backbone else '')
        weights = Path(args.checkpoint).name if args.checkpoint else 'random weights'
        limit = int(args.max_mb * 1e6)
        files = draw_layers(layers, as_picture(image), points, args.out, title, weights, limit)
    print(*files, sep='\n')


if __name__ == '__main__':
    main()
