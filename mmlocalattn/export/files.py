"""Models as files of other runtimes: the formats, and that they give what the model gives.

A file is written under a temporary name and gets its own only after its outputs agreed with the
model's, so there is no file that was not verified.
"""

import contextlib
import importlib
import importlib.util
import json
import math
import operator
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch._meta_registrations
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

import mmlocalattn.ops  # noqa: F401  registers the operators that files hold
from mmlocalattn.export.formats import BESIDE, SUFFIXES
from mmlocalattn.export.metadata import save_archive, write_metadata
from mmlocalattn.export.modules import Exportable, FeatureMaps, exportable
from mmlocalattn.export.openvino_ir import check_packages, write_ir
from mmlocalattn.export.run_file import load_file
from mmlocalattn.files import whole_file

__all__ = [
    'FORMATS',
    'TOLERANCE',
    'Exportable',
    'FeatureMaps',
    'Run',
    'Size',
    'export',
    'exportable',
    'save_onnx',
    'save_openvino',
    'save_pt2',
    'save_torchscript',
    'verify',
]

TOLERANCE = 1e-4
"""Largest error of an output, relative to its largest value."""

PATIENCE = 10.0
"""Seconds of silence in :func:`export`, at most."""

Size = tuple[int, int]
Run = Callable[[Tensor], Sequence[Tensor]]


def save_pt2(model: nn.Module, path: Path, sizes: Sequence[Size], meta: Mapping) -> Run:
    """Write an exported program, the operators of this package in it; return what runs it.

    Args:
        model: Takes an image (B, C, H, W), returns a tuple.
        path: File to write.
        sizes: (height, width) of images; the file takes those between the smallest and the largest.
        meta: Stored beside the program as ``mmlocalattn.json``.
    """
    program = _trace(model, sizes)
    save_archive(program, path, meta)
    return torch.export.load(path).module()


def save_onnx(model: nn.Module, path: Path, sizes: Sequence[Size], meta: Mapping) -> Run:
    """Write an ONNX file of plain ONNX operators; return what runs it in onnxruntime.

    Args:
        model: Takes an image (B, C, H, W), returns a tuple.
        path: File to write.
        sizes: As for :func:`save_pt2`.
        meta: Stored in the metadata under ``mmlocalattn``.

    Raises:
        ModuleNotFoundError: If a package that this needs is not installed.
    """
    _check_installed('onnx', 'onnxruntime', 'onnxscript')
    import onnxruntime

    from mmlocalattn.export import onnx_operators

    for_onnx = getattr(model, 'for_onnx', contextlib.nullcontext)
    with torch.no_grad(), for_onnx():
        program = _trace(model, sizes)
        _name_indexing(program)
        onnx_program = onnx_operators.convert(program, getattr(model, 'output_names', None))
    onnx_program.model.metadata_props['mmlocalattn'] = json.dumps(meta)
    onnx_program.save(path)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda image: [
        torch.from_numpy(output) for output in session.run(None, {'image': image.numpy()})
    ]


def save_openvino(model: nn.Module, path: Path, sizes: Sequence[Size], meta: Mapping) -> Run:
    """Write an OpenVINO IR of the ONNX file; return what runs it on the CPU.

    Args:
        model: Takes an image (B, C, H, W), returns a tuple.
        path: File to write, ``.xml``; the weights go into a ``.bin`` beside it, and the ONNX file
            lies there too.
        sizes: As for :func:`save_pt2`.
        meta: Stored as runtime information under ``mmlocalattn``.

    Raises:
        ModuleNotFoundError: If a package that this needs is not installed.
    """
    check_packages('onnx', 'onnxruntime', 'onnxscript', 'openvino')
    save_onnx(model, path.with_suffix('.onnx'), sizes, meta)
    write_ir(path.with_suffix('.onnx'), path, meta)
    file = load_file(path)
    return lambda image: list(file(image).values())


