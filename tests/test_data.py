"""Words are true of their poses, and draws repeat with their seed."""

import numpy as np
import pytest
import torch

import captions
import data
from builtin import poses
from builtin.splits import make_split
from builtin.tiny import corpus


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(1)
    return make_split(poses.sample_poses(40, rng), rng, size=32)


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
    blind = make_split(split.rotmats, np.random.default_rng(0), images=False)
    with pytest.raises(ValueError, match="without"):
        data.make_example(blind, "image2pose", 0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="no task"):
        data.make_example(split, "pose2text", 0, np.random.default_rng(0))
    corpus(blind, 3, np.random.default_rng(0))
