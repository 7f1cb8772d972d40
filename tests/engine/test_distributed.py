"""However a batch is split, over parts or over processes, the parameters come out the same."""

import signal
import socket
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch.distributed import distributed_c10d as c10d

from engine import checkpoint, distributed, runtime
import train_rft
import train_sft
from builtin.splits import make_split
from builtin.tiny import corpus
from engine.muon import MuonAdamW
from engine.saving import load_policy, save_policy
from model import PosePolicy, draw_tokens
from builtin.poses import sample_poses
from builtin.retriever import Retriever
from builtin.tiny import build_tiny
from forked import Forked


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A folder with a small policy, taught a little so that some of its answers hold a pose, and a retrieval model."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    split = make_split(sample_poses(24, rng), rng)
    policy = PosePolicy(*build_tiny(corpus(split, 100, rng), hidden_size=32))
    train_sft.train_sft(policy, split, train_sft.SFTConfig(sft_steps=150, sft_batch=8), seed=0)
    save_policy(policy, folder / "policy")
    Retriever(policy.tokenizer.backend_tokenizer).save_pretrained(folder / "retriever")
    return folder


# Adam divides a gradient by its own size: one of nothing but rounding error moves its number by the whole learning rate.
# An eps above rounding error takes that out, and nothing else.
@mock.patch("torch.optim.AdamW", partial(torch.optim.AdamW, eps=1e-5))
@mock.patch("train_sft.MuonAdamW", partial(MuonAdamW, eps=1e-5))
def run(folder: Path, stage: str, seed: int, accumulate: int = 1, **more) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Three steps of a stage; the parameters then."""
    rng = np.random.default_rng(1)
    split = make_split(sample_poses(24, rng), rng)
    policy = load_policy(folder / "policy")
    rows = []
    if stage == "sft":
        config = train_sft.SFTConfig(sft_steps=3, sft_batch=9, sft_accumulate=accumulate)
        train_sft.train_sft(policy, split, config, seed)
    else:
        config = train_rft.RFTConfig(**dict(rft_steps=3, prompts=7, group_size=2, poses_per_answer=3, inner_epochs=2,
                                            accumulate=accumulate) | more)
        rows = train_rft.train_rft(policy, split, Retriever.from_pretrained(folder / "retriever"), config, seed,
                                   lambda policy: {})
    return {name: p.detach() for name, p in policy.named_parameters()}, rows


def clear_run(folder: Path) -> tuple[int, dict, list[dict]]:
    """Stage two with the first seed none of whose words is a matter of rounding: a random number within rounding error
    of the boundary between two words draws the one or the other (1 of 40 seeds), and all that follows is another run."""
    for seed in range(2, 40):
        nearest = []

        def watched(odds, uniform):
            cumulative = odds.double().cumsum(-1)
            nearest.append((cumulative / cumulative[..., -1:] - uniform[..., None]).abs().min().item())
            return draw_tokens(odds, uniform)

        with mock.patch("model.draw_tokens", watched):
            parameters, rows = run(folder, "rft", seed)
        if min(nearest) > 5e-7:
            return seed, parameters, rows
    raise AssertionError("every seed has a word that rounding decides")


@pytest.fixture(scope="module")
def whole(start):
    """Per stage: the seed, and what one process with the whole batch makes of it."""
    return {"sft": (2, *run(start, "sft", 2)), "rft": clear_run(start)}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], start: Path) -> None:
    before = dict(load_policy(start / "policy").named_parameters())
    moved = max((theirs[name] - before[name]).abs().max().item() for name in theirs)
    assert moved > 1e-3  # much more than what they may differ by
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=1e-5, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("stage", ["sft", "rft"])
def test_accumulation_changes_no_result(start, whole, stage):
    seed, theirs, their_rows = whole[stage]
    ours, rows = run(start, stage, seed, accumulate=3)
    assert_same(ours, theirs, start)
    for row, other in zip(rows[1:], their_rows[1:]):
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert row["task"] == other["task"] and row.keys() == other.keys()
    if stage == "rft":
        assert any(0 < row["valid"] < 1 for row in rows[1:])  # the parts hold different numbers of poses


def test_parts_whose_longest_answers_differ_add_up_by_dr_grpo(start, whole):
    """What is summed is divided by the most that an answer may have, in each part alike."""
    how = {"aggregation": "dr_grpo", "rft_steps": 1}
    (theirs, their_rows), (ours, rows) = (run(start, "rft", whole["rft"][0], n, **how) for n in (1, 7))
    assert rows[-1]["grad_norm"] == pytest.approx(their_rows[-1]["grad_norm"], rel=1e-4)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=1e-5)


def two_processes(fork, function, *arguments) -> list[Forked]:
    """The function in two processes that are to find each other, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [fork(function, *arguments, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank),
                 LOCAL_RANK=str(rank)) for rank in range(2)]


