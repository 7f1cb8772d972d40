"""The whole chain in small, which several files of tests look at: it is run once for all of them."""

import json
import sys
from functools import partialmethod

import pytest

import train_rft
from lab import pictures
from model import PosePolicy

SMALL = ["--train_poses", "96", "--eval_poses", "24", "--encoder_steps", "4", "--sft_steps", "6", "--sft_batch", "16",
         "--retriever_steps", "4", "--rft_steps", "3", "--prompts", "6", "--group_size", "3", "--poses_per_answer", "4",
         "--eval_every", "2", "--device", "cpu"]


def run(monkeypatch, module, *arguments: str) -> None:
    """A script. Answers of a policy that has learned nothing end after 16 tokens."""
    monkeypatch.setattr(PosePolicy, "sample", partialmethod(PosePolicy.sample, max_tokens=16))
    monkeypatch.setattr(sys, "argv", [module.__name__ + ".py", *arguments])
    module.main()


def leave_out_pictures(monkeypatch) -> None:
    """Of a run after the chain below, which has drawn them."""
    for module, name in ((pictures, "before_after"), (pictures, "progression"), (train_rft, "curves")):
        monkeypatch.setattr(module, name, lambda *args, **kwargs: None)


@pytest.fixture(scope="session")
def chain(tmp_path_factory):
    """One small run of the whole chain, its folder and its metrics. Nobody writes there."""
    out = tmp_path_factory.mktemp("chain") / "runs"
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(monkeypatch, train_rft, "--out", str(out), *SMALL)
    return out, json.loads((out / "metrics.json").read_text())
