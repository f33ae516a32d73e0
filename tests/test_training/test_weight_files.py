"""What is known about weights of a training before its model is built."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import checkpoint

from mmlocalattn.training import save_checkpoint
from mmlocalattn.training.weight_files import check_weight_files


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def check(**entries: object) -> None:
    model = dict(type='Toy', backbone=entries.pop('backbone', {}))
    check_weight_files(Config(dict(model=model, **entries), filename=__file__))


def write_checkpoint() -> None:
    state = {'body.weight': torch.ones(1), 'head.weight': torch.ones(1)}
    save_checkpoint(dict(state_dict=state), Path('a.pth'))


def test_files_are_read_before_a_model_is_built() -> None:
    write_checkpoint()
    Path('text.pth').write_text('hello')

    pretrained = dict(type='Pretrained', checkpoint='a.pth')
    check(load_from='a.pth')
    check(backbone=dict(init_cfg=[dict(type='Normal', layer='Conv2d'), pretrained]))
    check(backbone=dict(init_cfg={**pretrained, 'prefix': 'body.'}))
    with pytest.raises(FileNotFoundError, match=r"load_from of .*py: 'no\.pth' does not exist"):
        check(load_from='no.pth')
    with pytest.raises(FileNotFoundError, match=r"pretrained of .*py: 'no\.pth' does not exist"):
        check(backbone=dict(pretrained='no.pth'))
    with pytest.raises(FileNotFoundError, match=r'init_cfg.checkpoint of .*py: .no.pth. does not'):
        check(backbone=dict(init_cfg={**pretrained, 'checkpoint': 'no.pth'}))
    with pytest.raises(ValueError, match=r"'text\.pth' is no checkpoint: torch\.save has not"):
        check(load_from='text.pth')
    message = r"'a.pth' has no weight with prefix='backbone.'; its names begin with body, head"
    with pytest.raises(ValueError, match=message):
        check(backbone=dict(init_cfg={**pretrained, 'prefix': 'backbone.'}))


def test_weights_of_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are downloaded at once; without network a line says what to do."""
    asked = []

    def load_url(address: str, **options: object) -> dict:
        asked.append(address)
        if 'example' in address:
            raise URLError(OSError(-2, 'Name or service not known'))
        return {}

    monkeypatch.setattr(checkpoint, 'load_url', load_url)
    address = 'https://example.org/a.pth'
    pretrained = dict(type='Pretrained', checkpoint=address)
    check(load_from='https://weights.org/a.pth', backbone=dict(pretrained='torchvision://resnet50'))
    assert asked[0] == 'https://weights.org/a.pth'
    assert asked[1].startswith('https://download.pytorch.org/models/resnet50')
    with pytest.raises(ValueError, match='cannot be loaded') as stopped:
        check(backbone=dict(layers=[dict(init_cfg=pretrained)]))
    assert str(stopped.value) == (
        f'model.backbone.layers.0.init_cfg of {__file__}: {address} cannot be loaded ([Errno -2] '
        'Name or service not known). With --cfg-options model.backbone.layers.0.init_cfg=None it '
        'starts from random weights; a file that you downloaded elsewhere is found in '
        f'{torch.hub.get_dir()}/checkpoints'
    )
    with pytest.raises(ValueError, match=r'^model.backbone.pretrained of .*vision://no cannot'):
        check(backbone=dict(pretrained='torchvision://no'))
    monkeypatch.setenv('RANK', '1')
    check(load_from=address)  # the first process downloads
    assert asked.count(address) == 1
