"""How far the gradients of rewards agree: cosines of vectors that are known, and gradients of a policy's own."""

import numpy as np
import pytest
import torch

from lab import agreement
from train_rft import MIX, RFTConfig


def test_a_cosine_is_taken_between_the_halves_and_is_nothing_where_nothing_moves():
    x, y = torch.tensor([1.0, 0]), torch.tensor([1.0, 1])
    assert agreement.cosine(x, y, y, -y) == pytest.approx((.5 ** .5 - 1) / 2)
    assert agreement.cosine(x, 0 * y, y, y) is None


def test_the_halves_hold_other_batches_and_tasks_weigh_by_their_odds(world, monkeypatch):
    """Gradients that are known: of `joint` always one way, with a turn of `correct` on the head and noise on the rest."""
    drawn = []

    def of_batch(policy, split, retriever, config, task, parameters, rng):
        head = sum(p.numel() for p in policy.pose_head.parameters())
        x = torch.zeros(sum(p.numel() for p in parameters))
        x[:head], x[head + len(drawn)] = 1, 1
        drawn.append(task)
        return {"joint": x, "correct": -x.index_fill(0, torch.arange(head), 2.0 if task == "vqa" else 0.0)}
    monkeypatch.setattr(agreement, "of_batch", of_batch)
    found = agreement.agreement(world.policy, world.split, world.retriever, RFTConfig(), 0, 2)
    assert drawn == 2 * [task for task in MIX for _ in range(2)]
    head, rest = found["pose head"], found["language model"]
    assert head["joint"]["joint"] == pytest.approx(1, abs=1e-4)
    assert head["joint"]["correct"] == head["correct"]["joint"] == pytest.approx(-1, abs=1e-4)
    assert rest["joint"]["joint"] == rest["joint"]["correct"] == 0  # each batch has a number of its own


def test_words_do_not_move_the_head_and_the_generator_is_the_only_chance(world):
    config, names = RFTConfig(prompts=4, pose_prompts=4, poses_per_answer=4), ("joint", "format", "text", "description")
    parameters = [*world.policy.pose_head.parameters(), world.policy.pose_projector[1].weight]
    head = sum(p.numel() for p in world.policy.pose_head.parameters())
    take = lambda: agreement.of_batch(world.policy, world.split, world.retriever, config, "image2text", parameters,
                                      np.random.default_rng(0))
    found = take()
    assert found.keys() == set(names) and (found["joint"][:head] != 0).any()
    assert all((found[name][:head] == 0).all() for name in names[1:])
    again = take()
    assert all(torch.equal(found[name], again[name]) for name in names)


def test_the_table_has_a_row_a_reward_and_says_where_nothing_moves():
    one = {"pose head": {"a": {"a": .5, "b": None}, "b": {"a": None, "b": None}}}
    other = {"pose head": {"a": {"a": .7, "b": None}, "b": {"a": None, "b": None}}}
    table = agreement.table([one, other])
    assert "on the pose head:" in table and "| a | 0.60 ± 0.14 |  |" in table and "| b | - | - |" in table
