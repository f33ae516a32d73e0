"""What a first look at a data set leaves of it; tests/test_tools/test_misfits.py has the rest."""

import threading
from typing import Any

import pytest
from mmengine.dataset import BaseDataset, Compose, ConcatDataset

from mmlocalattn.training.fit_check import _without_memory


class Remembers:
    """A transform that keeps what it has seen, as a cached mosaic."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, results: dict) -> dict:
        self.seen.append(results['label'])
        return results


class Data(BaseDataset):
    def load_data_list(self) -> list[dict]:
        return [dict(label=7)]


@pytest.mark.parametrize('serialize', [True, False])
def test_transforms_do_not_remember_the_look(serialize: bool) -> None:
    transform = Remembers()
    part = Data(serialize_data=serialize)
    part.pipeline = Compose([transform])
    dataset = ConcatDataset([part])
    copy = _without_memory(dataset)
    assert copy[0]['label'] == 7
    assert transform.seen == []
    name = 'data_bytes' if serialize else 'data_list'
    assert getattr(copy.datasets[0], name) is getattr(part, name)


def test_data_that_cannot_be_copied_is_looked_at_itself() -> None:
    dataset = Data()
    dataset.connection = threading.Lock()
    assert _without_memory(dataset) is dataset
