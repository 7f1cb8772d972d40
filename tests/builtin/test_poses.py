"""Made-up poses: rotations that joints allow, and actions that look as they are called."""

import numpy as np
import torch

import body
from builtin import poses
from test_body import keys


def test_sampler_makes_rotations_and_repeats():
    first, again, other = (poses.sample_poses(200, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.shape == (200, 24, 3, 3) and torch.equal(first, again) and not torch.equal(first, other)
    assert torch.allclose(first @ first.mT, torch.eye(3).expand_as(first), atol=1e-5)
    assert torch.allclose(torch.linalg.det(first), torch.ones(200, 24), atol=1e-5)
    assert torch.allclose(body.remove_heading(first), first, atol=1e-4)
    assert len(keys(first)) == 200


def test_knees_and_elbows_bend_one_way_only():
    rotmats = poses.sample_poses(3000, np.random.default_rng(0))
    for name, axis in (("knee", (1, 0, 0)), ("left_elbow", (0, -1, 0)), ("right_elbow", (0, 1, 0))):
        sides = ("left_knee", "right_knee") if name == "knee" else (name,)
        for side in sides:
            vector = body.matrix_to_axis_angle(rotmats[:, body.JOINT[side]])
            bend = torch.rad2deg(vector @ torch.tensor(axis, dtype=torch.float))
            assert -0.01 <= bend.min() and bend.max() <= 152.1
            assert (torch.rad2deg(vector.norm(dim=-1)) - bend).abs().max() < 0.1  # about no other axis
    # Seen from outside: the ankle never lies in front of the line from hip through knee, in the thigh's own frame.
    joints, turned = body.forward_kinematics(rotmats)
    for side in ("left", "right"):
        hip, knee, ankle = (body.JOINT[f"{side}_{name}"] for name in ("hip", "knee", "ankle"))
        shank = turned[:, hip].mT @ (joints[:, ankle] - joints[:, knee])[..., None]
        assert shank[:, 2].max() < 0.0


def test_head_and_trunk_stay_in_their_limits():
    rotmats = poses.sample_poses(3000, np.random.default_rng(0))
    joint = body.JOINT
    for first, last, most in (("spine1", "spine3", 110), ("neck", "head", 100)):
        chain = torch.eye(3)
        for name in [n for n in ("spine1", "spine2", "spine3", "neck", "head")
                     if joint[first] <= joint[n] <= joint[last] and n[:4] in (first[:4], last[:4])]:
            chain = chain @ rotmats[:, joint[name]]
        assert torch.rad2deg(body.matrix_to_axis_angle(chain).norm(dim=-1)).max() < most
    assert torch.equal(rotmats[:, 22:], torch.eye(3).expand(3000, 2, 3, 3))  # hands: as in captured poses


def test_actions_look_as_they_are_called(monkeypatch):
    def one(action: str) -> torch.Tensor:
        monkeypatch.setattr(poses, "ACTIONS", {action: actions[action]})
        return body.forward_kinematics(poses.sample_poses(300, np.random.default_rng(0)))[0]

    actions, j = dict(poses.ACTIONS), body.JOINT
    usual = lambda condition: condition.float().mean() > 0.5  # noqa: E731  (limbs are swapped now and then)
    up = one("hands up")
    assert usual(up[:, j["left_wrist"], 1] > up[:, j["head"], 1])
    point = one("point")
    assert usual(torch.maximum(point[:, j["left_wrist"], 2], point[:, j["right_wrist"], 2]) > 0.35)
    sit = one("sit")
    assert usual(sit[:, j["left_knee"], 2] > 0.3) and usual(sit[:, j["left_ankle"], 1] < -0.35)
    kneel = one("kneel")
    assert usual(kneel[:, j["right_ankle"], 2] < kneel[:, j["right_knee"], 2] - 0.25)
    bent = one("bend over")
    assert usual(bent[:, j["head"], 2] > 0.3) and usual(bent[:, j["left_wrist"], 1] < 0)
    assert usual(one("lie on back")[:, j["head"], 1].abs() < 0.2)
    assert usual(one("handstand")[:, j["head"], 1] < -0.4)
