"""AMASS: its frame and joints, faults that name the file, and splits of files."""

import math

import numpy as np
import pytest
import torch

import body
from builtin import retriever
from builtin.poses import sample_poses
from builtin.retriever import retrieval_poses
from builtin.splits import load_splits
from real import amass
from test_body import keys


def motion(path, poses=None, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, poses=np.zeros((4, 156), np.float32) if poses is None else poses, **arrays)
    return path


def test_amass_frame_joints_and_frame_rate(tmp_path):
    raw = np.zeros((100, 156))
    raw[:, 0] = math.pi / 2  # upright and facing the viewer, in AMASS's z-up world
    raw[:, 3 * 18] = -1.0  # left elbow
    raw[:, 66:] = 0.7  # fingers of SMPL+H
    rotmats = amass.read_amass(motion(tmp_path / "a.npz", raw, mocap_framerate=120.0))
    assert rotmats.shape == (10, 24, 3, 3)
    assert torch.allclose(rotmats[:, 0], torch.eye(3).expand(10, 3, 3), atol=1e-6)
    assert torch.allclose(rotmats[0, 18], body.axis_rotation(0, torch.rad2deg(torch.tensor(-1.0))), atol=1e-5)
    assert torch.equal(rotmats[:, 22:], torch.eye(3).expand(10, 2, 3, 3))
    thinned = motion(tmp_path / "b.npz", raw, mocap_framerate=120.0, frame_idx=np.arange(100))
    assert len(amass.read_amass(thinned)) == 100


def test_the_release_in_smplx_has_its_own_name_for_the_rate(tmp_path, capsys):
    """2,400 frames at 120 a second are 240 poses, whatever the release calls the rate."""
    for name, width in (("mocap_framerate", 156), ("mocap_frame_rate", 165)):
        path = motion(tmp_path / f"{name}.npz", np.zeros((2400, width)), **{name: 120.0})
        assert len(amass.read_amass(path)) == 240
    with pytest.raises(ValueError, match="`mocap_frame_rate` must be one number above 0"):
        amass.read_amass(motion(tmp_path / "0.npz", mocap_frame_rate=0.0))
    assert capsys.readouterr().out == ""


def test_motions_without_a_rate_are_told_once_a_data_set(tmp_path, capsys):
    for i in range(3):
        assert len(amass.read_amass(motion(tmp_path / "SET" / f"s{i}" / "1_poses.npz", np.zeros((50, 156))))) == 50
    told = capsys.readouterr().out
    assert told.count("\n") == 1 and "SET: motions without mocap_framerate or mocap_frame_rate are taken whole" in told


def test_poses_of_smpl_itself_have_hands(tmp_path):
    raw = np.zeros((4, 72))
    raw[:, 0], raw[:, 3 * 22] = math.pi / 2, .5
    rotmats = amass.read_amass(motion(tmp_path / "a.npz", raw, mocap_framerate=12.0))
    assert torch.allclose(rotmats[:, 0], torch.eye(3).expand(4, 3, 3), atol=1e-6)
    assert torch.allclose(body.matrix_to_axis_angle(rotmats[:, 22]), torch.tensor([.5, 0, 0]).expand(4, 3), atol=1e-6)


@pytest.mark.parametrize("places", [("a/{}", "b/{}", "c/{}"), ("train/a/{}", "val/b/{}", "test/c/{}")])
def test_shapes_among_the_motions_are_no_motions(places, tmp_path):
    """As AMASS is downloaded: shape.npz beside SMPL+H's motions, neutral_stagei.npz beside SMPL-X's."""
    for place in places:
        for name in ("1_poses.npz", "2_stageii.npz"):
            motion(tmp_path / place.format(name), np.zeros((3, 165 if "ii" in name else 156)), mocap_framerate=12.0)
        for name in ("shape.npz", "neutral_stagei.npz", "female_stagei.npz"):
            np.savez(tmp_path / place.format(name), betas=np.zeros(16), gender="neutral")
    for name in amass.SPLITS:
        assert len(amass.load_amass(tmp_path, name)) == 6