def save_torchscript(model: nn.Module, path: Path, sizes: Sequence[Size], meta: Mapping) -> Run:
    """Write a trace of the model, the operators of this package in it; return what runs it.

    Args:
        model: Takes an image (B, C, H, W), returns a tuple.
        path: File to write.
        sizes: One (height, width): a trace keeps the windows that this size has, and the file
            refuses images of another.
        meta: Stored in the file as ``mmlocalattn.json``.

    Raises:
        ValueError: If there is more than one size.
    """
    if len(sizes) != 1:
        raise ValueError(f'a TorchScript file takes images of one size, got {sizes=}')
    guarded = _OfOneSize(model, *sizes[0])
    with torch.no_grad():
        traced = torch.jit.trace(guarded, _random_images(model, 1, sizes[0]), check_trace=False)
    save_archive(traced, path, meta)
    return torch.jit.load(path)


FORMATS = {
    name: (save, SUFFIXES[name])
    for name, save in dict(
        onnx=save_onnx, openvino=save_openvino, torchscript=save_torchscript, pt2=save_pt2
    ).items()
}
"""How each format is written, and the ending of its files."""


def export(
    model: nn.Module,
    path: Path,
    file_format: str,
    sizes: Sequence[Size],
    meta: Mapping,
    report: Callable[[str], None] = lambda line: None,
    finish: Callable[[Path], Mapping] | None = None,
) -> list[float]:
    """Write a file that gives what the model gives.

    Args:
        model: Of :func:`exportable`.
        path: File to write.
        file_format: Key of :data:`FORMATS`.
        sizes: (height, width) of images on which the file is verified, with batches of 1 and 2.
        meta: Stored in the file.
        report: Is called with a line about each step; a model takes seconds or minutes.
        finish: Is called with the file, before it has its name. May change it, and gives what is
            added to ``meta``, as :func:`~mmlocalattn.export.certificate.certify` does.

    Returns:
        The largest error at each size, relative to the largest value of the output.

    Raises:
        ValueError: If the file's outputs differ from the model's, or of ``finish``; then there is
            no file.
    """
    save, _ = FORMATS[file_format]
    if file_format != 'torchscript' and not _traces_sizes():
        raise ValueError(
            f'{file_format} files need torch 2.8 or newer, this is torch {torch.__version__}; '
            'torchscript does not'
        )
    errors = []
    with whole_file(path, *BESIDE.get(file_format, ())) as partial:
        with _said(f'writing {file_format}', report), _floor_division_without_branch():
            run = save(model, partial, sizes, meta)
        for index, size in enumerate(sizes):
            place = f'{size[0]} x {size[1]}'
            with _said(f'{place}: comparing with the model', report):
                errors.append(verify(model, run, size, 1 + index % 2))
            report(f'{place}: differs by {errors[-1]:.1e} of the largest value')
        if finish is not None:
            added = finish(partial)
            write_metadata(partial, {**meta, **added})
        if file_format == 'openvino':
            partial.with_suffix('.onnx').unlink()
    return errors


def verify(model: nn.Module, run: Run, size: Size, batch: int) -> float:
    """Compare a file with the model on random images.

    Returns:
        The largest error of an output, relative to its largest value.

    Raises:
        ValueError: If the file does not run on the size, or the error is above :data:`TOLERANCE`.
    """
    image = _random_images(model, batch, size)
    where = f'on {batch} image(s) of {size[0]} x {size[1]}'
    with torch.no_grad():
        expected = model(image)
        try:
            actual = run(image)
        except Exception as error:  # each runtime has its own
            reason = str(error).strip().partition('\n')[0]
            raise ValueError(
                f'the exported file does not run {where} ({reason}): the course of the model '
                f'depends on the size; export one file per size'
            ) from error
    shapes = [[tuple(output.shape) for output in outputs] for outputs in (actual, expected)]
    if shapes[0] != shapes[1]:
        raise ValueError(f'{where} the exported file gives {shapes[0]}, the model {shapes[1]}')
    compare = getattr(model, 'difference', Exportable().difference)
    worst = compare(actual, expected)
    if not worst <= TOLERANCE:  # NaN too
        how = f'by {worst:.1e} of the largest value, more than {TOLERANCE:.0e}'
        if math.isinf(worst):
            how = 'in more than one of twenty detections'
        raise ValueError(
            f'{where} the exported file differs from the model {how}'
            + getattr(model, 'doubt', Exportable().doubt)(expected)
        )
    return worst


