"""model-index.yml and the metafiles beside the configs, which mim reads."""

import re
from pathlib import Path

import pytest
from modelindex.load_model_index import load
from modelindex.models.Model import Model
from test_configs import PUBLISHED, parse

ROOT = Path(__file__).parents[1]
INDEX = load(str(ROOT / 'model-index.yml'))
INDEX.build_models_with_collections()
MODELS = {model.name: model for model in INDEX.models}


def header(file: Path) -> str:
    """The comment at the top of a config as one line."""
    comment = re.match(r'(#.*\n)+', file.read_text())[0]
    return re.sub(r'\s*\n# ?', ' ', comment)


def results(model: Model) -> dict[str, float]:
    return {
        name: value
        for result in model.data.get('Results', ())
        for name, value in result.data['Metrics'].items()
    }


def test_every_config_is_there_once() -> None:
    names = [model.name for model in INDEX.models]
    assert sorted(names) == sorted(file.stem for file in PUBLISHED)
    assert all(model.config == f'configs/{name}.py' for name, model in MODELS.items())


def test_every_metafile_is_imported() -> None:
    imported = re.findall(r'^  - (.+)$', (ROOT / 'model-index.yml').read_text(), re.MULTILINE)
    assert sorted(imported) == sorted(f'configs/{file.name}' for file in ROOT.glob('configs/*.yml'))


@pytest.mark.parametrize('file', PUBLISHED, ids=lambda file: file.stem)
def test_it_says_what_the_config_says(file: Path) -> None:
    cfg, model = parse(file), MODELS[file.stem]
    metadata = model.metadata.data
    length = {'Epochs': 'max_epochs', 'Iterations': 'max_iters'}
    assert [cfg.train_cfg[length[key]] for key in length if key in metadata] == [
        metadata[key] for key in length if key in metadata
    ]
    assert metadata['Batch Size'] == cfg.auto_scale_lr.base_batch_size
    dataset = {'mmdet': 'COCO', 'mmseg': 'ADE20K', 'mmpretrain': 'ImageNet-1k'}[cfg.default_scope]
    assert {metadata['Training Data'], *(r.dataset for r in model.results or ())} == {dataset}


@pytest.mark.parametrize('file', PUBLISHED, ids=lambda file: file.stem)
def test_the_published_numbers_are_those_of_the_config(file: Path) -> None:
    numbers = re.findall(r'\d+\.\d+', header(file))
    for name, value in results(MODELS[file.stem]).items():
        assert name.startswith('Published ')  # nobody has reproduced them here
        assert str(value) in numbers
