"""What the pictures count: limbs that are hidden, spreads, rank correlations, means over steps."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from lab import bodies, curves, pictures, uncertainty
from body import axis_angle_to_matrix, forward_kinematics
from real.smpl import load_body
from rewards import REWARDS
from builtin.poses import sample_poses

BODY = load_body()


def test_an_arm_behind_the_body_is_hidden_and_the_one_before_it_is_not():
    """Arms out, facing the camera; then turned so that the left arm points away from it."""
    facing = torch.eye(3).repeat(1, 24, 1, 1)
    turned = bodies.turned(facing, np.pi / 2)
    left, right, *feet = uncertainty.visible_shares(BODY, torch.cat([facing, turned]), torch.zeros(2, 10)).T
    assert left[0] > .98 and right[0] > .98 and min(foot[0] for foot in feet) > .95
    assert left[1] < .2 and right[1] > .98
    assert min(foot[1] for foot in feet) < .4 and max(foot[1] for foot in feet) > .95  # one leg covers the other


def test_spread_and_error_are_of_the_end_of_each_limb():
    true = sample_poses(4, np.random.default_rng(0))
    noise = torch.randn(4, 9, 24, 3, generator=torch.Generator().manual_seed(0))
    samples = true[:, None] @ axis_angle_to_matrix(.2 * noise)
    std, miss = uncertainty.limb_spread({"mean": samples[:, 0], "samples": samples}, true)
    for limb, joint in enumerate((22, 23, 10, 11)):  # left and right hand, left and right foot of SMPL
        places = 100 * forward_kinematics(samples)[0][:, :, joint]  # (4, 9, 3) cm
        expected = ((places - places.mean(1, keepdim=True)).square().sum(-1).sum(1) / 8).sqrt()
        torch.testing.assert_close(std[:, limb], expected)
        apart = (places[:, 0] - 100 * forward_kinematics(true)[0][:, joint]).norm(dim=-1)
        torch.testing.assert_close(miss[:, limb], apart)


def test_means_over_groups_and_spearman_by_hand():
    rng = np.random.default_rng(1)
    std, miss = torch.from_numpy(rng.random((2, 30, 4))).float()
    group = torch.from_numpy(rng.random((30, 4)) < .4)
    got = uncertainty.spread_by_group(std, miss, {"in": group, "out": ~group})
    inside = np.concatenate([std[:, i][group[:, i]].numpy() for i in (2, 3)])
    assert got["foot, in"]["n"] == len(inside) and got["foot, in"]["std_cm"] == pytest.approx(inside.mean(), rel=1e-5)
    assert got["foot, in"]["standard_error_cm"] == pytest.approx(inside.std(ddof=1) / len(inside) ** .5, rel=1e-4)
    outside = np.concatenate([miss[:, i][~group[:, i]].numpy() for i in (0, 1)])
    assert got["hand, out"]["error_cm"] == pytest.approx(outside.mean(), rel=1e-5)
    rank = lambda x: np.argsort(np.argsort(x))
    spearman = [1 - 6 * ((rank(a) - rank(b)) ** 2).sum() / (30 * (30 ** 2 - 1))
                for a, b in zip(std.T.numpy(), miss.T.numpy())]
    assert got["rank_correlation"] == pytest.approx(np.mean(spearman))


def test_topics_of_statements_belong_to_the_limb_they_speak_of():
    topics = {s.topic for s in uncertainty.captions.STATEMENTS}
    of = [{topic for topic in topics if topic.startswith(words)} for _, words in uncertainty.LIMBS]
    assert {"left hand height [cm]", "left elbow [deg]", "hand to hand [cm]"} <= of[0] and "right elbow [deg]" in of[1]
    assert {"left knee [deg]", "left foot to ground [cm]", "foot to foot [cm]"} <= of[2] and "right knee [deg]" in of[3]
    assert not of[0] & of[2] and "posture" not in set.union(*of) and "trunk forward [deg]" not in set.union(*of)


@pytest.mark.parametrize("evaluations, shown", [(1, [0]), (2, [0, 150]), (4, [0, 150, 300, 450]),
                                                (31, [0, 1200, 2250, 3300, 4500])])
def test_the_progression_shows_at_most_five_steps_with_first_and_last(evaluations, shown, monkeypatch):
    poses = torch.randn(evaluations, 4, 144, generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{"step": 0, "val_poses": poses[0]}, {"step": 1}]
    rows += [{"step": 150 * i, "val_poses": poses[i]} for i in range(1, evaluations)]
    columns = {}
    monkeypatch.setattr(pictures, "grid", lambda path, examples, given, body: columns.update(given))
    monkeypatch.setattr(pictures, "followed_examples", lambda split, seed: [SimpleNamespace(rotmats=torch.eye(3))])
    pictures.progression(None, rows, None, None)
    assert list(columns) == ["true pose", *(f"step {step}" for step in shown)]
    expected = pictures.rot6d_to_matrix(torch.tensor(poses[-1]).unflatten(-1, (24, 6)))
    torch.testing.assert_close(columns[f"step {shown[-1]}"], expected)


def test_without_the_log_there_is_no_progression_and_no_fault(monkeypatch):
    monkeypatch.setattr(pictures, "followed_examples", lambda *_: [])
    monkeypatch.setattr(pictures, "true_poses", lambda *_: {})
    monkeypatch.setattr(pictures, "grid", lambda *_: pytest.fail("nothing to draw"))
    pictures.progression(None, [{"step": 3}], None, None)


def test_a_smoothed_curve_is_the_mean_of_the_last_steps():
    axis = Figure().subplots()
    curves.plot_smoothed(axis, [(3, 1.0), (5, 3.0), (9, 8.0)], 2)
    curves.plot_smoothed(axis, [(3, 1.0), (5, 3.0)], 15)
    assert axis.lines[0].get_xydata().tolist() == [[5, 2], [9, 5.5]] and axis.lines[1].get_xydata().tolist() == [[5, 2]]


def test_each_reward_of_the_table_has_a_curve(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "plot_smoothed", lambda axis, points, width, **style: drawn.append(style.get("label")))
    monkeypatch.setitem(REWARDS, "mine", REWARDS["joint"])
    curves.curves(tmp_path / "c.png", [{"step": 1} | dict.fromkeys(REWARDS, 0.5)])
    assert set(REWARDS) <= set(drawn)
