"""Splits share no pose, repeat with their seed, and the camera that looks at them changes no word."""

import numpy as np
import pytest
import torch

import captions
from body import axis_rotation
from builtin import poses, splits
from builtin.retriever import retrieval_poses
from data import Split, make_example
from test_body import keys


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(1)
    return splits.make_split(poses.sample_poses(40, rng), rng, size=32)


def same(a: Split, b: Split) -> bool:
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(vars(a).values(), vars(b).values()))


def test_splits_repeat_bit_for_bit():
    counts = {"train": 20, "test": 10}
    first, again = (splits.load_splits(counts=counts, seed=5) for _ in range(2))
    assert same(first["train"], again["train"]) and same(first["test"], again["test"])
    assert same(first["test"], splits.load_splits(counts={"test": 10}, seed=5)["test"])
    other = splits.load_splits(counts=counts, seed=6)
    assert not np.array_equal(first["train"].images, other["train"].images)


def test_splits_and_retrieval_poses_share_no_pose():
    made = splits.load_splits(counts={"train": 300, "val": 200, "test": 200}, images=False)
    sets = [split.rotmats for split in made.values()] + list(retrieval_poses(None, 300))
    assert len(set().union(*map(keys, sets))) == sum(map(len, sets)) == 1300


def test_the_camera_turns_the_root_only(split):
    assert torch.equal(split.image_rotmats[:, 1:], split.rotmats[:, 1:])
    turn = split.image_rotmats[:, 0] @ split.rotmats[:, 0].mT
    lean = torch.rad2deg(torch.acos(turn[:, 1, 1].clamp(-1, 1)))  # of the vertical
    assert lean.max() < 15.1
    heading = torch.rad2deg(torch.atan2(turn[:, 0, 2], turn[:, 0, 0]))
    assert heading.abs().median() < 60 and heading.min() < -60 and heading.max() > 60  # mostly facing the camera
    assert np.array_equal(split.holds, captions.pose_holds(split.rotmats).numpy())


def test_words_about_a_picture_are_against_gravity_whichever_way_the_camera_looks(split):
    """They do not depend on the heading, and the camera's tilt, which would change some, is not theirs."""
    turned = split.rotmats.double()
    turned[:, 0] = axis_rotation(1, torch.linspace(-180, 180, 40)).double() @ turned[:, 0]
    assert np.array_equal(captions.pose_holds(turned).numpy(), split.holds)
    as_seen, rng = captions.pose_holds(split.image_rotmats).numpy(), np.random.default_rng(0)
    assert .01 < (as_seen & ~split.holds).sum() / as_seen.sum() < .1
    for index in range(40):
        for task in ("image2text", "vqa"):
            example = make_example(split, task, index, rng)
            assert split.holds[index, list(captions.parse(example.answer))].all(), example.answer
            assert np.array_equal(example.holds, split.holds[index])


def test_an_upright_person_is_upright_before_a_camera_that_looks_down(monkeypatch):
    monkeypatch.setattr(splits, "axis_rotation", lambda axis, _: axis_rotation(axis, torch.tensor([15., 15] if axis == 0
                                                                                                else [0., 180])))
    split = splits.make_split(torch.eye(3).expand(2, 24, 3, 3).clone(), np.random.default_rng(0), images=False)
    leaning = captions.parse("leaning back")[0], captions.parse("leaning slightly forward")[0]
    assert captions.pose_holds(split.image_rotmats)[:, leaning].any(1).all()  # so it would be, seen by the camera
    assert split.holds[:, captions.parse("the back is upright")].all() and not split.holds[:, leaning].any()
