"""The command lines of the tools: arguments that they share, kinds of values, errors in one line.

Nothing here costs an import of the stack, so that ``--help`` and a wrong argument are answered at
once. What the arguments mean stands in :mod:`mmlocalattn.training.arguments`.
"""

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmlocalattn.adapt.zoo import BACKBONES
from mmlocalattn.files import check_file, check_folder


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing share.

    :func:`~mmlocalattn.training.arguments.run_config_of` reads them.
    """
    add_config_arguments(parser)
    parser.add_argument(
        '--work-dir',
        type=output_folder,
        help='folder of logs and checkpoints; default work_dirs/<config name>',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed'
    )


def add_dtype_argument(parser: argparse.ArgumentParser) -> None:
    """Add what :func:`~mmlocalattn.training.launch.set_dtype` takes."""
    parser.add_argument(
        '--dtype',
        choices=('float32', 'bfloat16'),
        help='of the backbone, the neck and the heads; boxes stay in float32. Default: that of '
        'the config, float32 if it names none',
    )


def add_config_arguments(parser: argparse.ArgumentParser, many: bool = False) -> None:
    """Add what names a config, or ``many``, and changes it.

    :func:`~mmlocalattn.training.arguments.config_of` reads it.
    """
    parser.add_argument(
        'configs' if many else 'config',
        nargs='+' if many else None,
        metavar='CONFIG',
        help='config file, or one of an installed package: mmdet::FILE',
    )
    parser.add_argument(
        '--backbone',
        type=_backbone,
        metavar='NAME',
        help='replace the backbone, fit what depends on it and print what was changed; '
        'FILE.py:CLASS for one of your own, or: ' + ', '.join(BACKBONES),
    )
    parser.add_argument(
        '--keep-optimizer',
        action='store_true',
        help='with --backbone: keep the optimizer of the config',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        type=key_value,
        metavar='KEY=VALUE',
        help='change entries of the config: train_dataloader.batch_size=4; lists as key="[a,b]"',
    )


def _backbone(text: str) -> str:
    if text not in BACKBONES and '.py:' not in text:
        raise argparse.ArgumentTypeError(
            f'invalid choice: {text!r} (choose from {", ".join(BACKBONES)}, or FILE.py:CLASS)'
        )
    return text


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what names a user's own data.

    :func:`~mmlocalattn.training.arguments.config_of` reads it.
    """
    parser.add_argument(
        '--data',
        metavar='FOLDER',
        help='learn what this folder holds (COCO, YOLO, VOC, LabelMe, index maps, class folders) '
        'instead of the data of the config; prints what was changed',
    )
    parser.add_argument(
        '--val-fraction',
        type=float,
        default=0.2,
        metavar='SHARE',
        help='with --data: images for validation where the folder has no split, default 0.2',
    )
    parser.add_argument(
        '--skip-bad',
        action='store_true',
        help='with --data: go on without images and annotations that cannot be used',
    )


def add_size_arguments(parser: argparse.ArgumentParser, help: str, many: bool = False) -> None:
    """Add ``--size HxW``, of one image or of ``many``, and its old name ``--shape H W``.

    Args:
        parser: Gets ``size``, a pair or a list of pairs, None if it is not given.
        help: Of what the size is, and what it is without the argument.
        many: Whether several sizes can be given.
    """
    nargs = '+' if many else None
    parser.add_argument('--size', nargs=nargs, type=image_size, metavar='HxW', help=help)
    parser.add_argument(
        '--shape',
        nargs=2,
        dest='size',
        action=_Shape,
        const=many,
        metavar=('H', 'W'),
        help='the old name of --size HxW, which goes with the next minor version',
    )


