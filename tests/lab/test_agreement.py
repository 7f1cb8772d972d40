"""How far the gradients of rewards agree: cosines of vectors that are known, and gradients of a policy's own."""

import numpy as np
import pytest
import torch

from lab import agreement
from train_rft import RFTConfig


def test_a_cosine_is_taken_between_the_halves_and_is_nothing_where_nothing_moves():
    x, y = torch.tensor([1.0, 0]), torch.tensor([1.0, 1])
    assert agreement.cosine(x, y, y, -y) == pytest.approx((.5 ** .5 - 1) / 2)
    assert agreement.cosine(x, 0 * y, y, y) is None


def test_rewards_move_the_head_by_poses_alone_and_agree_with_themselves_most(world):
    config = RFTConfig(prompts=4, pose_prompts=8, poses_per_answer=16)
    found = agreement.agreement(world.policy, world.split, world.retriever, config, 0, 1)
    assert found.keys() == {"pose head", "language model"}
    head, rest = found["pose head"], found["language model"]
    assert list(head) == list(rest) and {"joint", "semantic", "statements", "correct"} <= set(head)
    for name in ("joint", "semantic", "statements"):
        assert max(head[name][other] for other in ("joint", "semantic", "statements")) == head[name][name] > .1
    assert all(head["correct"][other] is None for other in head)  # its task gives words alone
    values = np.array([rest[a][b] for a in ("joint", "semantic", "statements") for b in ("joint", "statements")])
    assert (np.abs(values) <= 1 + 1e-6).all()
    assert all(head[a][b] == head[b][a] for a in head for b in head)


def test_the_table_has_a_row_a_reward_and_says_where_nothing_moves():
    one = {"pose head": {"a": {"a": .5, "b": None}, "b": {"a": None, "b": None}}}
    other = {"pose head": {"a": {"a": .7, "b": None}, "b": {"a": None, "b": None}}}
    table = agreement.table([one, other])
    assert "on the pose head:" in table and "| a | 0.60 ± 0.14 |  |" in table and "| b | - | - |" in table
