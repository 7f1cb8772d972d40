"""Threads are decided once, at the start of every process, so that all of them round alike; see runtime.decide_threads."""

import ctypes
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def mkl_chooses() -> bool | None:
    """Whether MKL chooses its threads anew for each product, as it does until it is told a number; None without MKL."""
    for library in Path(torch.__file__).parent.glob("lib/*torch_cpu.*"):
        asked = getattr(ctypes.CDLL(str(library)), "mkl_serv_get_dynamic", None)
        return bool(asked()) if asked else None


WHEN_COLLECTED = mkl_chooses()  # before any test has run: what conftest.py has left
without_mkl = pytest.mark.skipif(WHEN_COLLECTED is None, reason="this PyTorch has no MKL that can be asked")


@without_mkl
def test_the_tests_have_told_mkl_its_threads_before_the_first_one_runs():
    assert not WHEN_COLLECTED and not mkl_chooses()


@pytest.mark.parametrize("script", sorted(path.name for path in ROOT.glob("*.py") if "__main__" in path.read_text()))
def test_every_script_decides_its_threads_first(script, monkeypatch):
    """Before it reads its own arguments."""
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert told == [torch.get_num_threads()]


ASKED = """
import sys, torch
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
from engine import runtime
import test_threads
sys.argv = ["train_rft.py"]
fresh = test_threads.mkl_chooses(), torch.get_num_threads()
runtime.run(lambda: print(*fresh, test_threads.mkl_chooses(), torch.get_num_threads()))
"""


@without_mkl
def test_a_script_has_told_mkl_the_number_it_had():
    """In a process of its own: until then MKL chooses, and the number is the one that there was."""
    told = subprocess.run([sys.executable, "-c", ASKED.format(root=str(ROOT))], capture_output=True, text=True)
    chose, threads, chooses, threads_then = told.stdout.split()
    assert (chose, chooses) == ("True", "False") and threads == threads_then == str(torch.get_num_threads())
