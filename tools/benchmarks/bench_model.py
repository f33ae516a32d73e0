"""Time the backbone or the whole model of a config on random images.

Several models are timed in turns in one process; the table shows medians.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    args.size = args.size or [(800, 1344)]
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    import torch
    from benchmarking.models import (
        build,
        check_compiled,
        make_run,
        measure,
        print_records,
        profile,
    )
    from benchmarking.timing import environment, write_results

    from mmlocalattn.device import usable_device
    from mmlocalattn.memory import keep_freed_memory
    from mmlocalattn.training import config_of, load_config

    if args.keep_freed_memory:
        keep_freed_memory()
    paths = [args.config, *args.baseline]
    with one_line_errors():
        args.device = usable_device(args.device)
        configs = [config_of(args), *map(load_config, args.baseline)]
    models: list[Any] = [build(cfg, args.whole, args.dtype).to(args.device) for cfg in configs]
    for model in models:
        model.train(args.train)  # mmdet's ResNet does not return itself
    names = [Path(path).stem for path in paths]
    if args.compile:
        several = len(args.size) > 1
        models += [torch.compile(model, fullgraph=True, dynamic=several) for model in models]
        names += [f'{name}, compiled' for name in names]
        configs += configs
    records = []
    for size in args.size:
        if args.compile:
            half = len(models) // 2
            for name, cfg, model, compiled in zip(names, configs, models[:half], models[half:]):
                seconds = check_compiled(cfg, model, compiled, size, args)
                print(f'{name}, {size[0]} x {size[1]}: {seconds:.0f} s to the first outputs')
        with one_line_errors():
            runs = [make_run(cfg, model, size, args) for cfg, model in zip(configs, models)]
        for record, model, run in zip(measure(names, runs, args), models, runs):
            parameters = sum(parameter.numel() for parameter in model.parameters())
            records.append(record | {'size': list(size), 'parameters': parameters})
            if args.profile:
                print(f'{record["config"]}, {size[0]} x {size[1]}')
                print(profile(run, args.device))
    setting = environment(args.device)
    print(
        f'{"model" if args.whole else "backbone"}, '
        f'{"forward and backward" if args.train else "forward"}, batch {args.batch}, {args.dtype}, '
        f'{setting["device"]}, {setting["threads"]} threads'
    )
    print_records(records)
    write_results(args, setting, records)


if __name__ == '__main__':
    main()
