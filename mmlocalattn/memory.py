"""What the C library does with memory that is freed."""

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of malloc.h
_NEVER = -1


def keep_freed_memory() -> bool:
    """Let this process keep the pages of freed memory for the next allocation.

    glibc gives large blocks back to the kernel when they are freed, and every map of a model is
    one: the kernel then clears the pages of the next map anew. The process stays as large as it
    was at its peak. The programs in ``tools/`` call this; importing the package does not.
    ``MMLOCALATTN_KEEP_MEMORY=0`` leaves the allocator as it is.

    Returns:
        Whether that is so now: with glibc, unless it is switched off or another allocator is
        preloaded.
    """
    is_off = os.environ.get('MMLOCALATTN_KEEP_MEMORY') == '0'
    if is_off or platform.libc_ver()[0] != 'glibc' or 'malloc' in os.getenv('LD_PRELOAD', ''):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _NEVER))