@contextlib.contextmanager
def _said(step: str, report: Callable[[str], None]) -> Iterator[None]:
    """Report a step when it begins, and how long it has been going on every :data:`PATIENCE`."""
    is_over = threading.Event()
    begin = time.monotonic()

    def remind() -> None:
        while not is_over.wait(PATIENCE):
            report(f'{step}: {time.monotonic() - begin:.0f} s')

    report(step)
    reminder = threading.Thread(target=remind, daemon=True)
    reminder.start()
    try:
        yield
    finally:
        is_over.set()
        reminder.join()


def _random_images(model: nn.Module, number: int, size: Size) -> Tensor:
    return torch.randn(number, getattr(model, 'in_channels', 3), *size)


def _traces_sizes() -> bool:
    """Whether this torch can be asked for a graph of a range of sizes."""
    return hasattr(_symbolic_config(), 'backed_size_oblivious')


def _symbolic_config() -> Any:
    """PyTorch's settings for sizes that are symbols; torch 2.1 has none."""
    name = 'torch.fx.experimental._config'
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def _trace(model: nn.Module, sizes: Sequence[Size]) -> torch.export.ExportedProgram:
    """The model for any batch, and for heights and widths between the smallest and the largest."""
    dims: dict[int, torch.export.Dim] = {0: torch.export.Dim('batch')}
    for index, name in enumerate(('height', 'width')):
        sides = [size[index] for size in sizes]
        if len(set(sides)) > 1:
            dims[index + 2] = torch.export.Dim(name, min=min(sides), max=max(sides))
    # Two images, because a batch of one would be taken for a constant; the largest size, because
    # there the fewest windows are shrunk.
    image = _random_images(model, 2, max(sizes, key=min))
    try:
        # Sizes that the graph may be told are not 1 or equal would become conditions of the file.
        oblivious = _symbolic_config().patch(backed_size_oblivious=True)
        with torch.no_grad(), oblivious:
            return torch.export.export(
                model,
                (image,),
                dynamic_shapes={'image': dims},
                strict=len(dims) > 1,  # else a third of the time; symbols of sizes are no ints then
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except (TorchDynamoException, AssertionError) as error:  # the latter where ranges are solved
        if len(dims) == 1:
            raise
        reason = str(error).strip().partition('\n')[0]
        raise ValueError(
            f'the model cannot be exported for a range of sizes, because its course depends on the '
            f'size ({reason}): export one file per size, here --size {sizes[0][0]}x{sizes[0][1]}'
        ) from error


def _name_indexing(program: torch.export.ExportedProgram) -> None:
    """Say the order in ``torch.meshgrid``, without which PyTorch 2.11 cannot decompose it."""
    for node in program.graph.find_nodes(
        op='call_function', target=torch.ops.aten.meshgrid.default
    ):
        node.target = torch.ops.aten.meshgrid.indexing
        node.kwargs = {'indexing': 'ij'}


@contextlib.contextmanager
def _floor_division_without_branch() -> Iterator[None]:
    """Let PyTorch compute the sides of pooled maps by ``//``.

    This replaces a private function, ``torch._meta_registrations.div_rtn``, for which PyTorch 2.11
    and 2.13 have no public way. The original branches on whether the division leaves a rest, so a
    graph that was traced with odd sides would serve maps of odd sides alone. Of positive numbers
    the results are the same.
    """
    original = torch._meta_registrations.div_rtn
    torch._meta_registrations.div_rtn = operator.floordiv
    try:
        yield
    finally:
        torch._meta_registrations.div_rtn = original


def _check_installed(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f'ONNX files need {", ".join(missing)}: pip install {" ".join(missing)}'
        )


class _OfOneSize(nn.Module):
    """Refuses images of another size, also in a trace."""

    def __init__(self, model: nn.Module, height: int, width: int) -> None:
        super().__init__()
        self.model = model
        self.check = torch.jit.script(_SizeCheck(height, width))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.model(self.check(image))


class _SizeCheck(nn.Module):
    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height = height
        self.width = width

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[2] != self.height or image.shape[3] != self.width:
            raise RuntimeError(
                f'this file takes images of {self.height} x {self.width}, '
                f'got {image.shape[2]} x {image.shape[3]}'
            )
        return image
