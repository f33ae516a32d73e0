"""Time whole detectors beside those that one would pick instead, on random images, batch 1.

Ours run as tools/test.py runs them, the others as their packages build them, in turns in one
process that keeps its freed memory. All have random weights and as many proposals and objects as
they let through. Files of tools/export.py run at the size that they are for.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmlocalattn.command_line import (
    add_size_arguments,
    one_line_errors,
    output_file,
    positive,
)

CONFIGS = (
    'maskrcnn_ssvit_t_1x_coco',
    'maskrcnn_slide_swin_t_3x_coco',
    'maskrcnn_sasa_r50_1x_coco',
)
OTHERS = ('mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    root = Path(__file__).parents[2]
    parser.add_argument(
        '--configs',
        nargs='*',
        default=[str(root / 'configs' / f'{name}.py') for name in CONFIGS],
        metavar='CONFIG',
        help='ours, default Mask R-CNN with SSViT-T, Slide-Swin-T and SASA-R50',
    )
    parser.add_argument(
        '--others', nargs='*', default=OTHERS, metavar='CONFIG', help="default mmdet's Swin-T"
    )
    parser.add_argument(
        '--files', nargs='*', default=[], metavar='FILE', help='.onnx and .xml of tools/export.py'
    )
    add_size_arguments(parser, many=True, help='image sizes, default 480x640 and 800x1344')
    parser.add_argument('--threads', type=positive, help="default PyTorch's number")
    parser.add_argument('--rounds', type=positive, default=3)
    parser.add_argument('--out', type=output_file, help='JSON file to write')
    args = parser.parse_args(argv)
    args.size = args.size or [(480, 640), (800, 1344)]
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    import torch
    from benchmarking.detectors import contenders, measure, print_records
    from benchmarking.timing import environment, write_results

    from mmlocalattn.export.run_file import load_file
    from mmlocalattn.memory import keep_freed_memory
    from mmlocalattn.training import load_config

    keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    with one_line_errors():
        ours, others = (
            [load_config(path) for path in paths] for paths in (args.configs, args.others)
        )
        files = [load_file(path) for path in args.files]
    records = []
    for size in args.size:
        records += measure(contenders(ours, others, files, size), size, args.rounds)
    setting = environment(torch.device('cpu'))
    print_records(records, setting)
    write_results(args, setting, records)


if __name__ == '__main__':
    main()
