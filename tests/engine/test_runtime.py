"""What every script does: seeds that no two purposes share, and printing on whatever terminal there is."""

import io
import os
import sys

import numpy as np
import pytest
import torch

from builtin.retriever import load_or_train_retrievers
from builtin.tiny_encoders import train_encoders
from builtin.splits import load_splits
from engine import runtime
from engine.checkpoint import TrainingState
from engine.runtime import own_seed
from engine.world import WorldConfig, build_policy
from lab.frozen_sigma import freeze_sigma
from lab.metrics import bootstrap, eval_examples, respond
from real.protocols import retrieval
from train_rft import RFTConfig, train_rft
from train_sft import SFTConfig, train_sft


def begin_every_stage(folder, seed: int) -> None:
    """All that a run draws from, each stage without its steps."""
    world, config = WorldConfig(out=str(folder), seed=seed, train_poses=8, device="cpu"), SFTConfig()
    splits = load_splits(counts={"train": 8, "val": 4, "test": 4}, seed=seed)
    policy = build_policy(world, config, splits)
    train_encoders(policy, splits["train"], 1, seed)
    retriever = load_or_train_retrievers(policy, world, 1)["reward"]
    train_sft(policy, splits["train"], config, seed)
    freeze_sigma(policy, splits["train"], seed)
    train_rft(policy, splits["train"], retriever, RFTConfig(), seed, lambda policy: {})
    respond(policy, eval_examples(splits["test"], "vqa", 2, seed), 1, seed)
    bootstrap(np.arange(4.0), seed)
    retrieval(torch.eye(4), torch.eye(4), seed, pool=2)


@pytest.fixture
def begun(monkeypatch) -> dict[str, list]:
    """Where the generators begin: of numpy their pool of entropy, of torch the 32 bits that it takes of a seed."""
    begun, default_rng, manual_seed = {"numpy": [], "torch": []}, np.random.default_rng, torch.manual_seed

    class Generator(torch.Generator):
        def manual_seed(self, seed: int):
            begun["torch"].append(seed % 2 ** 32)
            return super().manual_seed(seed)

    def recorded_rng(seed):
        begun["numpy"].append(tuple(np.random.SeedSequence(seed).generate_state(4)))
        return default_rng(seed)

    def recorded_seed(seed):
        begun["torch"].append(seed % 2 ** 32)
        return manual_seed(seed)

    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(np.random, "default_rng", recorded_rng)
    monkeypatch.setattr(torch, "manual_seed", recorded_seed)
    monkeypatch.setattr(TrainingState, "steps", lambda state, count, name: [])
    return begun


def test_no_two_streams_of_a_run_or_of_two_runs_are_one(begun, tmp_path, short_answers):
    for seed in (0, 1, 100, 101):
        begin_every_stage(tmp_path / str(seed), seed)
    assert len(begun["numpy"]) >= 4 * 14 and len(begun["torch"]) >= 4 * 6
    for kind, states in begun.items():
        assert len(set(states)) == len(states), kind


def test_the_seed_of_a_role_is_its_own_and_always_the_same():
    seeds = [own_seed(seed, role, *more) for seed in range(200) for role in range(20) for more in ((), (100,))]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2 ** 32 for seed in seeds)
    assert own_seed(0, 5) == seeds[10] == np.random.SeedSequence([0, 5]).generate_state(1)[0]


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("buffering", [1, -1])
def test_the_work_is_done_when_the_reader_is_gone(name, buffering, tmp_path, monkeypatch):
    """`| head -1`: what is printed then, or still waits in a buffer, is for nobody."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering) as stream:
        monkeypatch.setattr(sys, name, stream)

        def main() -> None:
            for _ in range(3):
                print("a line " * 2_000, file=getattr(sys, name))
            (tmp_path / "made").write_text("all of it")

        runtime.run(main)
        assert getattr(sys, name) is stream
    assert (tmp_path / "made").read_text() == "all of it"


def test_what_is_wrong_with_the_output_itself_is_said(monkeypatch):
    """A full disk, for one, is no reader that is gone."""
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(SystemExit, match="No space left"):
        runtime.run(lambda: print("a line"))


@pytest.mark.parametrize("told, says", [("SFT stopped after", "SFT stopped after"), ("", "stopped; the same command")])
def test_ctrl_c_at_any_moment_says_how_to_go_on(told, says, capsys):
    with pytest.raises(SystemExit) as end:
        runtime.run(lambda: (_ for _ in ()).throw(KeyboardInterrupt(*[told] * bool(told))))
    assert end.value.code == 130 and f": {says}" in capsys.readouterr().err


def test_a_sign_that_the_terminal_lacks_is_spelled(monkeypatch):
    """cp1252, of Windows in the West, has the plus-minus of our tables and lacks their tick."""
    for name in ("stdout", "stderr"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
        monkeypatch.setattr(sys, name, stream)
        runtime.run(lambda: print("0.5 \u00b1 0.1 \u2713 \u819d", file=getattr(sys, name)))
        stream.flush()
        assert stream.buffer.getvalue().rstrip() == b"0.5 \xb1 0.1 \\u2713 \\u819d"


def test_what_is_typed_may_be_no_text(monkeypatch):
    heard = []
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"kneel \xff\n"), encoding="utf-8"))
    runtime.run(lambda: heard.append(input()))
    assert heard == ["kneel \\xff"]


def test_without_any_output_the_work_is_done(monkeypatch):
    done = []
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    runtime.run(lambda: done.append((print("a line"), sys.stderr.isatty())))
    assert done == [(None, False)]


@pytest.mark.parametrize("name", [None, "cuda"])
def test_a_device_that_this_torch_does_not_serve_is_said_to_be_so(monkeypatch, name):
    def too_old(*args, **kwargs):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", too_old)
    with pytest.raises(ValueError, match="does not serve the cuda device here .CUDA error: no kernel image is available "
                                         "for execution on the device.; add --device cpu"):
        runtime.pick_device(name)


@pytest.mark.parametrize("has_units, dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_weights_are_halved_where_the_gpu_has_units_for_it(monkeypatch, has_units, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or has_units)
    assert runtime.half_precision(torch.device("cuda")) == dtype
    assert runtime.half_precision(torch.device("cpu")) == torch.float32
