"""requirements/hashes/: all that setup_env.sh installs, each release with its hashes."""

import re
import subprocess
from pathlib import Path

import hash_pins
import pytest

ROOT = Path(__file__).parents[2]
HASH = r' --hash=sha256:[0-9a-f]{64}'


def joined(row: str) -> list[str]:
    """The releases of a row, each in a line."""
    text = (ROOT / 'requirements' / 'hashes' / f'{row}.txt').read_text()
    return re.sub(r' *\\\n +', ' ', text).splitlines()[1:]


def normal(pin: str) -> str:
    """``Markdown===3`` as ``markdown==3``, without what it is for."""
    name, version = re.split('={2,3}', re.split(' --hash| #|;', pin)[0].strip())
    return f'{re.sub("[-_.]+", "-", name).lower()}=={version}'


@pytest.mark.parametrize('row', hash_pins.ROWS)
def test_every_pin_has_hashes(row: str) -> None:
    lines = joined(row)
    assert [line for line in lines if not re.search(f'({HASH})+$', line)] == []
    hashed = {normal(line) for line in lines}
    assert {normal(pin) for pin in hash_pins.pins_of(row)} - hashed == set()
    # What only these pins need, as the CUDA libraries of torch, is there too.
    assert len(hashed) > len(hash_pins.pins_of(row))


@pytest.mark.parametrize('asked', ['', '1'])
def test_what_setup_env_hands_to_pip(asked: str) -> None:
    script = (ROOT / 'tools' / 'setup_env.sh').read_text()
    function = re.search(r'^pins_matching\(\) \{\n.*?^\}\n', script, re.MULTILINE | re.DOTALL)[0]
    setup = (
        'stack=classic; requirements=(requirements/classic_reference.txt requirements/tests.txt)'
    )
    lines = subprocess.run(
        ['bash', '-euc', f'{setup}\n{function}\npins_matching ^mmcv==; pins_matching -v ^mmcv=='],
        cwd=ROOT,
        env={'PATH': '/usr/bin:/bin', 'MMLOCALATTN_REQUIRE_HASHES': asked},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    pins = [line for line in lines if '==' in line]
    assert pins[0].startswith('mmcv==2.1.0')
    assert {normal(pin) for pin in pins} >= {normal(pin) for pin in hash_pins.pins_of('classic')}
    assert all(re.search(HASH, pin) is not None for pin in pins) == bool(asked)
