"""A variant of how poses learn, `train_rft.py --pose_gradient pathwise`: along the slope of a reward (claim 11).

The score function, grad E[R] = E[A grad log N], asks of a reward nothing but its value, and learns where better
poses lie from how K samples differ. The rewards of eq. 7 and 8 can be differentiated: with p = mu + L z, z standard
normal, each sample by itself says, number by number, how a better pose is come by (the reparameterised gradient, Kingma
& Welling 2014; HPO, arXiv 2605.14297, takes it for the continuous half of hybrid actions):

    grad E[R / spread] = E[slope grad (mu + L z)],   slope = dR/dp / spread
`spread` is what the advantage of the same reward is divided by (`--normalize`), of the same group, as a constant; where
it is 0, nothing is learned by either. So weights, learning rates and KL mean what they meant, and with `--credit pose`
both gradients are the same in expectation: only the noise differs. By default the score function compares each joint by
its own part of a reward, divided by the spread of that part: then the gradients have about one direction, that of the
parts being longer. A slope has no ratio and no clip, and one inner epoch, since it holds where the samples were drawn.

`statements` counts what holds and has no slope: such a reward keeps the score function. So do words: F is as it was.
Read next: ../hygrpo.py, whose `pose_loss` takes the slope.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

import rewards
from body import rot6d_to_matrix
from builtin.retriever import Retriever
from data import Example
from hygrpo import group_advantage


def followed(config) -> list[str]:
    """The names of the rewards whose slope the poses follow. ValueError where an RFTConfig asks for what cannot be."""
    if config.pose_gradient == "score":
        return []
    weights = rewards.weights(config.reward_weights, config.without)
    names = [name for name, reward in rewards.REWARDS.items() if reward.has_slope and weights[name]]
    if not names:
        raise ValueError("--pose_gradient pathwise: no reward that has a slope has a weight; those with one are "
                         + ", ".join(name for name, reward in rewards.REWARDS.items() if reward.has_slope))
    if config.inner_epochs > 1:
        raise ValueError(f"--pose_gradient pathwise --inner_epochs {config.inner_epochs}: a slope holds where the "
                         "poses were drawn, and the first update moves the policy from there; take --inner_epochs 1")
    if config.compare == "sum":
        raise ValueError("--pose_gradient pathwise --compare sum: a slope is divided by the spread of its own reward, "
                         "and a sum has no such thing; take --compare each")
    return names


def without(names: Sequence[str], pose_rewards: dict[str, Tensor]) -> dict[str, Tensor]:
    """What takes these rewards out of Delta, though not out of F: that joints decide no part of them, (B, G, K, 1)."""
    return {name: pose_rewards[name][..., None] * torch.nan for name in names}


def slope(names: Sequence[str], examples: Sequence[Example], rollout, retriever: Retriever, base_rates: Tensor,
          pose_rewards: dict[str, Tensor], weights: dict[str, float], **how) -> Tensor | None:
    """The slopes of these rewards at the sampled poses, each divided by its spread, weighed and added: (B, G, K, 144).
    None where the examples, all of one task, have none of the rewards.

    pose_rewards: name -> (B, G, K), as they were scored. how: `normalize` and `baseline` of `group_advantage`. A reward
    whose tensor carries no gradient ends in a ValueError."""
    names, total = [name for name in names if examples[0].task in rewards.REWARDS[name].tasks], None
    if not names:
        return total
    with torch.enable_grad():
        pose = rollout.pose.detach().requires_grad_()
        context = rewards.Context(examples, rollout.answers, rot6d_to_matrix(pose.unflatten(-1, (24, 6))), retriever,
                                  base_rates)
        scored = {name: rewards.run_reward(name, rewards.REWARDS[name].function, context, pose.shape[:3])
                  for name in names}
    for name, reward in scored.items():
        if not reward.requires_grad:
            raise ValueError(f"the reward `{name}` is said to have a slope in rewards.py, and what its function gives "
                             "does not depend on the poses in a way that torch can differentiate; take the mark away")
        valid = rollout.has_pose[..., None] & ~pose_rewards[name].isnan()  # (B, G, K)
        by_pose, = torch.autograd.grad(reward.nansum(), pose, retain_graph=True)  # (B, G, K, 144)
        # What an advantage is multiplied by, 1 / spread, is read off the advantages themselves.
        A, difference = (group_advantage(pose_rewards[name].flatten(1), valid.flatten(1), **how | unit).abs().sum(-1)
                         for unit in ({}, {"normalize": "none"}))  # (B,) each
        by_spread = (A / difference).nan_to_num(0.0)[:, None, None, None]  # 0 / 0 where there is none
        total = weights[name] * by_spread * by_pose.where(valid[..., None], 0.0) + (0.0 if total is None else total)
    return total
