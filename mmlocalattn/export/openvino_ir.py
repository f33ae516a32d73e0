"""OpenVINO's files: an IR made of an ONNX file, and one with 8-bit integers."""

import importlib.util
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


def check_packages(*packages: str) -> None:
    """Look for packages.

    Raises:
        ModuleNotFoundError: If one is missing; says how to install it.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f'OpenVINO files need {", ".join(missing)}: pip install {" ".join(missing)}'
        )


def write_ir(onnx_file: Path, path: Path, meta: Mapping) -> None:
    """Convert an ONNX file.

    Args:
        onnx_file: To convert.
        path: Of the ``.xml`` file to write; the weights go into a ``.bin`` beside it.
        meta: Stored as runtime information under ``mmlocalattn``.
    """
    import openvino

    _save(openvino.Core().read_model(onnx_file), path, meta)


def quantize(path: Path, images: Iterable[Tensor], number: int, meta: Mapping) -> None:
    """Replace an IR by one that computes in 8-bit integers where that is quicker.

    Args:
        path: Of the ``.xml`` file.
        images: That it takes, from which the ranges of its activations are seen.
        number: How many of them.
        meta: As for :func:`write_ir`.

    Raises:
        ModuleNotFoundError: If nncf is not installed.
    """
    check_packages('nncf')
    os.environ.setdefault('NNCF_CI', '1')  # else it tells its makers over the network
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    model = openvino.Core().read_model(path)
    data = nncf.Dataset(images, lambda image: image.numpy())
    small = nncf.quantize(model, data, subset_size=number)
    _save(small, path, meta)


def _save(model: Any, path: Path, meta: Mapping) -> None:
    import openvino

    model.set_rt_info(json.dumps(meta), 'mmlocalattn')
    # Under another name first: a model that was read has its weights in the old file, as memory.
    new = path.with_name(f'{path.stem}.new.xml')
    openvino.save_model(model, new, compress_to_fp16=False)
    new.with_suffix('.bin').replace(path.with_suffix('.bin'))
    new.replace(path)
