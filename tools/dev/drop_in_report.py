"""Swap our backbones into every config that mmdet and mmseg ship, and see which models then work.

Each config gets SSViT-T, and a fixed tenth of them other backbones too. An adapted config is built
with a narrow backbone and runs a loss and a prediction on random images; a model that several
configs share, as those of two schedules do, runs once. Results are appended to a file as they come,
so that an interrupted run goes on where it stopped.
"""

import argparse
import copy
import hashlib
import json
import multiprocessing
import os
import signal
import traceback
import warnings
from collections.abc import Iterator, MutableMapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from drop_in_page import introduction, report
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import MODELS, init_default_scope
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmlocalattn.adapt import BACKBONES, CannotAdapt, swap_backbone
from mmlocalattn.training import load_config

_ARCH = dict(embed_dims=(8, 16, 24, 32), depths=(1,) * 4, num_heads=(1, 2, 3, 4))
NARROW = {
    'SSViT': dict(arch=dict(_ARCH, mlp_ratios=(2,) * 4)),
    'SlidePVT': dict(arch=dict(_ARCH, mlp_ratios=(2,) * 4, sr_ratios=(8, 4, 2, 1))),
    'QnAViT': dict(
        arch=dict(
            _ARCH,
            num_heads=(1, 2, 2, 4),
            mlp_ratios=(2,) * 4,
            kernel_sizes=(3,) * 4,
            window_depths=(0, 0, 1, 1),
            window_heads=(1, 2, 3, 4),
            window_sizes=(7, 7, 14, 7),
        )
    ),
    'SASAResNet': dict(
        depth=dict(embed_dims=(32, 48, 64, 96), depths=(1,) * 4, num_heads=(2,) * 4)
    ),
}
EVERYWHERE = 'ssvit_t'
IN_A_TENTH = ('qna_vit_t', 'slide_pvt_t', 'sasa_r26')
SIDES = (128, 256)  # of the random images; the second for models that small ones are too small for
CLASSES = 2  # of the labels of segmentation: few enough for every head
SECONDS = 300  # that one config may take


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--packages', nargs='+', default=['mmdet', 'mmseg'])
    parser.add_argument('--filter', default='', help='only configs whose path contains this')
    parser.add_argument('--processes', type=int, default=os.cpu_count())
    parser.add_argument(
        '--results',
        type=Path,
        default=Path('work_dirs/drop_in.jsonl'),
        help='results so far, continued',
    )
    parser.add_argument('--report', type=Path, help='Markdown file to write')
    return parser.parse_args(argv)


def tasks(packages: Sequence[str], text: str) -> list[tuple[str, str]]:
    """(config, backbone) for all configs whose name contains ``text``."""
    found = []
    for package in packages:
        folder = Path(find_spec(package).origin).parent / '.mim' / 'configs'
        for file in sorted(folder.rglob('*.py')):
            name = f'{package}::{file.relative_to(folder)}'
            if '_base_' in file.parts or 'common' in file.parts or text not in name:
                continue
            found.append((name, EVERYWHERE))
            if hashlib.sha256(name.encode()).digest()[0] < 26:  # a tenth of 256
                found += [(name, other) for other in IN_A_TENTH if other in BACKBONES]
    return found


_seen: MutableMapping[str, tuple[str, str]] = {}
"""Outcome and detail of the models that ran, by their digest."""


def _share(seen: MutableMapping[str, tuple[str, str]]) -> None:
    """Let this process know what the others have run, and not tell what it initialises."""
    global _seen
    _seen = seen
    MMLogger.get_current_instance().setLevel('ERROR')


def try_config(task: tuple[str, str]) -> dict:
    """The result for one config and backbone, in a process of its own pool.

    Returns:
        The task; ``outcome``, one of :data:`OUTCOMES`, with its reason as ``detail``; the type of
        the ``original`` backbone; and a digest of the ``model``. The last two may be empty.
    """
    path, name = task
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    torch.manual_seed(0)
    signal.signal(signal.SIGALRM, _time_is_up)
    signal.alarm(SECONDS)
    result = dict(config=path, backbone=name, outcome='', detail='', original='', model='')
    try:
        result['outcome'], result['detail'] = _outcome(path, name, result)
    finally:
        signal.alarm(0)
    return result


