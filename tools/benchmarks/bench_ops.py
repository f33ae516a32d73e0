"""Time the operators beside other ways to compute the same, and beside a matrix product.

Everything about one map is timed in turns in one process; the table shows medians. On CUDA every
call is timed as a replayed graph too, without the host's part of it. FLOPs are the useful ones:
4 * B * heads * H * W * kh * kw * head_dim forward, 3.5 times that for forward and backward; of
slide_attention, the convolutions to its copies too. Before, every way is compared with the
reference on small maps.
"""

import argparse
import functools
import statistics
from collections.abc import Sequence

from benchmarking.choices import BASELINES, DTYPES

from mmlocalattn.command_line import one_line_errors, output_path, positive

SHAPES = (
    '100x167,2,7,1',
    '100x167,2,15,6',
    '100x167,2,29,3',
    '50x84,8,7,7',
    '200x334,2,29,6',
    '200x334,2,7,28',
)
SCAN_SHAPES = ('200x334,2', '100x167,4', '50x84,8', '25x42,16')
SLIDE_SHAPES = ('200x334,3,3', '100x167,6,3')
STAND_ALONE_SHAPES = ('200x334,8,7,8', '100x167,8,7,16', '50x84,8,7,32')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add_shapes(parser, '--shapes', 'HxW,HEADS,KERNEL,DILATION', SHAPES, 'of neighborhood_attention')
    add_shapes(
        parser,
        '--scan-shapes',
        'HxW,HEADS',
        SCAN_SHAPES,
        'of sparse_scan_attention, with the windows of the adaptive rule',
        ', the stages of SSViT-S at 800x1336',
    )
    add_shapes(
        parser,
        '--slide-shapes',
        'HxW,HEADS,KERNEL',
        SLIDE_SHAPES,
        'of slide_attention, always timed beside the eager forms of its released code',
        ', the slide stages of Slide-Swin-T at 800x1336',
    )
    add_shapes(
        parser,
        '--stand-alone-shapes',
        'HxW,HEADS,KERNEL,HEAD_DIM',
        STAND_ALONE_SHAPES,
        'of stand_alone_attention, always timed beside copies of its windows',
        ', stages of SASA-ResNet-50 at 800x1336',
    )
    parser.add_argument(
        '--baselines',
        nargs='*',
        choices=BASELINES,
        default=['unfold'],
        help='what to time beside ours, default: unfold; sparse_scan_attention is always timed '
        'beside two separate operators and eager rotary embedding too',
    )
    parser.add_argument('--batch', type=positive, nargs='+', default=[1])
    parser.add_argument('--head-dim', type=positive, default=32)
    parser.add_argument('--bias', action='store_true', help='with relative position bias')
    parser.add_argument('--dtype', choices=DTYPES, default='float32')
    parser.add_argument('--device', default='cpu', help='cpu, cuda or cuda:N')
    parser.add_argument('--rounds', type=positive, default=5)
    parser.add_argument('--forward-only', action='store_true')
    parser.add_argument('--markdown', action='store_true', help='print a short table, as in README')
    parser.add_argument('--out', type=output_path, help='JSON file to write')
    parser.add_argument('--plot', type=output_path, help='PNG file to write')
    return parser.parse_args(argv)


def add_shapes(
    parser: argparse.ArgumentParser,
    option: str,
    fields: str,
    defaults: Sequence[str],
    help_: str,
    origin: str = '',
) -> None:
    """Add an option for maps and windows; ``origin`` says where the defaults are from."""
    parse = functools.partial(parse_shape, fields=fields)
    parser.add_argument(
        option,
        nargs='*',
        type=parse,
        default=list(map(parse, defaults)),
        metavar=fields,
        help=f'{help_}, default: {" ".join(defaults)}{origin}',
    )


def parse_shape(text: str, fields: str) -> tuple:
    """``'100x167,2,7,1'`` to (height, width, heads, kernel, dilation); a kernel can be ``5x11``."""
    try:
        size, *rest = text.split(',')
        numbers: tuple = (*map(int, size.split('x')), *map(int, rest[:1]))
        if len(rest) > 1:
            kernel = tuple(map(int, rest[1].split('x')))
            numbers += (kernel[0] if len(kernel) == 1 else kernel, *map(int, rest[2:]))
    except ValueError:
        numbers = ()
    flat = [n for number in numbers for n in (number if isinstance(number, tuple) else [number])]
    if len(numbers) != fields.count(',') + 2 or min(flat) < 1:
        raise argparse.ArgumentTypeError(f'not {fields}: {text!r}')
    return numbers


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from benchmarking.operators import MATRIX, check_all, make_cases, matrix_product, measure
    from benchmarking.report import draw, full_table, short_table
    from benchmarking.timing import environment, write_results

    from mmlocalattn.device import usable_device

    with one_line_errors():
        args.device = usable_device(args.device)
        reasons, product = check_all(args), matrix_product(args)
        records = []
        for case in make_cases(args):
            print(f'timing {case.title}, {", ".join(case.label)}', flush=True)
            records += measure(case, args, reasons, product)
    setting = environment(args.device)
    for op in dict.fromkeys(record['op'] for record in records):
        chosen = [record for record in records if record['op'] == op]
        products = [r['matrix_product_gflops'] for r in chosen if 'seconds' in r]
        print(
            f'\n{op}: {args.dtype}, head_dim {args.head_dim}, {setting["device"]}, '
            f'{setting["threads"]} threads; matrix product {MATRIX}^3: '
            f'{statistics.median(products):.0f} GFLOP/s'
            + ('' if op in setting['compiled_kernels'] else '; NO COMPILED KERNEL, the reference')
        )
        (short_table if args.markdown else full_table)(chosen)
    write_results(args, setting, records)
    if args.plot:
        draw(records, args.plot)


if __name__ == '__main__':
    main()
