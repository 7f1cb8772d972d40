"""Which joint decides what: the part of a reward that depends on each joint of a pose, so that each is compared by it.

    joint       eq. 7 over those joints only that joint j moves:   1 / sqrt(sum over moved i of ||J_i - J*_i||^2)
    statements  of those statements of the sentence that joint j decides, the share that holds
A pose has one reward in the paper, and every joint hears of all the others' luck. But of 24 joints one bends the elbow,
and five, on average, decide a statement. Where a joint decides nothing there is no part: NaN.
Read next: ../rewards.py, whose table names these functions.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

import captions
from body import PARENTS, axis_angle_to_matrix, forward_kinematics
from builtin.denials import KINDS
from builtin.poses import sample_poses

# MOVES[j, i]: does turning joint j move the place of joint i, somewhere below it in the tree?
MOVES = torch.zeros(24, 24, dtype=torch.bool)
for _joint in range(1, 24):
    MOVES[:, _joint] = MOVES[:, PARENTS[_joint]]
    MOVES[PARENTS[_joint], _joint] = True


def joint_by_joint(c) -> Tensor:
    """Of a rewards.Context: (n, G, K, 24). The ends of limbs move no joint."""
    squares = (c.joints - c.true_joints).square().sum(-1) @ MOVES.to(c.joints).T  # (n, G, K, 24) square metres
    return (1 / squares.sqrt().clamp_min(1e-3)).where(MOVES.any(-1).to(squares.device), torch.nan)


def statements_by_joint(c) -> Tensor:
    """Of a rewards.Context: (n, G, K, 24)."""
    decides = decides_statement().to(c.said)  # (24, 2 S)
    return c.said_and_held @ decides.T / (c.said @ decides.T)[:, None, None]  # 0 / 0 where it decides none of them


@cache
def decides_statement() -> Tensor:
    """Whether turning a joint decides a statement, or its denial: bool (24, 2 S). Found by trying: each joint of 200
    poses is turned at random. It decides what it changes at least a tenth as often as the joint does that changes it
    most."""
    rotmats, generator = sample_poses(200, np.random.default_rng(0)), torch.Generator().manual_seed(0)
    before, changed = captions.measure(*forward_kinematics(rotmats)), []
    for joint in range(24):
        turned = rotmats.clone()
        turned[:, joint] = turned[:, joint] @ axis_angle_to_matrix(torch.randn(200, 3, generator=generator))
        after = captions.measure(*forward_kinematics(turned))  # (200, M)
        same = ((after - before).abs() < 0.01) | (after.isnan() & before.isnan())
        changed.append((~same).float().mean(0))
    share = torch.stack(changed)[:, [captions.MEASURES.index(s.measure) for s in captions.STATEMENTS]]  # (24, S)
    decides = share > 0.1 * share.amax(0)
    return torch.cat([decides, decides.float() @ KINDS > 0], -1)
