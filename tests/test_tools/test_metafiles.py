"""tools/dev/metafiles.py, and what mim reads of model-index.yml and the metafiles."""

import re
from pathlib import Path
from types import ModuleType

import pytest
from modelindex.load_model_index import load
from test_configs import PUBLISHED, parse, sibling

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def metafiles() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / 'tools' / 'dev'))
        import metafiles

        return metafiles


@pytest.fixture(scope='module')
def texts(metafiles: ModuleType) -> dict[Path, str]:
    return metafiles.render(lambda file: parse(Path(file)))


def test_files_are_those_made_from_the_configs(texts: dict[Path, str]) -> None:
    files = {ROOT / 'model-index.yml', *ROOT.glob('configs/*.yml')}
    differing = {file.name for file in files if texts.get(file) != file.read_text()}
    assert not differing, 'run python tools/dev/metafiles.py'
    assert texts.keys() == files


def test_check_names_what_differs_and_writing_mends_it(
    metafiles: ModuleType,
    texts: dict[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / 'configs').mkdir()
    made = {tmp_path / file.relative_to(ROOT): text for file, text in texts.items()}
    monkeypatch.setattr(metafiles, 'ROOT', tmp_path)
    monkeypatch.setattr(metafiles, 'render', lambda load: made)
    metafiles.main([])
    metafiles.main(['--check'])
    changed, stale = tmp_path / 'configs' / 'metafile_nat.yml', tmp_path / 'configs' / 'old.yml'
    changed.write_text('')
    stale.write_text('')
    capsys.readouterr()
    with pytest.raises(SystemExit, match='error: run python tools/dev/metafiles'):
        metafiles.main(['--check'])
    assert capsys.readouterr().out == (
        'configs/metafile_nat.yml: differs from the configs\n'
        'configs/old.yml: differs from the configs\n'
    )
    metafiles.main([])
    assert changed.read_text() == made[changed]
    assert not stale.exists()


def test_mim_finds_every_config_once(metafiles: ModuleType) -> None:
    index = load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert index.check(silent=True) == []
    assert sorted(model.name for model in index.models) == [file.stem for file in PUBLISHED]
    assert all((ROOT / model.config).stem == model.name for model in index.models)
    papers = {model.full_model.paper['URL'] for model in index.models}
    assert papers == {f'https://arxiv.org/abs/{family.arxiv}' for family in metafiles.FAMILIES}


def test_an_entry_has_what_the_config_and_its_header_say(metafiles: ModuleType) -> None:
    file = ROOT / 'configs' / 'upernet_dinat_b_160k_ade20k.py'
    family, entry = metafiles.model_entry(file, parse(file))
    assert family.name == entry['In Collection'] == 'DiNAT'
    assert entry['Metadata'] == {
        'Training Data': 'ADE20K',
        'Iterations': 160000,
        'Batch Size': 16,
        'Training Techniques': ['AdamW', 'Mixed Precision', 'LinearLR', 'PolyLR'],
        'Architecture': ['EncoderDecoder', 'DiNAT', 'UPerHead'],
    }
    metrics = {'Published mIoU': 49.6, 'Published mIoU (multi-scale)': 50.4}
    (result,) = entry['Results']
    assert result == {'Task': 'Semantic Segmentation', 'Dataset': 'ADE20K', 'Metrics': metrics}
    url = 'https://shi-labs.com/projects/dinat/checkpoints/ade20k/upernet_dinat_base.pth'
    assert entry['Converted From'] == {'Weights': url, 'Code': family.code}


@pytest.mark.parametrize('file', PUBLISHED, ids=lambda file: file.stem)
def test_header_names_the_paper_and_its_table(metafiles: ModuleType, file: Path) -> None:
    header = re.match(r'(#.*\n)+', file.read_text())[0]
    papers = set(re.findall(r'arXiv[\s#]+([\d.]+\d)', header))
    family, _ = metafiles.model_entry(file, parse(file))
    assert 'table' in header
    assert papers == {family.arxiv} or (sibling(file) and not papers)


@pytest.mark.parametrize(
    ('header', 'published', 'weights'),
    [
        ('# T.\n# Published: 47.3 box AP, 42.6 mask AP (table 1).\n', [47.3, 42.6], None),
        (
            '# T.\n# Published: 54.0 mIoU,\n# 54.9 multi-scale mIoU\n# (table 1).\n',
            [54, 54.9],
            None,
        ),
        (
            '# Published: no table entry (83.2 top-1 in a plot).\n# Weights: https://u/f.pth\n',
            [],
            'https://u/f.pth',
        ),
    ],
)
def test_header(
    metafiles: ModuleType,
    tmp_path: Path,
    header: str,
    published: list[float],
    weights: str | None,
) -> None:
    file = tmp_path / 'config.py'
    file.write_text(header + "_base_ = './x.py'  # Published: 1.0 mIoU (not a header)\n")
    metrics, url = metafiles.read_header(file)
    assert (list(metrics.values()), url) == (published, weights)


@pytest.mark.parametrize(
    ('header', 'message'),
    [
        ('# T. Paper, table 1: 47.3 box AP.\n', 'has 0 lines "# Published'),
        ('# Published: 47.3 AP (table 1).\n', "'47.3 AP', which is not a number and one of box AP"),
        ('# Published: 47,3 box AP (table 1).\n', "'47,3 box AP', which is not"),
        ('# Published: nothing (no table).\n', "'nothing', which is not"),
        (
            '# Published: 1.0 box AP (table 1).\n# Weights: on request\n',
            "has weights ['on request'], not one https address",
        ),
    ],
)
def test_header_of_another_form(
    metafiles: ModuleType, tmp_path: Path, header: str, message: str
) -> None:
    file = tmp_path / 'config.py'
    file.write_text(header)
    with pytest.raises(ValueError, match=f'config.py: the header .*{re.escape(message)}'):
        metafiles.read_header(file)
