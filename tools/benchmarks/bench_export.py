"""Time the ONNX file of a config's backbone in onnxruntime beside the model in PyTorch.

Both have random weights and take turns in one process; the numbers are medians. Memory is that of
a first pass, measured in processes of their own.
"""

import argparse
from collections.abc import Sequence

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
    add_size_arguments(
        parser,
        many=True,
        help='sizes of images, default 512x512; of several, the '
        'file takes what lies between, and the first is timed',
    )
    parser.add_argument('--threads', type=positive, default=1)
    parser.add_argument('--rounds', type=positive, default=5)
    parser.add_argument('--out', type=output_file, help='JSON file to write')
    args = parser.parse_args(argv)
    args.size = args.size or [(512, 512)]
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    import torch
    from benchmarking.exported import measure, print_record
    from benchmarking.timing import environment, write_results

    torch.set_num_threads(args.threads)
    with one_line_errors():
        record = measure(args)
    setting = environment(torch.device('cpu'))
    print(f'{setting["device"]}, {setting["cpu_capability"]}, {setting["threads"]} threads')
    print_record(record)
    write_results(args, setting, [record])


if __name__ == '__main__':
    main()
