"""Which process of several this one is, before they know each other."""

import os

RANK = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')
NUMBER = ('WORLD_SIZE', 'SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE')


def is_first_process() -> bool:
    """Whether this is the one process, or the first of many, which the launcher says."""
    return next((os.environ[name] for name in RANK if name in os.environ), '0') == '0'


def number_of_processes() -> int:
    """How many there are, which the launcher says."""
    return next((int(os.environ[name]) for name in NUMBER if name in os.environ), 1)
