"""Processes of which each starts in a moment: forked from one that has imported everything and computed nothing.

A new Python takes seconds for torch and transformers alone, which no test is about. Whatever else a process has of its
own these have too: memory, threads, limits, signals, an end. The functions they run stand in test files."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVER = multiprocessing.get_context("forkserver")  # it ends with the process that asked for it
SERVER.set_forkserver_preload(["train_rft"])


class Forked:
    """`function(*arguments)` in a process of its own, which writes to `out` and `err` of a folder; environment: what is
    set there before. Its exit code is that of a script: 1 where it ends in a sentence."""

    def __init__(self, folder: Path, function: Callable, arguments: tuple, environment: dict[str, str]):
        self.out, self.err = folder / "out", folder / "err"
        self.process = SERVER.Process(target=_call, args=(self.out, self.err, environment, function, arguments),
                                      daemon=True)
        with pytest.MonkeyPatch.context() as patch:  # for the server, which the first process starts
            patch.setenv("PYTHONPATH", str(ROOT))
            patch.setenv("OMP_WAIT_POLICY", "passive")  # several processes on the same cores do not spin
            self.process.start()

    def wait_for(self, is_so: Callable[[], bool]) -> None:
        """Until it is so, or the process has ended."""
        while self.process.is_alive() and not is_so():
            time.sleep(.002)

    def wait_for_line(self, line: str) -> None:
        self.wait_for(lambda: self.out.exists() and line in self.out.read_text().splitlines())
        assert self.process.is_alive(), self.err.read_text()

    def end(self, timeout: float = 300) -> tuple[int, str, str]:
        """Wait for its end: exit code (minus the signal that killed it), what it printed, its errors."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still at work after {timeout} s"
        return self.process.exitcode, self.out.read_text(), self.err.read_text()

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)


def _call(out: Path, err: Path, environment: dict[str, str], function: Callable, arguments: tuple) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout.reconfigure(line_buffering=True)
    os.environ |= environment
    function(*arguments)
