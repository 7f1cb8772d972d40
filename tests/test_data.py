import math

import numpy as np
import pytest
import torch

import body
import captions
import data
from builtin import poses


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(1)
    return data.make_split(poses.sample_poses(40, rng), rng, size=32)


def same(a: data.Split, b: data.Split) -> bool:
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(vars(a).values(), vars(b).values()))


def keys(rotmats: torch.Tensor) -> set[bytes]:
    """One hashable value for every pose."""
    return {pose.tobytes() for pose in rotmats.numpy()}


# ---------------------------------------------------------------- made-up poses

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
    sets = [split.rotmats for split in splits.values()] + list(data.retrieval_poses(None, 300))
    assert len(set().union(*map(keys, sets))) == sum(map(len, sets)) == 1300


def test_the_camera_turns_the_root_only(split):
    assert torch.equal(split.image_rotmats[:, 1:], split.rotmats[:, 1:])
    turn = split.image_rotmats[:, 0] @ split.rotmats[:, 0].mT
    lean = torch.rad2deg(torch.acos(turn[:, 1, 1].clamp(-1, 1)))  # of the vertical
    assert lean.max() < 15.1
    heading = torch.rad2deg(torch.atan2(turn[:, 0, 2], turn[:, 0, 0]))
    assert heading.abs().median() < 60 and heading.min() < -60 and heading.max() > 60  # mostly facing the camera
    assert np.array_equal(split.holds, captions.pose_holds(split.rotmats).numpy())
    assert np.array_equal(split.image_holds, captions.pose_holds(split.image_rotmats).numpy())


@pytest.fixture
def white_on_black(monkeypatch):
    """Pictures in which the body is bright and everything else black."""
    white = lambda model, palette: torch.full((len(palette), len(model.v_template), 3), 9.0)  # noqa: E731
    monkeypatch.setattr(body, "part_colors", white)
    black = lambda colors, size, **_: torch.full((1, 3, size, size), -9.0)  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "interpolate", black)


def test_a_raised_left_hand_is_left_in_picture_and_words(white_on_black, monkeypatch):
    rotmats = torch.eye(3).repeat(8, 24, 1, 1)
    rotmats[:, body.JOINT["left_shoulder"]] = body.axis_rotation(2, torch.tensor(60.0))
    rotmats[:, body.JOINT["right_shoulder"]] = body.axis_rotation(2, torch.tensor(75.0))
    monkeypatch.setattr(data, "axis_rotation", lambda axis, degrees: body.axis_rotation(axis, 0 * degrees))  # face the camera
    split = data.make_split(rotmats, np.random.default_rng(0))
    for image in split.images.max(-1) > 128:
        rows, columns = np.nonzero(image)
        top = columns[rows < rows.min() + 3]
        assert top.min() > columns[rows > rows.max() - 3].max()  # the hand is right of the feet: the viewer's right
    holds = dict(zip([statement.key for statement in captions.STATEMENTS], split.image_holds[0]))
    assert holds["the left hand is above the head"] and not holds["the right hand is above the head"]


def test_the_body_fills_the_crop_and_is_not_cut(white_on_black):
    rng = np.random.default_rng(5)
    images = data.make_split(poses.sample_poses(64, rng), rng).images.max(-1) > 128
    assert not (images[:, 0].any() or images[:, -1].any() or images[:, :, 0].any() or images[:, :, -1].any())
    extent = np.maximum(images.any(1).sum(1), images.any(2).sum(1))
    assert extent.min() > 38 and extent.mean() > 48  # pixels of 64


# ---------------------------------------------------------------- examples

def test_every_description_is_true_and_read_back(split):
    rng = np.random.default_rng(0)
    for index in range(40):
        example = data.make_example(split, "text2pose", index, rng)
        assert example.image is None and example.answer == captions.POSE_ANSWER
        assert torch.equal(example.rotmats, split.rotmats[index])
        assert captions.check(example.statements, example.rotmats) == 1.0
        assert set(captions.parse(example.prompt)) == set(example.statements)  # the instruction itself says nothing
        assert example.caption in example.prompt and captions.parse(example.caption)
        example = data.make_example(split, "image2text", index, rng)
        assert captions.check(example.statements, example.rotmats) == 1.0
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
    assert data.corpus(split, 20, np.random.default_rng(0)) == data.corpus(split, 20, np.random.default_rng(0))
    assert len(data.corpus(split, 20, np.random.default_rng(0))) == 2 * 20 * len(data.TASKS)