def test_amass_faults_name_the_file(tmp_path):
    bad = np.zeros((4, 156))
    bad[2, 5] = np.nan
    np.savez(tmp_path / "no_poses.npz", trans=np.zeros(3))
    whole = motion(tmp_path / "whole.npz", np.random.default_rng(0).random((50, 156))).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:len(whole) // 2])
    (tmp_path / "text.npz").write_text("not an npz")
    np.savez(tmp_path / "pickle.npz", poses=np.array([{"a": 1}], dtype=object))
    for name, shape in (("narrow", (4, 63)), ("empty", (0, 156))):
        motion(tmp_path / f"{name}.npz", np.zeros(shape))
    motion(tmp_path / "nan.npz", bad)
    for name, message in {"no_poses": "no array `poses`", "cut": "cannot be read", "text": "cannot be read",
                          "pickle": "cannot be read", "absent": "cannot be read", "nan": "NaN or infinity in 1 frames",
                          "narrow": r"found float64 \(4, 63\)", "empty": r"\(0, 156\)"}.items():
        with pytest.raises(ValueError, match=message) as error:
            amass.read_amass(tmp_path / f"{name}.npz")
        assert f"{name}.npz" in str(error.value) and "\n" not in str(error.value)


def test_amass_folders_make_splits(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        load_splits(tmp_path / "nowhere")
    rng = np.random.default_rng(0)
    for i in range(12):
        motion(tmp_path / "flat" / f"subject{i}" / "walk.npz", rng.normal(0, .3, (5, 156)), frame_idx=np.arange(5))
    with pytest.raises(ValueError, match="no npz"):
        amass.amass_files(tmp_path / "flat" / "subject0", "val")  # its only file is in test
    files = [amass.amass_files(tmp_path / "flat", name) for name in amass.SPLITS]
    assert list(map(len, files)) == [8, 2, 2] and len(set(sum(files, []))) == 12
    for name, count in (("train", 3), ("val", 1), ("test", 2)):
        for i in range(count):
            motion(tmp_path / "split" / name / f"{i}.npz", rng.normal(0, .3, (5, 156)), frame_idx=np.arange(5))
    assert [len(amass.amass_files(tmp_path / "split", name)) for name in amass.SPLITS] == [3, 1, 2]
    splits = load_splits(tmp_path / "split", images=False)
    sets = [split.rotmats for split in splits.values()]
    assert list(map(len, sets)) == [30, 5, 10] and len(set().union(*map(keys, sets))) == 45  # train is mirrored too
    reward, judge = retrieval_poses(tmp_path / "flat", 1000)
    assert len(reward) == len(judge) == 40 and not keys(reward) & keys(judge)
    with pytest.raises(ValueError, match="two train files"):
        one = motion(tmp_path / "one" / "train" / "0.npz").parent.parent
        (one / "val").mkdir(), (one / "test").mkdir()
        retrieval_poses(one, 10)


def test_splits_and_retrieval_models_share_no_subject(tmp_path, monkeypatch):
    """AMASS's DATASET/SUBJECT/motion.npz: all motions of a subject go one way."""
    for i, count in enumerate([1, 5, 2, 3, 1, 1, 4, 2, 1, 1, 3, 6]):
        for nth in range(count):
            motion(tmp_path / f"set{i % 2}" / f"{i // 2:02d}" / f"walk_{nth}_poses.npz", np.zeros((1, 156)))
    files = [amass.amass_files(tmp_path, name) for name in amass.SPLITS]
    of = [{path.parent for path in group} for group in files]
    assert sum(map(len, files)) == 30 and list(map(len, of)) == [8, 2, 2] and len(set.union(*of)) == 12
    read = []
    monkeypatch.setattr(retriever, "read_amass",
                        lambda path: read.append(path) or sample_poses(1, np.random.default_rng(len(read))))
    first = len(retriever.retrieval_poses(tmp_path, 1000)[0]) // 2  # mirrored too
    reward, judge = ({path.parent for path in part} for part in (read[:first], read[first:]))
    assert reward | judge == of[0] and not reward & judge and abs(2 * first - len(read)) < 6


def test_a_subject_may_be_in_the_name_alone(tmp_path):
    for i in range(30):
        motion(tmp_path / f"cmu_{i % 10:02d}_{i // 10:02d}_poses.npz", np.zeros((1, 156)))
    files = [amass.amass_files(tmp_path, name) for name in amass.SPLITS]
    assert list(map(len, files)) == [24, 3, 3] and len({path.stem[:6] for path in files[2]}) == 1
    assert len(amass.subjects(files[2], 1)) == 1 and len(amass.subjects(files[2], 2)) == 3  # one subject: by file
