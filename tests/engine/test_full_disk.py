"""A disk that is really full: every writer of a run ends in one sentence, and what was kept before is whole.

The system refuses in two ways: a small file system of our own, which only root may mount, and a limit on the size of a
file, which every process may set itself.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from builtin.tiny import build_tiny
from engine import runtime
from engine.checkpoint import TrainingState, atomic_folder, atomic_write, warm_up_and_decay
from engine.saving import save_policy
from model import PosePolicy

NAMES = {"text", "torch", "state", "safetensors", "tokenizers", "numpy", "policy"}


def write_too_much(folder: Path, size: int) -> None:
    """Each writer in turn, files held to `size` bytes unless it is 0. Prints, by its name, the sentence with which it
    ended and the files that it left."""
    large, words = torch.zeros(1000, 2000), {f"word{i}" * 3: i for i in range(100_000)}
    policy, layer = PosePolicy(*build_tiny(["a b"] * 20)), torch.nn.Linear(1000, 1000)
    optimizer = torch.optim.AdamW(layer.parameters())
    state = TrainingState(folder / "made", layer, optimizer, warm_up_and_decay(optimizer, 4), np.random.default_rng(0))

    def in_folder(write):
        with atomic_folder(folder / "made") as partial:
            write(partial / "a")

    writers = {
        "text": lambda: atomic_write(folder / "made", "x" * 8_000_000),
        "torch": lambda: atomic_write(folder / "made", {"a": large}),
        "state": state._write, "safetensors": lambda: in_folder(lambda path: save_file({"a": large}, path)),
        "tokenizers": lambda: in_folder(lambda path: Tokenizer(models.WordLevel(words, "word0")).save(str(path))),
        "numpy": lambda: in_folder(lambda path: np.savez(path, a=large.numpy())),
        "policy": lambda: save_policy(policy, folder / "made")}
    if size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    sys.argv[0], told = "train_sft.py", {}
    for name, write in writers.items():
        if name in ("text", "torch", "state"):
            (folder / "made").write_text("old")
        try:
            runtime.run(write)
        except SystemExit as end:
            left = {path.name: path.read_text() for path in folder.iterdir()}
            told[name] = str(end), left
        (folder / "made").unlink(missing_ok=True)
    print(json.dumps(told))


def check(fork, folder: Path, size: int, reason: str) -> None:
    """In a process of its own each writer writes more than there is room for."""
    code, printed, errors = fork(write_too_much, folder, size).end()
    assert code == 0, errors
    told = json.loads(printed.splitlines()[-1])
    assert told.keys() == NAMES
    for name, (sentence, left) in told.items():
        assert sentence.endswith(f"{reason}: '{folder}/made'; what was kept before is whole: mend this and call the same "
                                 "command again") and "\n" not in sentence, name
        assert left == ({"made": "old"} if name in ("text", "torch", "state") else {}), name  # and nothing half-written


def test_a_file_that_may_not_grow_ends_in_one_sentence_and_the_old_one_stays(fork, tmp_path):
    check(fork, tmp_path, 100_000, "File too large")


@pytest.fixture
def small_disk(tmp_path):
    (tmp_path / "disk").mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(tmp_path / "disk")], check=True,
                       capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root may mount a file system")
    yield tmp_path / "disk"
    subprocess.run(["umount", "-l", str(tmp_path / "disk")], check=True)


def test_a_full_disk_ends_in_one_sentence_and_what_was_kept_stays(fork, small_disk):
    check(fork, small_disk, 0, "No space left on device")