def test_what_cannot_be_made_is_refused(split):
    blind = data.make_split(split.rotmats, np.random.default_rng(0), images=False)
    with pytest.raises(ValueError, match="without"):
        data.make_example(blind, "image2pose", 0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="no task"):
        data.make_example(split, "pose2text", 0, np.random.default_rng(0))
    data.corpus(blind, 3, np.random.default_rng(0))


# ---------------------------------------------------------------- motion capture

def amass(path, poses=None, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, poses=np.zeros((4, 156), np.float32) if poses is None else poses, **arrays)
    return path


def test_amass_frame_joints_and_frame_rate(tmp_path):
    raw = np.zeros((100, 156))
    raw[:, 0] = math.pi / 2  # upright and facing the viewer, in AMASS's z-up world
    raw[:, 3 * 18] = -1.0  # left elbow
    raw[:, 66:] = 0.7  # fingers of SMPL+H
    rotmats = amass.read_amass(amass(tmp_path / "a.npz", raw, mocap_framerate=120.0))
    assert rotmats.shape == (10, 24, 3, 3)
    assert torch.allclose(rotmats[:, 0], torch.eye(3).expand(10, 3, 3), atol=1e-6)
    assert torch.allclose(rotmats[0, 18], body.axis_rotation(0, torch.rad2deg(torch.tensor(-1.0))), atol=1e-5)
    assert torch.equal(rotmats[:, 22:], torch.eye(3).expand(10, 2, 3, 3))
    thinned = amass(tmp_path / "b.npz", raw, mocap_framerate=120.0, frame_idx=np.arange(100))
    assert len(amass.read_amass(thinned)) == 100


def test_amass_faults_name_the_file(tmp_path):
    bad = np.zeros((4, 156))
    bad[2, 5] = np.nan
    np.savez(tmp_path / "no_poses.npz", trans=np.zeros(3))
    whole = amass(tmp_path / "whole.npz", np.random.default_rng(0).random((50, 156))).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:len(whole) // 2])
    (tmp_path / "text.npz").write_text("not an npz")
    np.savez(tmp_path / "pickle.npz", poses=np.array([{"a": 1}], dtype=object))
    for name, shape in (("narrow", (4, 63)), ("empty", (0, 156))):
        amass(tmp_path / f"{name}.npz", np.zeros(shape))
    amass(tmp_path / "nan.npz", bad)
    for name, message in {"no_poses": "no array `poses`", "cut": "cannot be read", "text": "cannot be read",
                          "pickle": "cannot be read", "absent": "cannot be read", "nan": "NaN or infinity in 1 frames",
                          "narrow": r"found float64 \(4, 63\)", "empty": r"\(0, 156\)"}.items():
        with pytest.raises(ValueError, match=message) as error:
            amass.read_amass(tmp_path / f"{name}.npz")
        assert f"{name}.npz" in str(error.value) and "\n" not in str(error.value)


def test_amass_folders_make_splits(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        data.load_splits(tmp_path / "nowhere")
    rng = np.random.default_rng(0)
    for i in range(12):
        amass(tmp_path / "flat" / f"subject{i}" / "walk.npz", rng.normal(0, .3, (5, 156)), frame_idx=np.arange(5))
    with pytest.raises(ValueError, match="no npz"):
        amass.amass_files(tmp_path / "flat" / "subject0", "val")  # its only file is in test
    files = [amass.amass_files(tmp_path / "flat", name) for name in amass.SPLITS]
    assert list(map(len, files)) == [8, 2, 2] and len(set(sum(files, []))) == 12
    for name, count in (("train", 3), ("val", 1), ("test", 2)):
        for i in range(count):
            amass(tmp_path / "split" / name / f"{i}.npz", rng.normal(0, .3, (5, 156)), frame_idx=np.arange(5))
    assert [len(amass.amass_files(tmp_path / "split", name)) for name in amass.SPLITS] == [3, 1, 2]
    splits = data.load_splits(tmp_path / "split", images=False)
    sets = [split.rotmats for split in splits.values()]
    assert list(map(len, sets)) == [30, 5, 10] and len(set().union(*map(keys, sets))) == 45  # train is mirrored too
    reward, judge = data.retrieval_poses(tmp_path / "flat", 1000)
    assert len(reward) == len(judge) == 40 and not keys(reward) & keys(judge)
    with pytest.raises(ValueError, match="two train files"):
        one = amass(tmp_path / "one" / "train" / "0.npz").parent.parent
        (one / "val").mkdir(), (one / "test").mkdir()
        data.retrieval_poses(one, 10)
