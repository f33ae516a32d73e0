"""The allocator keeps pages for the tools, and is left alone for others."""

import os
import platform
import subprocess
import sys

import pytest

from mmlocalattn import memory

RUN = """
import mmap
import sys
from mmlocalattn.memory import keep_freed_memory

def resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE >> 20

print(keep_freed_memory() if sys.argv[1] == 'keep' else None)
import torch
before = resident()
torch.ones(2**24)  # 64 MiB
print(resident() - before >= 32)  # pages that an import has freed may be among them
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='another allocator')
@pytest.mark.parametrize(
    ('call', 'switch', 'is_kept', 'stays'),
    [
        ('keep', '', 'True', 'True'),
        ('keep', '0', 'False', 'False'),
        ('import alone', '', 'None', 'False'),
    ],
)
def test_freed_pages_stay(call: str, switch: str, is_kept: str, stays: str) -> None:
    environment = {**os.environ, 'MMLOCALATTN_KEEP_MEMORY': switch}
    command = [sys.executable, '-c', RUN, call]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.split() == [is_kept, stays], run.stderr


def test_other_allocators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('LD_PRELOAD', '/usr/lib/libtcmalloc.so')
    assert memory.keep_freed_memory() is False
    monkeypatch.delenv('LD_PRELOAD')
    monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
    assert memory.keep_freed_memory() is False
