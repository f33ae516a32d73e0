"""What is known about an exported file, because the file itself was run on images.

The file and the model of its config predict for the same images through the config's own test
pipeline, data preprocessor and evaluator. How far they agree, how good both are and how long they
take is written into the file; above stated limits there is none.
"""

import contextlib
import copy
import hashlib
import io
import json
import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope

from mmlocalattn import __version__
from mmlocalattn.export.agreement import (
    LEAST_SCORE,
    Agreement,
    compare,
    counted,
    ties_in_words,
)
from mmlocalattn.export.file_models import FileModel, file_model_config, pad_to, padded_size
from mmlocalattn.export.pipeline import leave_raw, limit_size, sizes_after
from mmlocalattn.export.run_file import ExportedFile, load_file
from mmlocalattn.export.verify_data import LARGEST_SAMPLE, VerifyData, open_data
from mmlocalattn.training import build_errors, load_weights, preprocessor_of

LIMITED = ('bbox_mAP', 'segm_mAP', 'pascal_voc/mAP', 'mIoU', 'top1')
"""The metrics whose fall is limited, by the ends of their names."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class Limits:
    """Beyond which there is no file.

    Attributes:
        max_ap_drop: By which a metric may fall: AP, mIoU or top-1, as a share (0.001 is 0.1 %).
        min_matched: Least share of boxes with a partner, or of pixels or images of equal label.
        min_iou: Least overlap of a box with its partner.
    """

    max_ap_drop: float = 0.001
    min_matched: float = 0.995
    min_iou: float = 0.9


INT8_LIMITS = Limits(max_ap_drop=0.01, min_matched=0.9, min_iou=0.5)


def certify(
    path: Path,
    cfg: Config,
    checkpoint: str | Path,
    source: str = 'sample',
    limits: Limits = Limits(),
    number: int = 100,
    report: Report = lambda line: None,
    name: Path | None = None,
) -> dict:
    """Run a file and its model on images, and compare them.

    Args:
        path: Of the exported file.
        cfg: That it was exported with.
        checkpoint: With the weights that it has.
        source: Of the images, as for :func:`~mmlocalattn.export.verify_data.open_data`.
        limits: That must hold.
        number: Of images, at most; 0 for all.
        report: Is called with a line from time to time.
        name: Of the file in errors, if it is to get another one.

    Returns:
        The certificate: numbers and words that go into the metadata of the file.

    Raises:
        FileNotFoundError, ModuleNotFoundError: If something that is read, or what runs the file,
            is missing.
        ValueError: If a limit does not hold; says which.
    """
    init_default_scope(cfg.default_scope)
    hashes = _hashes(cfg, checkpoint)
    loaded = load_file(path)
    cfg = _fitting(cfg, loaded, source)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        data = raw = stack.enter_context(open_data(cfg, source, number))
        raw_cfg = copy.deepcopy(cfg)
        if loaded.takes_pixels:
            leave_raw(raw_cfg)
            raw = stack.enter_context(open_data(raw_cfg, source, number))
        model, file = _model(cfg, checkpoint), _file_model(raw_cfg, path)
        file.file.path = name or path
        run = _Run(cfg, data, raw, model, file, limits.min_iou)
        run.all_images(report)
        certificate = {
            'data': data.source,
            'images': len(data.items),
            'sizes': _span(run.sizes),
            'metrics': run.metrics(),
            'matched': {
                'of': run.agreement.what,
                'number': run.agreement.total,
                'share': run.agreement.share,
                'ties': run.agreement.ties,
                'largest_difference': run.agreement.largest,
            },
            'latency_ms': {'model': _latency(run.seconds), 'file': _latency(file.seconds)},
            'threads': torch.get_num_threads(),
            'cpu': cpu_name(),
            'sha256': hashes,
            'versions': _versions(cfg.default_scope, path),
            'limits': asdict(limits),
        }
    check_limits(certificate, limits, name or path)
    return certificate


def _fitting(cfg: Config, file: ExportedFile, source: str) -> Config:
    """The config, with a smaller size for drawn images where its own is too large for the file."""
    if source != 'sample' or cfg.default_scope == 'mmpretrain' or file.takes_pixels:
        return cfg
    _, most = file.size_range
    sizes = sizes_after(cfg) or [(LARGEST_SAMPLE, LARGEST_SAMPLE)]
    if all(side <= limit for size in sizes for side, limit in zip(size, most)):
        return cfg
    cfg = copy.deepcopy(cfg)
    limit_size(cfg, min(most))
    return cfg


def _model(cfg: Config, checkpoint: str | Path) -> Any:
    """The model in Python, with its data preprocessor."""
    node = dict(copy.deepcopy(cfg.model), data_preprocessor=preprocessor_of(cfg) or None)
    with build_errors(cfg.filename):
        model: Any = revert_sync_batchnorm(MODELS.build(node)).eval()
    load_weights(model, checkpoint)
    return model


def _file_model(cfg: Config, path: Path) -> FileModel:
    with build_errors(cfg.filename):
        return MODELS.build(file_model_config(cfg, str(path))).eval()


class _Run:
    """Both models on all images."""

    def __init__(
        self,
        cfg: Config,
        data: VerifyData,
        raw: VerifyData,
        model: Any,
        file: FileModel,
        min_iou: float,
    ) -> None:
        self.data = data
        self.raw = raw
        self.model = model
        self.file = file
        self.min_iou = min_iou
        self.scope = cfg.default_scope
        self.agreement = Agreement(counted(self.scope))
        self.seconds: list[float] = []
        self.sizes: list[tuple[int, int]] = []
        self.evaluators = [_evaluator(data), _evaluator(data)] if data.evaluator else []
        slides = (cfg.model.get('test_cfg') or {}).get('mode') == 'slide'
        self.is_padded = self.scope != 'mmpretrain' and not slides

    def all_images(self, report: Report) -> None:
        """Predict with both, image by image; says where it is every ten seconds."""
        said = time.monotonic()
        for index in range(len(self.data.items)):
            self._image(index)
            if time.monotonic() > said + 10:
                said = time.monotonic()
                report(f'verified on {index + 1} of {len(self.data.items)} images')

    def _image(self, index: int) -> None:
        batch = self._prepare(pseudo_collate([self.data.items[index]]))
        for_file = batch
        if self.raw is not self.data:
            item = pseudo_collate([self.raw.items[index]])
            for_file = self.file.data_preprocessor(item, False)
        self.sizes.append(tuple(batch['inputs'].shape[2:]))
        began = time.perf_counter()
        (expected,) = self.model(**copy.deepcopy(batch), mode='predict')
        self.seconds.append(time.perf_counter() - began)
        (actual,) = self.file(**copy.deepcopy(for_file), mode='predict')
        same = self._with_padding(batch) or expected
        compare(self.agreement, same.to_dict(), actual.to_dict(), self.min_iou)
        for evaluator, sample in zip(self.evaluators, (expected, actual)):
            evaluator.process(data_samples=[sample], data_batch=batch)

    def _with_padding(self, batch: dict) -> Any:
        """What a detector finds where padding counts as image, as it does for the file.

        None where that is no other image. It changes which boxes are clipped where, before they
        are suppressed and refined; what it costs is seen in the metrics.
        """
        (sample,) = batch['data_samples']
        shape, size = sample.metainfo.get('img_shape'), tuple(batch['inputs'].shape[2:])
        if self.scope != 'mmdet' or tuple(shape[:2]) == size:
            return None
        batch = copy.deepcopy(batch)
        # Masks are pasted into the whole of it, too: mmdet fails where a box has no part of it.
        whole = tuple(math.ceil(a / b) for a, b in zip(size, sample.scale_factor[::-1]))
        batch['data_samples'][0].set_metainfo(dict(img_shape=size, ori_shape=whole))
        (found,) = self.model(**batch, mode='predict')
        width, height = (a / b for a, b in zip(shape[1::-1], found.scale_factor))
        boxes = found.pred_instances.bboxes
        found.pred_instances.bboxes = boxes.clamp(
            boxes.new_zeros(4), boxes.new_tensor([width, height, width, height])
        )
        if 'masks' in found.pred_instances:
            rows, columns = sample.ori_shape[:2]
            found.pred_instances.masks = found.pred_instances.masks[:, :rows, :columns]
        return found

    def _prepare(self, data: Any) -> dict:
        """A batch of one image, as large as the file takes it, for both models."""
        batch = self.model.data_preprocessor(data, False)
        inputs, (sample,) = batch['inputs'], batch['data_samples']
        if not self.is_padded:
            return batch
        size = padded_size(self.file.file, *inputs.shape[2:])
        if size != tuple(inputs.shape[2:]):
            more_h, more_w = (a - b for a, b in zip(size, inputs.shape[2:]))
            batch['inputs'] = pad_to(inputs, size)
            for key in ('padding_size', 'img_padding_size'):  # mmseg's: left, right, top, bottom
                left, right, top, bottom = sample.get(key, (0, 0, 0, 0))
                if key in sample or key == 'padding_size':
                    grown = [left, right + more_w, top, bottom + more_h]
                    sample.set_metainfo({key: grown})
            sample.set_metainfo(dict(pad_shape=size, batch_input_shape=size))
        return batch

    def metrics(self) -> dict[str, dict[str, float | None]]:
        """Of the model and of the file, without intervals and without what is no number."""
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its own tables
            results = [e.evaluate(len(self.data.items)) for e in self.evaluators]
        names = dict.fromkeys(key for result in results for key in result)
        return {
            name: {
                kind: _number(result.get(name)) for kind, result in zip(('model', 'file'), results)
            }
            for name in names
            if name.endswith(LIMITED)
        }


def _number(value: Any) -> float | None:
    """A metric, None where there was nothing to measure: -1 or NaN."""
    if value is None:
        return None
    number = float(value)
    return number if number >= 0 else None


def _evaluator(data: VerifyData) -> Evaluator:
    entry = copy.deepcopy(data.evaluator)
    if isinstance(entry, Mapping) and 'metrics' in entry:
        entry = entry['metrics']
    evaluator = Evaluator(entry)
    evaluator.dataset_meta = dict(data.metainfo)
    for metric in evaluator.metrics:
        if data.image_ids is not None and hasattr(metric, 'img_ids'):
            metric.img_ids = list(data.image_ids)  # else images that were left out count as missed
    return evaluator


def check_limits(certificate: Mapping, limits: Limits, path: Path) -> None:
    """Look for what does not hold.

    Raises:
        ValueError: If there is something.
    """
    faults = []
    for name, values in certificate['metrics'].items():
        before, after = values['model'], values['file']
        scale = 100 if name.endswith(('mIoU', 'top1')) else 1
        if before is not None and before / scale - (after or 0) / scale > limits.max_ap_drop:
            faults.append(
                f'{name} falls from {before:.3f} to {after or 0:.3f}, by more than --max-ap-drop '
                f'{limits.max_ap_drop:g}'
            )
    matched = certificate['matched']
    if not matched['number']:
        raise ValueError(
            f'{path.name} was not verified: the model finds nothing with a score from '
            f'{LEAST_SCORE} in {certificate["data"]}; name images that it knows, --verify config '
            'or --verify FOLDER'
        )
    if matched['share'] < limits.min_matched:
        faults.append(
            f'of {matched["number"]} {matched["of"]} {100 * matched["share"]:.2f} % agree, less '
            f'than --min-matched {limits.min_matched:g}'
            + ties_in_words(matched.get('ties', 0), matched['number'])
        )
    if faults:
        raise ValueError(f'there is no {path.name}, the file differs: {"; ".join(faults)}')


def _latency(seconds: list[float]) -> dict[str, float]:
    """Median and 95th percentile in milliseconds, without the first run, which warms up."""
    times = sorted(1000 * second for second in seconds[1:] or seconds)
    return {
        'median': round(median(times), 2),
        'p95': round(times[min(len(times) - 1, int(0.95 * len(times)))], 2),
    }


def _span(sizes: list[tuple[int, int]]) -> dict[str, Any]:
    heights, widths = zip(*sizes)
    return {
        'different': len(set(sizes)),
        'height': [min(heights), max(heights)],
        'width': [min(widths), max(widths)],
    }


def cpu_name() -> str:
    """The model of this machine's processor."""
    with contextlib.suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def _hashes(cfg: Config, checkpoint: str | Path) -> dict[str, str]:
    """Of the config as it was used, of its file, and of the checkpoint."""
    text = json.dumps(cfg.to_dict(), sort_keys=True, default=str)
    hashes = {'config': hashlib.sha256(text.encode()).hexdigest()}
    for name, path in (('config_file', cfg.filename), ('checkpoint', checkpoint)):
        if path and Path(path).is_file():
            with open(path, 'rb') as file:
                digest = hashlib.sha256()
                for block in iter(lambda: file.read(2**20), b''):
                    digest.update(block)
                hashes[name] = digest.hexdigest()
    return hashes


def _versions(scope: str, path: Path) -> dict[str, str]:
    runtime = {'.onnx': 'onnxruntime', '.xml': 'openvino'}.get(path.suffix)
    versions = {'mmlocalattn': __version__, 'python': platform.python_version()}
    versions.update(torch=torch.__version__)
    for module in ('mmengine', 'mmcv', scope, runtime):
        if module is not None:
            versions[module] = _version_of(module)
    return versions


def _version_of(module: str) -> str:
    imported = __import__(module)
    if hasattr(imported, '__version__'):
        return str(imported.__version__)
    with contextlib.suppress(PackageNotFoundError):
        return version(module)
    return 'unknown'