def both_stages(folder: Path, seeds: dict[str, int], threads: int) -> None:
    torch.set_num_threads(threads)
    distributed.start(None)
    for stage, seed in seeds.items():
        parameters, _ = run(folder, stage, seed)
        torch.save(parameters, folder / f"{stage}_{torch.distributed.get_rank()}.pt")


def test_two_processes_are_one_with_the_whole_batch(fork, start, whole):
    seeds = {stage: seed for stage, (seed, *_) in whole.items()}
    for worker in two_processes(fork, both_stages, start, seeds, torch.get_num_threads()):
        code, _, errors = worker.end()
        assert code == 0, errors
    for stage in ("sft", "rft"):
        first, second = (torch.load(start / f"{stage}_{rank}.pt", weights_only=True) for rank in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert_same(first, whole[stage][1], start)


@pytest.mark.parametrize("kind, device, words", [
    ("cuda", None, "more processes than the 1 GPUs that are here: lower --nproc_per_node"),
    ("mps", None, "Apple's GPU cannot be shared by processes: run without torchrun, or add --device cpu"),
    ("cuda", "cpu", "gloo"), ("mps", "cpu", "gloo")])
def test_processes_that_the_device_cannot_serve_are_refused(kind, device, words, monkeypatch):
    """With stand-ins for the devices; the CPU serves any number."""
    def init(backend):
        raise ValueError(backend)
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: kind == "mps")
    monkeypatch.setattr(torch.distributed, "init_process_group", init)
    with pytest.raises(ValueError, match=words):
        distributed.start(device)


def wait_for_the_first(seconds: float) -> None:
    """A script whose first process takes so long where the other only waits."""
    torch.distributed.init_process_group = partial(
        c10d.init_process_group, timeout=timedelta(seconds=3))  # not 30 minutes

    def main():
        distributed.start(None)
        if distributed.is_first():
            print("the first is at work")
            time.sleep(seconds)
        distributed.wait()
        print("all are here", distributed.total(1.0, torch.device("cpu")))
    sys.argv[0] = "train_sft.py"
    runtime.run(main)


def test_the_others_wait_for_the_first_longer_than_any_limit_of_a_collective(fork):
    for process in two_processes(fork, wait_for_the_first, 6):
        code, printed, errors = process.end()
        assert code == 0 and printed.endswith("all are here 2.0\n"), errors


def test_where_the_first_is_killed_the_others_end_in_a_sentence(fork):
    first, other = two_processes(fork, wait_for_the_first, 600)
    first.wait_for_line("the first is at work")
    first.signal(signal.SIGKILL)
    code, printed, errors = other.end(timeout=120)
    assert code == 1 and "all are here" not in printed and "Traceback" not in errors
    assert "train_sft.py: another process of this run has ended" in errors


def test_the_bar_shows_the_loss_of_the_whole_batch(start, monkeypatch):
    split, shown, losses = make_split(sample_poses(24, rng := np.random.default_rng(1)), rng), [], []
    update = checkpoint.TrainingState.update
    monkeypatch.setattr(checkpoint.Bar, "set_postfix", lambda bar, numbers: shown.append(numbers))
    monkeypatch.setattr(checkpoint.TrainingState, "update", lambda self, loss, **more: (
        losses.append(loss), update(self, loss, **more)))
    for parts in (1, 3):
        config = train_sft.SFTConfig(sft_steps=10, sft_batch=9, sft_accumulate=parts)
        train_sft.train_sft(load_policy(start / "policy"), split, config, seed=0)
    assert losses[10] == pytest.approx(losses[0], rel=1e-4)  # the first batch, whole and in parts
    assert "text" in shown[0] and shown[1] == {"loss": f"{losses[10]:.3f}"}


def test_while_the_first_validates_the_others_wait(start, monkeypatch):
    """Before the first step and wherever numbers are asked for: not in the next step's collective."""
    waited = []
    monkeypatch.setattr("engine.log.wait", lambda: waited.append(len(validated)))
    rng, validated = np.random.default_rng(1), []
    split = make_split(sample_poses(24, rng), rng)
    config = train_rft.RFTConfig(rft_steps=3, prompts=4, group_size=2, poses_per_answer=3, eval_every=2)
    train_rft.train_rft(load_policy(start / "policy"), split, Retriever.from_pretrained(start / "retriever"), config, 0,
                        lambda policy: validated.append(policy) or {})
    assert waited == [0, 1, 2, 3]  # at first until all have read the log, in which the first then writes


def test_a_batch_too_small_to_split_is_named():
    assert [part.tolist() for part in distributed.own_parts(5, 2)] == [[0, 1, 2], [3, 4]]
    with pytest.raises(ValueError, match="a batch of 2 cannot be split over 1 processes and 3 parts"):
        distributed.own_parts(2, 3)


def test_advantages_over_the_batch_are_refused_where_it_is_split():
    config = train_rft.RFTConfig(prompts=4, accumulate=2, normalize="batch")
    with pytest.raises(ValueError, match="--normalize batch"):
        train_rft.train_rft(None, None, None, config, 0, None)
