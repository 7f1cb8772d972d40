"""A variant of the comparison, `train_rft.py --compare sum`: GRPO's, whose rewards are added before they are compared.

GRPO compares one reward, and several are added to one. Whichever has the largest spread in its own unit is then heard
above the others, and their weights mean units. hygrpo.py departs from this, as GDPO (Liu et al. 2026) does: it compares
each reward by itself, and adds the comparisons. Claim 12 tries both with the same weights.
Read next: ../hygrpo.py, where `advantages` compares one by one.
"""

import torch
from torch import Tensor

import hygrpo


def weighed(rewards: dict[str, Tensor], weights: dict[str, float], like: Tensor) -> Tensor:
    """The weighed sum of rewards that broadcast to the shape of `like`: NaN only where none of them is known."""
    rewards = {name: reward.expand_as(like) for name, reward in rewards.items()}
    unknown = torch.stack([reward.isnan() for reward in rewards.values()]).all(0)
    total = sum(weights[name] * reward.nan_to_num(0.0) for name, reward in rewards.items())
    return total.masked_fill(unknown, torch.nan)


def advantages(text_rewards: dict[str, Tensor], pose_rewards: dict[str, Tensor], has_pose: Tensor,
               weights: dict[str, float], by_joint: dict[str, Tensor] | None = None, **how) -> tuple[Tensor, Tensor]:
    """F and Delta as `hygrpo.advantages` gives them, and of what it takes, but of one sum of rewards each: F of an
    answer's rewards and the mean rewards of its poses, zero where it has none, Delta of a pose's."""
    pose = weighed(pose_rewards, weights, next(iter(pose_rewards.values())))  # (B, G, K)
    of_poses = pose.mean(-1).masked_fill(~has_pose, 0.0).nan_to_num(0.0)  # (B, G)
    F = hygrpo.group_advantage(weighed(text_rewards, weights, of_poses) + of_poses, torch.ones_like(has_pose), **how)
    if by_joint:
        parts = {name: by_joint.get(name, reward[..., None]) for name, reward in pose_rewards.items()}
        by_joint = {"sum": weighed(parts, weights, next(iter(by_joint.values())))}  # (B, G, K, 24)
    return F, hygrpo.advantages({}, {"sum": pose}, has_pose, {"sum": 1.0}, by_joint, **how)[1]
