"""Chance: what a run draws for one purpose, it draws for no other, and no run draws what one of another seed does."""

import numpy as np
import pytest
import torch

from builtin.retriever import load_or_train_retrievers
from builtin.tiny_encoders import train_encoders
from data import load_splits
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
