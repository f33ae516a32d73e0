"""Time the program of examples/cpp beside PyTorch on the whole model of a config, in turns.

Both run the same module with random weights on the same image, each round in a process of its own:
the program on its TorchScript file, PyTorch in Python as tools/test.py sets it up.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

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
    add_size_arguments(parser, help='of the image, default 480x640')
    parser.add_argument(
        '--detect', type=Path, metavar='PROGRAM', required=True, help='of examples/cpp, built'
    )
    parser.add_argument(
        '--file', type=Path, help='TorchScript file to write, or one of this config and size'
    )
    parser.add_argument('--threads', type=positive, default=2)
    parser.add_argument('--rounds', type=positive, default=3)
    parser.add_argument('--repeat', type=positive, default=3, help='images in a round')
    parser.add_argument('--out', type=output_file, help='JSON file to write')
    args = parser.parse_args(argv)
    args.size = args.size or (480, 640)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    import torch
    from benchmarking.cpp import measure, print_records
    from benchmarking.timing import environment, write_results

    torch.set_num_threads(args.threads)
    with one_line_errors():
        records = measure(args)
    setting = environment(torch.device('cpu'))
    print(f'{setting["device"]}, {setting["cpu_capability"]}, {setting["threads"]} threads')
    print_records(records)
    write_results(args, setting, records)


if __name__ == '__main__':
    main()
