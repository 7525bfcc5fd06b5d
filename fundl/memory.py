"""What becomes of memory that a step has freed.

The C library of most Linux systems, glibc, gives large pieces of memory back to the kernel as soon as they are freed. A
training step asks for the same pieces that the last one freed, and each time the kernel hands them out anew, page by page,
filled with zeros: of the step of a convolutional network that was a third of the time.
"""

import ctypes
import os
from typing import Final

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them
_KEPT: Final = 2**31 - 1  # bytes: what is freed at the end of the heap stays below this; the most that an int holds
_LARGEST: Final = (2**30, 2**25)  # bytes: pieces up to this are of the heap; older releases allow the second at most
_CHOSEN: Final = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "malloc.trim_threshold", "malloc.mmap_threshold")


def keep_freed_memory() -> bool:
    """Have this process keep the memory that it frees, for what it computes next, as torch does on a GPU.

    `fit`, `jit` and `scan` call it; call it before an eager training loop of your own. It changes how long memory is kept, for
    all of the process, and no result. It does nothing where the user has chosen otherwise, by the environment variables
    MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_ or GLIBC_TUNABLES, or where the C library is another one than glibc.

    Returns:
        Whether freed memory is kept.

    Source:
        mallopt(3) of the Linux manual.

    >>> from fundl import keep_freed_memory
    >>> keep_freed_memory() in (True, False)
    True
    """
    environment = f"{' '.join(os.environ)} {os.environ.get('GLIBC_TUNABLES', '')}"
    if any(name in environment for name in _CHOSEN):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    kept = any(set_option(_MMAP_THRESHOLD, size) for size in _LARGEST)
    return bool(set_option(_TRIM_THRESHOLD, _KEPT)) and kept
