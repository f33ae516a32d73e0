"""The report on two stock configs, one that adapts and one whose result is there already."""

import json
from pathlib import Path

import drop_in_report
import pytest
from drop_in import trying

from mmlocalattn.adapt import BACKBONES

PSPNET = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
SETR = 'mmseg::setr/setr_vit-l_naive_8xb2-160k_ade20k-512x512.py'
OLD = dict(
    config=SETR, backbone='ssvit_t', outcome='refused', detail='seen before', original='', model=''
)


def test_tasks_are_all_configs_and_more_backbones_for_a_tenth() -> None:
    found = trying.tasks(['mmdet'], [''])
    configs = {config for config, name in found if name == 'ssvit_t'}
    others = {config for config, name in found if name != 'ssvit_t'}
    assert len(configs) > 700
    assert 0.07 < len(others) / len(configs) < 0.13
    assert {name for _, name in found} == {'ssvit_t', *trying.IN_A_TENTH} <= set(BACKBONES)
    assert found == trying.tasks(['mmdet'], [''])


def test_goes_on_where_it_stopped(tmp_path: Path) -> None:
    results, page = tmp_path / 'results.jsonl', tmp_path / 'report.md'
    results.write_text(json.dumps(OLD) + '\n{"config": "cut o')
    argv = ['--packages', 'mmseg', '--filter', PSPNET.rpartition('/')[2]]
    drop_in_report.main([*argv, '--results', str(results), '--report', str(page)])
    result = json.loads(results.read_text().splitlines()[-1])
    assert len(result.pop('model')) == 16
    assert result == dict(
        config=PSPNET, backbone='ssvit_t', outcome='adapted', detail='', original='ResNetV1c'
    )
    assert 'Of 1 with a pyramid backbone' in page.read_text()
    assert '| mmseg | ssvit_t | 1 | 1 | 0 | 0 | 0 |' in page.read_text()


def test_results_that_are_there_are_not_computed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    results = tmp_path / 'results.jsonl'
    results.write_text(json.dumps(OLD) + '\n')
    drop_in_report.main(['--packages', 'mmseg', '--filter', SETR[7:], '--results', str(results)])
    assert '| 1 | seen before |' in capsys.readouterr().out
    assert results.read_text() == json.dumps(OLD) + '\n'


def test_a_model_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two schedules of one model; another model."""
    runs = []
    monkeypatch.setattr(trying, 'run_model', runs.append)
    monkeypatch.setattr(trying, '_seen', {})
    names = ('r50-d8_4xb2-40k', 'r101-d8_4xb2-80k', 'r18-d8_4xb2-80k')
    results = [
        trying.try_config((f'mmseg::pspnet/pspnet_{name}_cityscapes-512x1024.py', 'ssvit_t'))
        for name in names
    ]
    assert [result['outcome'] for result in results] == ['adapted'] * 3
    models = [result['model'] for result in results]
    assert models[0] == models[1] != models[2]
    assert len(runs) == 2


def test_nothing_to_do() -> None:
    with pytest.raises(SystemExit, match="no config of \\['mmseg'\\] contains \\['nosuch'\\]"):
        drop_in_report.main(['--packages', 'mmseg', '--filter', 'nosuch'])


def test_reasons_are_without_the_folders_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any environment: toolboxes may lie in another one than torch."""

    def refuse(path: str) -> None:
        raise FileNotFoundError(f"'/venvs/b/lib/site-packages/mmrotate/{path}' does not exist")

    monkeypatch.setattr(trying, 'load_config', refuse)
    result = trying.try_config(('a.py', 'ssvit_t'))
    assert result['outcome'] == 'broken'
    assert result['detail'] == "FileNotFoundError: 'mmrotate/a.py' does not exist"