def _time_is_up(*_: object) -> None:
    raise TimeoutError(f'took more than {SECONDS} s')


def _outcome(path: str, name: str, result: dict) -> tuple[str, str]:
    try:
        cfg = load_config(path)
        if 'model' not in cfg:
            return 'refused', 'no model: a config for others to inherit from'
    except Exception as error:
        return 'broken', _last_line(error)
    result['original'] = original_backbone(cfg)
    backbone = BACKBONES[name].name
    try:
        swapped = swap_backbone(cfg, name, **NARROW[backbone])
    except CannotAdapt as error:
        return 'refused', str(error)
    except Exception as error:
        return 'failed', f'{_last_line(error)} ({_place(error)})'
    result['model'] = digest = _digest(swapped)
    if digest not in _seen:
        _seen[digest] = _run_outcome(cfg, swapped)
    return _seen[digest]


def _run_outcome(cfg: Config, swapped: Config) -> tuple[str, str]:
    try:
        run_model(swapped)
    except Exception as error:
        if reason := _breaks_anyway(cfg):
            return 'broken', reason
        return 'failed', f'{_last_line(error)} ({_place(error)})'
    return 'adapted', ''


def original_backbone(cfg: Config) -> str:
    """The type of the backbone of a config without its scope, empty if it has not just one."""
    types = {
        child['type'].rpartition('.')[2]
        for part in _dicts(cfg.model)
        for key, child in part.items()
        if key == 'backbone' and isinstance(child, dict) and isinstance(child.get('type'), str)
    }
    return types.pop() if len(types) == 1 else ''


