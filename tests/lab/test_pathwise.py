"""The slopes of rewards: against differences of the rewards themselves, divided by their spread, and in the loop."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import hygrpo
import rewards
import train_rft
from body import matrix_to_rot6d, rot6d_to_matrix
from builtin.poses import sample_poses
from data import draw_batch
from lab import pathwise
from model import PoseHead
from train_rft import RFTConfig


def rolled(world, task: str):
    """Two examples of a task and a rollout of one answer and three poses each, the last answer of which has no pose."""
    examples = draw_batch(world.split, {task: 1.0}, 2, np.random.default_rng(1))
    noise = torch.randn(2, 1, 3, 144, generator=torch.Generator().manual_seed(0))
    pose = matrix_to_rot6d(sample_poses(6, np.random.default_rng(2))).flatten(1).view(2, 1, 3, 144) + 0.1 * noise
    return examples, SimpleNamespace(pose=pose, has_pose=torch.tensor([[True], [False]]), answers=[["a"], ["b"]])


def slope_of(world, task, names, weights, rollout, examples, **how):
    poses = rewards.score(examples, rollout, world.retriever, world.split.base_rates())[1]
    return poses, pathwise.slope(names, examples, rollout, world.retriever, world.split.base_rates(), poses, weights,
                                 **how)


@pytest.mark.parametrize("name, task", [("joint", "image2pose"), ("semantic", "text2pose")])
@pytest.mark.parametrize("normalize", ["std", "none"])
def test_slopes_are_differences_of_the_reward_in_units_of_its_spread(world, name, task, normalize):
    examples, rollout = rolled(world, task)
    rollout.pose, world = rollout.pose.double(), SimpleNamespace(split=world.split, retriever=copy.deepcopy(
        world.retriever).double())  # so that steps can be tiny: a retrieval model has kinks
    poses, slope = slope_of(world, task, [name], {name: 3.0}, rollout, examples, normalize=normalize)
    assert (slope[1] == 0).all() and torch.isfinite(slope).all()
    way = torch.randn(2, 1, 3, 144, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def reward(step: float) -> torch.Tensor:  # (B, G, K), without what `rewards.score` rounds
        rotmats = rot6d_to_matrix((rollout.pose + step * way).unflatten(-1, (24, 6)))
        return rewards.REWARDS[name].function(rewards.Context(
            examples, rollout.answers, rotmats, world.retriever, world.split.base_rates()))

    spread = poses[name][0].std() + 1e-4 if normalize == "std" else 1.0
    expected = 3 * (reward(1e-6) - reward(-1e-6))[0].detach() / 2e-6 / spread
    torch.testing.assert_close((slope * way).sum(-1)[0], expected, atol=1e-4, rtol=1e-4, check_dtype=False)


def test_a_task_without_a_slope_and_a_group_without_spread_teach_nothing(world):
    examples, rollout = rolled(world, "text2pose")
    assert slope_of(world, "text2pose", ["joint"], {"joint": 1.0}, rollout, examples)[1] is None
    rollout.pose = rollout.pose[:, :, :1]
    assert (slope_of(world, "text2pose", ["semantic"], {"semantic": 1.0}, rollout, examples)[1] == 0).all()


def test_a_reward_that_only_says_it_has_a_slope_is_named(world, monkeypatch):
    monkeypatch.setitem(rewards.REWARDS, "statements", rewards.REWARDS["statements"]._replace(has_slope=True))
    with pytest.raises(ValueError, match="`statements` is said to have a slope"):
        slope_of(world, "text2pose", ["statements"], {"statements": 1.0}, rolled(world, "text2pose")[1],
                 rolled(world, "text2pose")[0])


def test_what_has_no_slope_keeps_the_score_function_and_words_hear_of_all(world):
    examples, rollout = rolled(world, "text2pose")
    rollout.has_pose[:] = True
    words, poses, by_joint = rewards.score(examples, rollout, world.retriever, world.split.base_rates())
    F, Delta = hygrpo.advantages(words, poses, rollout.has_pose, rewards.weights(),
                                 by_joint | pathwise.without(["joint", "semantic"], poses))
    torch.testing.assert_close(F, hygrpo.advantages(words, poses, rollout.has_pose, rewards.weights(), by_joint)[0])
    alone = rewards.weights(["semantic=0", "joint=0"])
    torch.testing.assert_close(Delta, hygrpo.advantages(words, poses, rollout.has_pose, alone, by_joint)[1])
    F, Delta = hygrpo.advantages(words, poses, rollout.has_pose, rewards.weights(), pathwise.without(poses, poses))
    assert Delta.shape == (2, 1, 3, 1) and (Delta == 0).all()  # --credit pose, and every reward is followed


@pytest.mark.parametrize("covariance", ["diag", "lowrank", "full"])
def test_the_slope_reaches_what_mean_and_sigma_are_read_from(covariance):
    torch.manual_seed(0)
    head, yes, K = PoseHead(8, covariance), torch.ones(2, 1).bool(), 3
    pose = head(torch.randn(2, 1, 8))
    sample = pose.sample((K,)).movedim(0, -2)
    loss, _ = hygrpo.pose_loss(pose, torch.zeros_like(sample), pose, sample, torch.zeros(2, 1, K), yes, clip_low=.2,
                               clip_high=.2, beta=0.0, slope=torch.randn_like(sample))
    loss.backward()
    layers = [layer for layer in (head.mean, head.sigma, head.correlation, head.trunk[1]) if layer is not None]
    assert all((layer.weight.grad != 0).any() for layer in layers) and len(layers) == 3 + (covariance != "diag")


def test_the_loop_follows_slopes_beside_scores_and_without_them_nothing_is_flat(world, monkeypatch):
    """With all rewards, with those that have a slope alone, and with GRPO's sum: each learns, and otherwise."""
    monkeypatch.setattr(train_rft, "MIX", {"text2pose": 1.0})
    start = {name: x.clone() for name, x in world.policy.state_dict().items()}
    after = {}
    for name, changes in {"score": {}, "both": {"pose_gradient": "pathwise"}, "sum": {"compare": "sum"},
                          "slopes": {"pose_gradient": "pathwise", "without": "statements", "credit": "pose"}}.items():
        world.policy.load_state_dict(start)
        config = RFTConfig(rft_steps=2, pose_prompts=2, prompts=2, poses_per_answer=4, **changes)
        rows = train_rft.train_rft(world.policy, world.split, world.retriever, config, 0, lambda policy: {})
        assert [row["pose_flat_groups"] for row in rows[1:]] == [0, 0] and "skipped" not in rows[-1]
        after[name] = world.policy.pose_head.mean.weight.detach().clone()
    world.policy.load_state_dict(start)
    moved = {name: weight - world.policy.pose_head.mean.weight for name, weight in after.items()}
    assert all((m != 0).any() for m in moved.values())
    assert len({round(m.norm().item(), 9) for m in moved.values()}) == 4


@pytest.mark.parametrize("changes, says", [
    ({"inner_epochs": 2}, "take --inner_epochs 1"), ({"compare": "sum"}, "take --compare each"),
    ({"reward_weights": ["joint=0", "semantic=0"]}, "those with one are joint, semantic")])
def test_what_cannot_be_is_refused_before_any_work(changes, says):
    with pytest.raises(ValueError, match=says):
        train_rft.check(RFTConfig(pose_gradient="pathwise", **changes))
    train_rft.check(RFTConfig(pose_gradient="score", **changes))
