"""What torch before 2.4 reads checkpoints with, on any torch."""

import os
import pickle
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch

from mmlocalattn.training import safe_pickle

CONTENT = {
    'weights': OrderedDict(weight=torch.arange(6.0).view(2, 3), half=torch.ones(2).half()),
    'parameter': torch.nn.Parameter(torch.zeros(3)),
    'shared': [torch.arange(4)[1:]] * 2,
    'milestones': Counter({8: 1}),
    'plain': (1, 2.5, 'text', None, True, {1, 2}, torch.Size([2]), torch.float16),
}


@pytest.mark.parametrize('zip_format', [True, False], ids=['zip', 'legacy'])
def test_reads_what_checkpoints_hold(tmp_path: Path, zip_format: bool) -> None:
    path = tmp_path / 'a.pth'
    torch.save(CONTENT, path, _use_new_zipfile_serialization=zip_format)
    loaded = torch.load(path, pickle_module=safe_pickle.only({}), weights_only=False)
    assert loaded.keys() == CONTENT.keys()
    torch.testing.assert_close(loaded['weights'], CONTENT['weights'])
    torch.testing.assert_close(loaded['shared'], CONTENT['shared'])
    assert isinstance(loaded['parameter'], torch.nn.Parameter)
    assert loaded['milestones'] == CONTENT['milestones']
    assert loaded['plain'] == CONTENT['plain']


@pytest.mark.parametrize('content', [os.system, Path('a'), eval], ids=['system', 'path', 'eval'])
def test_refuses_the_rest(tmp_path: Path, content: object) -> None:
    path = tmp_path / 'a.pth'
    torch.save({'weights': content}, path)
    with pytest.raises(pickle.UnpicklingError, match=r'Unsupported global: GLOBAL \w+\.'):
        torch.load(path, pickle_module=safe_pickle.only({}), weights_only=False)


def test_more_can_be_allowed(tmp_path: Path) -> None:
    path = tmp_path / 'a.pth'
    torch.save({'key': Path}, path)
    name = f'{Path.__module__}.{Path.__qualname__}'
    module = safe_pickle.only({name: Path})
    assert torch.load(path, pickle_module=module, weights_only=False) == {'key': Path}