class _Shape(argparse.Action):
    """``--shape H W`` as ``--size HxW``; ``const`` says whether that takes a list."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option: str | None = None,
    ) -> None:
        text = 'x'.join(values)
        print(f'--shape is --size {text} now', file=sys.stderr)
        try:
            size = image_size(text)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        setattr(namespace, self.dest, [size] if self.const else size)


def key_value(text: str) -> str:
    """``'key=value'`` as it is, for ``type=`` of an argument; MMEngine reads the value later.

    Raises:
        argparse.ArgumentTypeError: If the text says something else.
    """
    if not text.partition('=')[0] or '=' not in text:
        raise argparse.ArgumentTypeError(f'{text!r} is not KEY=VALUE')
    return text


def image_size(text: str) -> tuple[int, int]:
    """``'800x1344'`` to (height, width), for ``type=`` of an argument.

    Raises:
        argparse.ArgumentTypeError: If the text says something else.
    """
    height, _, width = text.partition('x')
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f'{text!r} is not HEIGHTxWIDTH')
    return int(height), int(width)


def positive(text: str) -> int:
    """A whole number from 1, for ``type=`` of an argument.

    Raises:
        argparse.ArgumentTypeError: If the text says something else.
    """
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f'{text!r} is no whole number from 1')
    return int(text)


def number_from_0(text: str) -> int:
    """A whole number from 0, for ``type=`` of an argument.

    Raises:
        argparse.ArgumentTypeError: If the text says something else.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'{text!r} is no whole number from 0')
    return int(text)


def share(text: str) -> float:
    """A number from 0 to 1, as scores and IoUs are, for ``type=`` of an argument.

    Raises:
        argparse.ArgumentTypeError: If the text says something else.
    """
    try:
        number = float(text)
    except ValueError:
        number = float('nan')
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f'{text!r} is no number from 0 to 1')
    return number


def output_folder(text: str) -> Path:
    """A folder that files can be written to, for ``type=`` of an argument; makes nothing.

    So that nobody computes for hours what cannot be kept.

    Raises:
        argparse.ArgumentTypeError: Of :func:`~mmlocalattn.files.check_folder`.
    """
    return _writable(check_folder, text)


def output_file(text: str) -> Path:
    """A file that can be written, for ``type=`` of an argument; makes nothing.

    Raises:
        argparse.ArgumentTypeError: Of :func:`~mmlocalattn.files.check_file`.
    """
    return _writable(check_file, text)


def _writable(check: Callable[[str], None], text: str) -> Path:
    try:
        check(text)
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)


@contextlib.contextmanager
def one_line_errors(note: str = '') -> Iterator[None]:
    """End the program with ``error: ...`` for what a caller can mend.

    Ctrl-C ends it with one line too. So does SIGTERM, which would end it on the spot and leave
    what was half written.

    Args:
        note: A last line, for what the program has done or left.
    """
    try:
        with _terminated_as_interrupted():
            yield
    except (OSError, ModuleNotFoundError, ValueError) as error:
        raise SystemExit('\n'.join(filter(None, [f'error: {error}', note]))) from None
    except KeyboardInterrupt as error:
        number = next((it for it in error.args if isinstance(it, signal.Signals)), signal.SIGINT)
        print(*filter(None, [f'stopped by {number.name}', note]), sep='\n', file=sys.stderr)
        raise SystemExit(128 + number) from None


def _terminated_as_interrupted() -> contextlib.AbstractContextManager:
    """Let SIGTERM raise a ``KeyboardInterrupt`` that holds it, if nobody else handles it."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return contextlib.nullcontext()

    def interrupt(number: signal.Signals) -> None:
        raise KeyboardInterrupt(number)

    return on_signals(interrupt, signal.SIGTERM)


@contextlib.contextmanager
def on_signals(
    handle: Callable[[signal.Signals], object], *numbers: signal.Signals
) -> Iterator[None]:
    """Have a function called at signals, until the block ends.

    Copies of the process, as workers of data loaders, have nothing to say or to clean up: signals
    end them. Threads but the main one get no signals, and change nothing here.

    Args:
        handle: Gets the signal.
        numbers: The signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    owner = os.getpid()

    def handler(number: int, frame: object) -> None:
        if os.getpid() != owner:
            os._exit(128 + number)
        handle(signal.Signals(number))

    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, known in before.items():
            signal.signal(number, known)
