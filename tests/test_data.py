"""Splits share no pose, words are true of their poses, and draws repeat with their seed."""

import numpy as np
import pytest
import torch

import captions
import data
from builtin.tiny import corpus
from body import axis_rotation
from builtin import poses
from builtin.retriever import retrieval_poses


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(1)
    return data.make_split(poses.sample_poses(40, rng), rng, size=32)


def same(a: data.Split, b: data.Split) -> bool:
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(vars(a).values(), vars(b).values()))


def keys(rotmats: torch.Tensor) -> set[bytes]:
    """One hashable value for every pose."""
    return {pose.tobytes() for pose in rotmats.numpy()}


# ---------------------------------------------------------------- splits and pictures

def test_splits_repeat_bit_for_bit():
    counts = {"train": 20, "test": 10}
    first, again = (data.load_splits(counts=counts, seed=5) for _ in range(2))
    assert same(first["train"], again["train"]) and same(first["test"], again["test"])
    assert same(first["test"], data.load_splits(counts={"test": 10}, seed=5)["test"])
    other = data.load_splits(counts=counts, seed=6)
    assert not np.array_equal(first["train"].images, other["train"].images)


def test_splits_and_retrieval_poses_share_no_pose():
    splits = data.load_splits(counts={"train": 300, "val": 200, "test": 200}, images=False)
    sets = [split.rotmats for split in splits.values()] + list(retrieval_poses(None, 300))
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
            example = data.make_example(split, task, index, rng)
            assert split.holds[index, list(captions.parse(example.answer))].all(), example.answer
            assert np.array_equal(example.holds, split.holds[index])


def test_an_upright_person_is_upright_before_a_camera_that_looks_down(monkeypatch):
    monkeypatch.setattr(data, "axis_rotation", lambda axis, _: axis_rotation(axis, torch.tensor([15., 15] if axis == 0
                                                                                                else [0., 180])))
    split = data.make_split(torch.eye(3).expand(2, 24, 3, 3).clone(), np.random.default_rng(0), images=False)
    leaning = captions.parse("leaning back")[0], captions.parse("leaning slightly forward")[0]
    assert captions.pose_holds(split.image_rotmats)[:, leaning].any(1).all()  # so it would be, seen by the camera
    assert split.holds[:, captions.parse("the back is upright")].all() and not split.holds[:, leaning].any()


# ---------------------------------------------------------------- examples

def test_every_description_is_true_and_read_back(split):
    rng = np.random.default_rng(0)
    for index in range(40):
        example = data.make_example(split, "text2pose", index, rng)
        assert example.image is None and example.answer == captions.POSE_ANSWER
        assert torch.equal(example.rotmats, split.rotmats[index])
        assert captions.pose_holds(example.rotmats)[list(example.statements)].all()
        assert set(captions.parse(example.prompt)) == set(example.statements)  # the instruction itself says nothing
        assert example.caption in example.prompt and captions.parse(example.caption)
        example = data.make_example(split, "image2text", index, rng)
        assert captions.pose_holds(split.rotmats[index])[list(example.statements)].all()
        assert set(captions.parse(example.answer)) == set(example.statements)
        assert example.answer.endswith(" " + captions.POSE_ANSWER) and not captions.parse(example.prompt)
        assert torch.equal(example.rotmats, split.image_rotmats[index])
        assert np.array_equal(example.image, split.images[index])


def test_tasks_and_where_the_pose_token_stands(split):
    rng = np.random.default_rng(0)
    batches = [data.draw_batch(split, dict.fromkeys(data.TASKS, 1), 20, rng) for _ in range(60)]
    assert all(len({example.task for example in batch}) == 1 for batch in batches)
    batch = sum(batches, [])
    shares = [sum(example.task == task for example in batch) / len(batch) for task in data.TASKS]
    assert min(shares) > 0.1 and max(shares) < 0.45  # a quarter each
    for example in batch:
        assert not any(mark in example.prompt for mark in (captions.POSE_TOKEN, "<image>", "{"))
        assert example.answer.count(captions.POSE_TOKEN) == (example.task != "vqa")
        assert (example.image is None) == (example.task == "text2pose")
        if example.task == "vqa":
            assert example.statements == () and example.answer.endswith(".") and example.prompt.endswith("?")
    assert len({example.prompt for example in batch if example.task == "image2pose"}) >= 3


def test_words_are_drawn_afresh_yet_repeat_with_the_seed(split):
    def prompts(seed):
        rng = np.random.default_rng(seed)
        return [data.make_example(split, "text2pose", 0, rng).prompt for _ in range(10)]

    assert len(set(prompts(0))) > 5 and prompts(0) == prompts(0) != prompts(1)
    assert corpus(split, 20, np.random.default_rng(0)) == corpus(split, 20, np.random.default_rng(0))
    assert len(corpus(split, 20, np.random.default_rng(0))) == 2 * 20 * len(data.TASKS)


def test_what_cannot_be_made_is_refused(split):
    blind = data.make_split(split.rotmats, np.random.default_rng(0), images=False)
    with pytest.raises(ValueError, match="without"):
        data.make_example(blind, "image2pose", 0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="no task"):
        data.make_example(split, "pose2text", 0, np.random.default_rng(0))
    corpus(blind, 3, np.random.default_rng(0))