def _digest(cfg: Config) -> str:
    """Equal for configs whose models do not differ in what is run here."""
    model = copy.deepcopy(cfg.model)
    model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    _make_small(model, SIDES[0])
    text = json.dumps([cfg.default_scope, model], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _last_line(error: Exception) -> str:
    text = ' '.join(f'{type(error).__name__}: {error}'.split())
    return text.replace(f'{Path(torch.__file__).parents[1]}/', '')[:300]


def _place(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f'{Path(frame.filename).name}:{frame.lineno} {frame.name}'


def _breaks_anyway(cfg: Config) -> str:
    """Why the config as it is shipped does not build or run here, or nothing."""
    try:
        run_model(cfg)
    except Exception as error:
        return f'the config as shipped: {_last_line(error)} ({_place(error)})'
    return ''


def _dicts(node: object) -> Iterator[dict]:
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from _dicts(child)


def _make_small(model: dict, side: int) -> None:
    """Images of one side, not thousands of classes (of LVIS, V3Det), and no weights to load."""
    model.pop('pretrained', None)
    for part in _dicts(model):
        if (part.get('init_cfg') or {}).get('type') == 'Pretrained':
            part['init_cfg'] = None
        if part.get('type') == 'MMSyncBN':  # needs several processes
            part['type'] = 'BN'
        if isinstance(part.get('num_classes'), int) and part['num_classes'] > 1000:
            part['num_classes'] = 100
    for part in _dicts(model.get('data_preprocessor') or {}):
        if part.get('size'):
            part['size'] = (side, side)
        part.pop('batch_augments', None)


def run_model(cfg: Config) -> None:
    """Build the model of a config, take the loss of a random batch, and predict.

    Raises:
        ValueError: If the loss is not finite or the number of predictions is wrong.
    """
    for side in SIDES:
        try:
            return _run_model(cfg, side)
        except Exception as error:
            reason = error
    raise reason


def _run_model(cfg: Config, side: int) -> None:
    from mmengine.model import revert_sync_batchnorm

    init_default_scope(cfg.default_scope)
    config = copy.deepcopy(cfg.model)
    config.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    _make_small(config, side)
    model = revert_sync_batchnorm(MODELS.build(config))
    model.init_weights()  # some models have parameters that are not initialised before
    MessageHub.get_current_instance().update_info_dict(dict(iter=0, epoch=0))  # as a runner does
    batch = random_batch(cfg, side, training=True)
    try:
        losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    except NotImplementedError:  # trackers whose parts are trained by configs of their own
        losses = dict(loss=torch.zeros(()))
    loss, _ = model.parse_losses(losses)
    if not torch.isfinite(loss):
        raise ValueError(f'loss is {loss}')
    model.eval()
    batch = random_batch(cfg, side, training=False)
    with torch.no_grad():
        results = model(**model.data_preprocessor(batch, training=False), mode='predict')
    if len(results) != len(batch['inputs']):
        raise ValueError(f'{len(results)} predictions for {len(batch["inputs"])} images')


def random_batch(cfg: Config, side: int, training: bool) -> dict:
    """Random images with random labels, as the data loader of the config's toolbox packs them."""
    if cfg.default_scope == 'mmdet':
        return _detection_batch(cfg, side, training)
    images = [torch.randint(256, (3, side, side), dtype=torch.uint8) for _ in range(2)]
    if cfg.default_scope == 'mmpretrain':
        from mmpretrain.structures import DataSample

        return dict(inputs=images, data_samples=[DataSample().set_gt_label(0) for _ in images])
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(2):
        labels = torch.randint(CLASSES, (1, side, side))
        shape = dict(img_shape=(side, side), ori_shape=(side, side), pad_shape=(side, side))
        samples.append(
            SegDataSample(
                gt_sem_seg=PixelData(data=labels),
                gt_edge_map=PixelData(data=labels),
                gt_depth_map=PixelData(data=torch.rand(1, side, side)),
                metainfo=shape | dict(flip=False),
            )
        )
    return dict(inputs=images, data_samples=samples)


def _detection_batch(cfg: Config, side: int, training: bool) -> dict:
    from mmdet.testing import demo_mm_inputs, demo_track_inputs
    from mmengine.structures import InstanceData

    preprocessor = cfg.model.get('data_preprocessor') or {}
    trains_on_images = training and preprocessor.get('use_det_processor')
    if 'Track' in str(preprocessor.get('type')) and not trains_on_images:
        return demo_track_inputs(
            batch_size=1, num_frames=2, key_frames_inds=[0], image_shapes=(3, side, side),
            num_classes=1, with_mask=True,
        )  # fmt: skip
    with_mask = 'mask' in repr(cfg.model).lower()  # those without do not pad masks
    batch = demo_mm_inputs(
        2, [(3, side, side)] * 2, [3, 3], num_classes=2, with_mask=with_mask, with_semantic=True
    )
    for sample in batch['data_samples']:
        sample.gt_instances.labels.zero_()  # the class that every head has
        sample.proposals = InstanceData(bboxes=sample.gt_instances.bboxes)  # for Fast R-CNN
    if training and 'semi_train_cfg' in cfg.model:
        branches = ('sup', 'unsup_teacher', 'unsup_student')
        for sample in batch['data_samples']:
            sample.set_metainfo(dict(homography_matrix=torch.eye(3).numpy()))
        return {key: dict.fromkeys(branches, value) for key, value in batch.items()}
    return batch


def ran(results: dict[tuple[str, str], dict]) -> dict[str, tuple[str, str]]:
    """Outcome and detail of the models that ran, by their digest."""
    return {r['model']: (r['outcome'], r['detail']) for r in results.values() if r['model']}


def read_results(path: Path) -> dict[tuple[str, str], dict]:
    """Results so far by (config, backbone). A last line that was cut off does not count."""
    results = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            continue
        results[result['config'], result['backbone']] = result
    return results


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    wanted = tasks(args.packages, args.filter)
    if not wanted:
        raise SystemExit(f'error: no config of {args.packages} contains {args.filter!r}')
    results = read_results(args.results)
    missing = [task for task in wanted if task not in results]
    args.results.parent.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn())
    context = multiprocessing.get_context('spawn')
    with (
        Progress(*columns, TimeRemainingColumn()) as progress,
        context.Manager() as manager,
        context.Pool(args.processes, _share, (manager.dict(ran(results)),), 50) as pool,
        args.results.open('a') as file,
    ):
        if results and not args.results.read_text().endswith('\n'):
            file.write('\n')  # behind a line that was cut off
        bar = progress.add_task('configs', total=len(wanted), completed=len(wanted) - len(missing))
        for result in pool.imap_unordered(try_config, missing):
            results[result['config'], result['backbone']] = result
            file.write(json.dumps(result) + '\n')
            file.flush()
            progress.advance(bar)
    text = report([results[task] for task in wanted])
    print(text)
    if args.report:
        args.report.write_text(introduction() + text)


if __name__ == '__main__':
    main()
