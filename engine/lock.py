"""One process at a time writes in a folder: the same command given twice at once must not end in one mixed run.

The system itself keeps the lock, of a file in the folder, and gives it back when the process ends in whatever way: a
kill leaves none behind. Of torchrun's processes, which are one run, the first one holds it.
Read next: checkpoint.py, which writes there.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from engine.distributed import is_first

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def hold(folder: str | Path) -> Iterator[None]:
    """Inside, no other process holds `folder`, which is made where it is missing, and removed if it then stays empty.
    ValueError, at once, where another one holds it."""
    if not is_first():
        yield
        return
    folder = Path(folder)
    is_new, file = not folder.exists(), None
    while file is None:
        file = lock(folder)
    try:
        yield
    finally:
        with suppress(OSError):  # not empty, or already removed by others
            (folder / "lock").unlink()
            if is_new:
                folder.rmdir()
        file.close()


def lock(folder: Path) -> TextIO | None:
    """The locked file, or None where it was removed, by its holder before, between opening and locking it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / "lock", "a")
    if os.fstat(file.fileno()).st_size:
        file.close()
        raise ValueError(f"{folder}/lock is in the way, since a run's own is empty: move it, or name another folder")
    try:
        if fcntl is None:
            raise OSError("this system has no flock")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(folder / "lock"), os.fstat(file.fileno())):
                return file
    except BlockingIOError:
        file.close()
        raise ValueError(f"another run is at work in {folder}: wait until it has ended, or name another "
                         "folder") from None
    except OSError as error:  # some network shares, Windows
        print(f"{folder} cannot be locked ({error}): take care that no second run writes there at the same time")
        return file
    file.close()
    return None
