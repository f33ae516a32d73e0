"""Time the backbone or the whole model of a config on random images.

Several models are timed in turns in one process; the table shows medians.
"""

import argparse
from collections.abc import Sequence

from benchmarking.choices import DTYPES

from mmlocalattn.command_line import (
    add_config_arguments,
    add_size_arguments,
    one_line_errors,
    output_file,
    positive,
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add_config_arguments(parser)
    parser.add_argument(
        '--baseline',
        nargs='+',
        default=[],
        metavar='CONFIG',
        help='other configs, timed in turns with the first',
    )
    parser.add_argument('--whole', action='store_true', help='the whole model, not its backbone')
    parser.add_argument(
        '--train', '--backward', action='store_true', help='forward and backward, not only forward'
    )
    add_size_arguments(parser, many=True, help='image sizes, default 800x1344')
    parser.add_argument('--batch', type=positive, default=1)
    parser.add_argument('--device', default='cpu', help='cpu, cuda or cuda:N')
    parser.add_argument(
        '--dtype',
        choices=DTYPES,
        default='float32',
        help='of autocast, which float32 leaves off',
    )
    parser.add_argument(
        '--keep-freed-memory',
        action='store_true',
        help='as train.py and test.py do; memory cannot be told then',
    )
    parser.add_argument(
        '--beside-untuned',
        action='store_true',
        help='with --whole on a CPU: time each model also as it is built, with glibc giving freed '
        'memory back, and compare what the two find',
    )
    parser.add_argument(
        '--compile',
        action='store_true',
        help='time each backbone also as torch.compile makes it: one graph, for the size, or '
        'for any if there are several; its outputs are compared first',
    )
    parser.add_argument('--rounds', type=positive, default=3)
    parser.add_argument('--profile', action='store_true', help="print PyTorch's profile of a pass")
    parser.add_argument('--out', type=output_file, help='JSON file to write')
    args = parser.parse_args(argv)
    if args.compile and args.whole:
        parser.error('--compile is for backbones: leave out --whole')
    if args.beside_untuned and not (args.whole and args.device == 'cpu'):
        parser.error('--beside-untuned needs --whole and --device cpu')
    args.size = args.size or [(800, 1344)]
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from benchmarking.models import (
        check_compiled,
        make_run,
        measure,
        print_records,
        print_shares,
        variants,
    )
    from benchmarking.timing import environment, write_results

    from mmlocalattn.device import usable_device
    from mmlocalattn.memory import keep_freed_memory
    from mmlocalattn.training import config_of, load_config

    if args.keep_freed_memory:
        keep_freed_memory()
    with one_line_errors():
        args.device = usable_device(args.device)
        configs = [config_of(args), *map(load_config, args.baseline)]
    found = variants(configs, [args.config, *args.baseline], args)
    records = []
    for size in args.size:
        if args.compile:
            half = len(found) // 2
            for eager, compiled in zip(found, found[half:]):
                seconds = check_compiled(eager.cfg, eager.model, compiled.model, size, args)
                print(f'{eager.name}, {size[0]} x {size[1]}: {seconds:.0f} s to the first outputs')
        with one_line_errors():
            runs = [make_run(variant.cfg, variant.model, size, args) for variant in found]
        records += measure(found, runs, size, args)
    setting = environment(args.device)
    print(
        f'{"model" if args.whole else "backbone"}, '
        f'{"forward and backward" if args.train else "forward"}, batch {args.batch}, {args.dtype}, '
        f'{setting["device"]}, {setting["threads"]} threads, {setting["cpu_capability"]}'
    )
    for name, limit in setting['limits'].items():
        print(f'{name}={limit}')
    print_records(records)
    print_shares(records)
    write_results(args, setting, records)


if __name__ == '__main__':
    main()
