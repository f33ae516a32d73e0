"""Trainings of MMEngine's Runner that take a fraction of a second, for the tests of its hooks."""

from collections.abc import Iterable
from pathlib import Path

import mmengine.config.config
import pytest
import torch
import yapf.yapflib.yapf_api
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmlocalattn.training import apply_resume, build_runner

LENGTH, BATCH = 6, 2
PASS = LENGTH // BATCH  # iterations


@MODELS.register_module()
class ToyModel(BaseModel):
    """Two layers, of which the second is the head.

    Args:
        classes: Outputs of the head.
        broken_at: Iterations, from 0, of which the loss is multiplied.
        factor: By which.
        broken_gradient: Multiply what flows back instead.
    """

    def __init__(
        self,
        classes: int = 2,
        broken_at: Iterable[int] = (),
        factor: float = float('nan'),
        broken_gradient: bool = False,
    ) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, 3), nn.Linear(3, classes)
        self.broken_at, self.factor = set(broken_at), factor
        self.broken_gradient = broken_gradient
        self.iteration = 0

    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'
    ) -> object:
        outputs = self.head(self.body(torch.stack(list(inputs))))
        if mode != 'loss':
            return outputs
        if self.iteration in self.broken_at:
            if self.broken_gradient:
                outputs.register_hook(lambda gradient: gradient * self.factor)
            else:
                outputs = outputs * self.factor
        self.iteration += 1
        return dict(loss_cls=outputs.square().mean(), loss_mask=self.body.weight.square().mean())


@DATASETS.register_module()
class ToyData(Dataset):
    """Pairs of numbers, as images called 0.png to 5.png.

    Args:
        boxes: Of each image.
    """

    def __init__(self, boxes: Iterable = ()) -> None:
        self.metainfo = {'classes': ('a', 'b')}
        self.boxes = torch.tensor([*boxes], dtype=torch.float32).reshape(-1, 4)

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> dict:
        sample = BaseDataElement(metainfo=dict(img_path=f'{index}.png'))
        sample.gt_instances = InstanceData(bboxes=self.boxes)
        return dict(inputs=torch.tensor([1.0, index / LENGTH]), data_samples=sample)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what costs MMEngine more than these trainings: formatting the config."""
    for module in (mmengine.config.config, yapf.yapflib.yapf_api):  # the latter for onedl's
        monkeypatch.setattr(module, 'FormatCode', lambda text, **_: (text, True), raising=False)


class Rates(Hook):
    """Remembers what the groups of the optimizer have at each iteration."""

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.of: dict[int, list[float]] = {}

    def before_train_iter(self, runner: Runner, *args: object, **kwargs: object) -> None:
        groups = runner.optim_wrapper.optimizer.param_groups
        self.of[runner.iter] = [
            group[key] for group in groups for key in ('lr', 'momentum') if key in group
        ] + [group['betas'][0] for group in groups if 'betas' in group]


def toy_config(work_dir: Path, length: int = 2, by_epoch: bool = True, **entries: object) -> Config:
    """A config of so many epochs or iterations, each of which writes a checkpoint."""
    loop = (
        dict(by_epoch=True, max_epochs=length)
        if by_epoch
        else dict(type='IterBasedTrainLoop', max_iters=length, val_interval=10**6)
    )
    cfg = Config(
        dict(
            model=dict(type='ToyModel'),
            work_dir=str(work_dir),
            train_dataloader=dict(
                batch_size=BATCH,
                num_workers=0,
                dataset=dict(type='ToyData'),
                sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler'),
            ),
            train_cfg=loop,
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1)),
            default_hooks=dict(
                checkpoint=dict(
                    type='CheckpointHook', interval=1, by_epoch=by_epoch, max_keep_ckpts=1
                )
            ),
            default_scope='mmengine',
            randomness=dict(seed=0),
            experiment_name=f'{work_dir}',  # MMEngine keeps loggers by their names
        )
    )
    cfg.merge_from_dict(entries)
    return cfg


def train(cfg: Config, resume: bool = False) -> Rates:
    """Train, from the last checkpoint of the work dir if ``resume``."""
    if resume:
        apply_resume(cfg, 'auto')
    runner, rates = build_runner(cfg), Rates()
    runner.register_hook(rates)
    runner.train()
    return rates
