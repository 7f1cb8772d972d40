"""Pictures: left is left, and the body fills the crop without being cut."""

import numpy as np
import pytest
import torch

import body
import captions
from builtin import poses, renderer, splits
from builtin.splits import make_split


@pytest.fixture
def white_on_black(monkeypatch):
    """Pictures in which the body is bright and everything else black."""
    white = lambda model, palette: torch.full((len(palette), len(model.v_template), 3), 9.0)  # noqa: E731
    monkeypatch.setattr(renderer, "part_colors", white)
    black = lambda colors, size, **_: torch.full((1, 3, size, size), -9.0)  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "interpolate", black)


def test_a_raised_left_hand_is_left_in_picture_and_words(white_on_black, monkeypatch):
    rotmats = torch.eye(3).repeat(8, 24, 1, 1)
    rotmats[:, body.JOINT["left_shoulder"]] = body.axis_rotation(2, torch.tensor(60.0))
    rotmats[:, body.JOINT["right_shoulder"]] = body.axis_rotation(2, torch.tensor(75.0))
    facing = lambda axis, degrees: body.axis_rotation(axis, 0 * degrees)  # noqa: E731
    monkeypatch.setattr(splits, "axis_rotation", facing)  # everyone faces a camera that does not lean
    split = make_split(rotmats, np.random.default_rng(0))
    for image in split.images.max(-1) > 128:
        rows, columns = np.nonzero(image)
        top = columns[rows < rows.min() + 3]
        assert top.min() > columns[rows > rows.max() - 3].max()  # the hand is right of the feet: the viewer's right
    holds = dict(zip([statement.key for statement in captions.STATEMENTS], split.holds[0]))
    assert holds["the left hand is above the head"] and not holds["the right hand is above the head"]


def test_the_body_fills_the_crop_and_is_not_cut(white_on_black):
    rng = np.random.default_rng(5)
    images = make_split(poses.sample_poses(64, rng), rng).images.max(-1) > 128
    assert not (images[:, 0].any() or images[:, -1].any() or images[:, :, 0].any() or images[:, :, -1].any())
    extent = np.maximum(images.any(1).sum(1), images.any(2).sum(1))
    assert extent.min() > 38 and extent.mean() > 48  # pixels of 64
