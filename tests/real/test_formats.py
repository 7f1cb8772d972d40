import json
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_smpl_pickle import python2

import body
import captions
import data
import hygrpo
import rewards
import train_rft
import train_sft
from body import JOINT
from builtin import renderer
from builtin.retriever import Retriever
from builtin.tiny import build_tiny
from engine import world
from lab.frozen_sigma import freeze_sigma
from model import PosePolicy
from builtin.denials import said
from real import formats, smpl, talk
from real.amass import amass_rotmats

LEFT, RIGHT = (next(i for i, s in enumerate(captions.STATEMENTS) if s.key == f"the {side} hand is above the head")
               for side in ("left", "right"))
HAND = (.3, .2, .1)  # of SMPL's joint 22, which AMASS does not have
RNG = np.random.default_rng


def pose72(root: tuple) -> np.ndarray:
    """The left arm up, the right one down; the root as a file says it of a person upright and facing the viewer."""
    pose = np.zeros((24, 3), np.float32)
    pose[0], pose[JOINT["left_shoulder"]], pose[JOINT["right_shoulder"]] = root, (0, 0, 1.4), (0, 0, 1.4)
    pose[22] = HAND
    return pose.reshape(72)


def pose156() -> np.ndarray:
    pose = np.zeros(156)
    pose[:66] = pose72((math.pi / 2, 0, 0))[:66]
    pose[66:] = .7  # fingers
    return pose


CAMERA = pose72((math.pi, 0, 0))


def photograph() -> Image.Image:
    """The built-in body in that pose, 96 pixels high, in a white square of 128 at (40, 20) of a dark picture."""
    model = smpl.load_body()
    rotmats = body.axis_angle_to_matrix(torch.from_numpy(pose72((0, 0, 0))).view(1, 24, 3))
    vertices, _ = smpl.body_vertices(model, rotmats, torch.zeros(1, 10))
    seen = renderer.render(vertices, model.faces_tensor, renderer.part_colors(model, renderer.PALETTE[None]), 128,
                       torch.tensor([[0., -.1]]), torch.tensor([2.6]), light=torch.tensor([[0., 0, 1]]),
                       background=torch.ones(1, 3))[0].numpy()
    whole = np.full((200, 260, 3), 40, np.uint8)
    whole[20:148, 40:168] = seen
    return Image.fromarray(whole)


LEANS = {s.key for s in captions.STATEMENTS if s.topic.startswith("trunk")}
PHOTOGRAPH = photograph()
BOX = (104., 84., 128.)  # centre and side


# ---------------------------------------------------------------- each format, as its files lie on a disk

def npz_of(key: str, **other) -> dict:
    return {"imgname": np.array(["a/1.png", "a/2.png"]), "center": np.tile(np.float32(BOX[:2]), (2, 1)),
            "scale": np.full(2, BOX[2] / 200), key: np.tile(CAMERA, (2, 1)), **other}


def amass() -> dict:
    motion = {"poses": np.tile(pose156(), (3, 1)), "trans": np.zeros((3, 3)), "betas": np.zeros(16),
              "dmpls": np.zeros((3, 8)), "gender": np.array("male"), "mocap_framerate": np.array(12.0)}
    return {name: dict(motion) for name in ("train/s/1.npz", "train/s/2.npz", "val/3.npz", "test/4.npz")}


def posescript() -> dict:
    moved = np.tile(pose156(), (300, 1))
    moved[:250, 48:54] = 0  # a T-pose
    place = {"7": ["AMASS", "BioMotionLab_NTroje/s/1_poses.npz", 260], "8": ["AMASS", "CMU/s/2_poses.npz", 299]}
    said = "The Left hand is above the head, the right hand is low."
    return {"ps/ids_2_dataset_sequence_and_frame_index_100k.json": place, "ps/train_ids_100k.json": [7, 8],
            "ps/val_ids_100k.json": [8], "ps/test_ids_100k.json": [7],
            "ps/posescript_auto_100k.json": {"7": [said, said + " Straight arm.", said], "8": [said]},
            "ps/posescript_human_6293.json": {"7": said},
            "AMASS/BMLrub/s/1_poses.npz": {"poses": moved, "mocap_framerate": np.array(120.0)},
            "AMASS/CMU/s/2_poses.npz": {"poses": moved, "mocap_framerate": np.array(120.0)}}


def spin() -> dict:
    return {"set.npz": npz_of("pose", shape=np.ones((2, 10)), has_smpl=np.ones(2, np.uint8), S=np.zeros((2, 24, 4)),
                              gender=np.array(["m", "f"]), part=np.zeros((2, 24, 3))),
            "img/a/1.png": PHOTOGRAPH, "img/a/2.png": PHOTOGRAPH}


def hmr2() -> dict:
    arrays = npz_of("body_pose", betas=np.ones((2, 10)), has_body_pose=np.ones(2), pose=np.zeros(3))
    arrays |= {"scale": np.full((2, 2), BOX[2]), "imgname": arrays["imgname"].astype("S")}  # pixels
    return spin() | {"set.npz": arrays}


def bedlam() -> dict:
    return spin() | {"set.npz": npz_of("pose_cam", shape=np.ones((2, 11)), cam_int=np.zeros((2, 3, 3)))}


def threedpw() -> dict:
    F, turned = 3, body.axis_angle_to_matrix(torch.tensor([[0, -2.0, 0], [0, 1, 0], [0, .5, 0]])).double()
    look = torch.tensor([[math.pi + .2, 0, 0], [math.pi - .3, 0, 0], [math.pi, 0, 0]])  # each camera up or down
    turned = body.axis_angle_to_matrix(look).double() @ turned
    root = turned.mT @ body.axis_angle_to_matrix(torch.tensor([math.pi, 0, 0])).double()
    poses = np.tile(CAMERA.astype(float), (F, 1))
    poses[:, :3] = body.matrix_to_axis_angle(root).numpy()
    points = np.zeros((F, 3, 18))
    half = BOX[2] / 2.4
    points[:, :, 0], points[:, :, 1] = (*np.subtract(BOX[:2], half), .9), (*np.add(BOX[:2], half), .2)
    sequence = {"sequence": "walk_00", "cam_poses": np.tile(np.eye(4), (F, 1, 1)), "cam_intrinsics": np.eye(3),
                "poses": [poses], "betas": [np.ones(10)], "trans": [np.zeros((F, 3))], "poses2d": [points],
                "campose_valid": [np.array([1, 1, 0])], "genders": ["m"], "img_frame_ids": np.arange(F)}
    sequence["cam_poses"][:, :3, :3] = turned.numpy()
    images = {f"imageFiles/walk_00/image_{i:05d}.jpg": PHOTOGRAPH for i in range(2)}
    return {"sequenceFiles/train/walk_00.pkl": sequence, "sequenceFiles/test/walk_00.pkl": sequence} | images


def rpe() -> dict:
    def record(i: int) -> dict:
        return {"id": f"{i:06d}", "image": "000000.png", "real_image": f"3DPW/imageFiles/walk_00/image_{i:05d}.jpg",
                "conversations": [{"from": "human", "value": "<image>\nHow does he raise his Left hand? Give it."},
                                  {"from": "gpt", "value": "Sure, it is <POSE>."}],
                "ground_truth": {"joint_cam": [[0, 0, 0]] * 24, "fitted_joint_cam": [[0, 0, 0]] * 24, "smpl_param": {
                    "pose": CAMERA.tolist(), "shape": [1.0] * 10, "trans": [0, 0, 0], "gender": "male"},
                    "bbox": [BOX[0] - 64, BOX[1] - 64, 100, 128.0]}}
    return {"refine.json": [record(0), record(1)],
            **{f"img/3DPW/imageFiles/walk_00/image_{i:05d}.jpg": PHOTOGRAPH for i in range(2)}}


UPRIGHT = PHOTOGRAPH.crop((20, 0, 200, 200))  # higher than wide; BEDLAM stores such a picture turned:
TURNED = UPRIGHT.transpose(Image.Transpose.ROTATE_90)
CLOSE, FAR = (f"20221011_1_250_batch01hand_{scene}_6fps/png/seq_000000/seq_000000_0000.png"
              for scene in ("closeup_suburb_a", "static_suburb_d"))


def bedlam_person(left: float, width: float) -> dict:
    """What PoseEmbroider's pickles tell of a person in the pose of the photograph, whose picture is so wide."""
    float32 = np.float32
    return {"princpt": float32([width / 2, 100]), "focal": float32([500, 500]), "identity": np.str_("rp_a_posed_001"),
            "smplx_gender": "neutral", "smplx_shape": np.ones(11, float32), "smplx_root_cam": CAMERA[:3],
            "smplx_tight_bbox": float32([left, 28, left + 112, 140]), "smplx_transl": np.ones((1, 3), float32),
            "smplx_pose2d": np.ones((127, 2), np.int32), "smplx_body_pose": CAMERA[3:66].reshape(21, 3)}


def bedlam_script() -> dict:
    """Of three people whom PoseEmbroider chose the two that differ most have captions, three each."""
    one = ["A person raises the left hand.", "One arm up.", "The left arm is up."]
    files = {}
    for split in ("training", "validation"):
        seen = {FAR: [bedlam_person(900, 260), bedlam_person(48, 260)],
                CLOSE: [bedlam_person(900, 180), bedlam_person(28, 180)]}
        chosen = {FAR: [0, 1], CLOSE: [1], "criteria": {"overlap_threshold": .3, "scale_factor": 1.1}}
        files |= {f"be/bedlam_{split}_try.pkl": seen, f"be/bedlam_{split}_3caps_fs2_try.pkl": {0: one, 1: one[2:] * 3},
                  f"be/imgpaths_bedlam_to_selected_human_index_{split}_try.pkl": chosen,
                  f"be/farther_sample_{split}_3_try.pt": [{0: [CLOSE, 1]}, [2, 0, 1], torch.ones(3)],
                  f"img/{split}/{CLOSE}": TURNED, f"img/{split}/{FAR}": PHOTOGRAPH}
    return files


def llava() -> dict:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A person, left."},
             {"from": "human", "value": "Which colour?"}, {"from": "gpt", "value": "Yellow."}]
    return {"set.json": [{"id": "1", "image": "a/1.png", "conversations": turns},
                         {"id": "2", "conversations": [{"from": "human", "value": "Hello."},
                                                       {"from": "gpt", "value": "Good day."}]}],
            "img/a/1.png": PHOTOGRAPH}


FORMATS = {"amass": (amass, "amass:."), "posescript": (posescript, "posescript:ps,AMASS"),
           "spin": (spin, "images:set.npz,img"), "hmr2": (hmr2, "images:set.npz,img"),
           "bedlam": (bedlam, "images:set.npz,img"), "3dpw": (threedpw, "3dpw:."), "rpe": (rpe, "rpe:refine.json,img"),
           "bedlam-script": (bedlam_script, "bedlam-script:be,img"), "llava": (llava, "llava:set.json,img")}


def write(folder, files: dict) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif path.suffix == ".npz":
            np.savez(path, **content)
        elif path.suffix == ".pkl":
            path.write_bytes(python2(content) if "sequenceFiles" in name else pickle.dumps(content, 5))
        elif path.suffix == ".pt":
            torch.save(content, path)
        elif isinstance(content, Image.Image):
            content.save(path)
        else:
            path.write_text(json.dumps(content))


def read(folder, monkeypatch, name: str, files: dict | None = None, **how) -> formats.Mixture:
    make, spec = FORMATS[name]
    write(folder, make() if files is None else files)
    monkeypatch.chdir(folder)
    return formats.read_data([spec], **how)


def yellow_columns(image: np.ndarray) -> np.ndarray:
    """The columns in which the left sleeve, and nothing else in the picture, is yellow."""
    red, green, blue = image.astype(int).transpose(2, 0, 1)
    return ((red > 150) & (green > 100) & (blue < 110) & (red - blue > 90)).nonzero()[1]


# ---------------------------------------------------------------- frames, left and right

@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", FORMATS)
def test_upright_is_the_identity_and_left_stays_left(name, split, tmp_path, monkeypatch):
    source, = read(tmp_path, monkeypatch, name, split=split).sources
    assert source.flips == (split == "train" and name != "llava") and len(source) >= 1
    flips = set()
    for seed in range(12):
        for task in source.tasks:
            example = source.example(seed % len(source), task, RNG(seed))
            assert example.task == task and example.betas.shape == (10,)
            words = f"{example.prompt} {example.answer}"
            if example.image is not None:
                assert example.image.shape == (64, 64, 3) and example.image.dtype == np.uint8
                columns = yellow_columns(example.image)
                if name != "llava":  # whose picture is whole
                    assert len(columns) > 10
                    flip = bool(columns.mean() < 32)
                    assert (columns < 32).mean() in (0, 1)
                    flips.add(flip)
            if name in ("amass", "posescript"):
                flip = bool(captions.pose_holds(example.rotmats)[RIGHT])
                flips.add(flip)
            if example.rotmats is not None:
                assert torch.allclose(example.rotmats[0], torch.eye(3), atol=2e-3 if name == "3dpw" else 1e-5)
                holds = captions.pose_holds(example.rotmats)
                assert holds[LEFT] != flip and holds[RIGHT] == flip
                hand = body.matrix_to_axis_angle(example.rotmats[23 if flip else 22])
                smpl = torch.tensor(HAND) * torch.tensor([1.0, -1, -1] if flip else [1.0, 1, 1])
                assert torch.allclose(hand, smpl * (name not in ("amass", "posescript")), atol=1e-4)
            side = "right" if name != "llava" and flip else "left"
            if task in ("text2pose", "image2text"):
                assert example.caption in words and example.statements
                if name != "posescript":
                    assert captions.pose_holds(example.rotmats)[list(example.statements)].all() or name == "3dpw"
                    assert example.holds[list(example.statements)].all()
                else:
                    assert example.statements[0] == (RIGHT if flip else LEFT)
                    assert f"The {side.title()} hand is above the head" in words
            elif name == "rpe":
                assert f"his {side.title()} hand? Give" in example.prompt and "<image>" not in example.prompt
                assert example.answer == captions.POSE_ANSWER
            elif name == "bedlam-script":
                assert example.prompt in talk.DESCRIBE and (side in words or "One arm up." in words)
            elif name == "llava":
                assert words in ("What is it? A person, left.", "Which colour? Yellow.", "Hello. Good day.")
                assert (example.image is None) == (words == "Hello. Good day.")
    assert flips == ({False, True} if source.flips else set() if name == "llava" else {False})


def test_the_table_of_frames():
    upright = torch.eye(3)
    x = lambda degrees: body.axis_angle_to_matrix(torch.tensor([math.radians(degrees), 0, 0]))  # noqa: E731
    pose = np.zeros((1, 72), np.float32)
    pose[0, 0] = math.pi
    assert torch.allclose(formats._rotmats(pose, 180.0)[0, 0], upright, atol=1e-5)
    camera = x(40).mT[None].numpy()
    assert torch.allclose(formats._rotmats(pose, 180.0, camera)[0, 0], x(180) @ x(-40) @ x(180), atol=1e-5)
    assert torch.allclose(amass_rotmats(pose156()[None])[0, 0], upright, atol=1e-5)


@pytest.mark.parametrize("name, stored, middle", [
    ("20221011_1_250_batch01hand_closeup_suburb_a_6fps.npz", TURNED, None),  # by its name alone
    ("20221011_1_250_batch01hand_closeup_suburb_a_6fps.npz", TURNED, (90, 100)),
    ("20240729_1_250_ai1004_vcam.npz", TURNED, (90, 100)),  # BEDLAM2 has such scenes under any name
    ("20240606_1_500_stadium_closeup.npz", PHOTOGRAPH, (130, 100)),  # and a close-up that is wider than high
    ("20221011_1_250_batch01hand_closeup_suburb_a_6fps.npz", UPRIGHT, (90, 100)),  # turned by its user
    ("20221010_3_1000_batch01hand_6fps.npz", PHOTOGRAPH, (130, 100)), ("static.npz", PHOTOGRAPH, None)])
def test_bedlams_turned_pictures_are_read_upright(name, stored, middle, tmp_path, monkeypatch):
    """Its boxes are of the upright picture, through whose middle the camera looks."""
    arrays = bedlam()["set.npz"] | {"center": np.float32([BOX[:2]] * 2) - (0 if stored is PHOTOGRAPH else (20, 0))}
    if middle:
        arrays["cam_int"] = np.tile([[500.0, 0, middle[0]], [0, 500, middle[1]], [0, 0, 1]], (2, 1, 1))
    write(tmp_path, {name: arrays, "img/a/1.png": stored, "img/a/2.png": stored})
    monkeypatch.chdir(tmp_path)
    example = formats.read_data([f"images:{name},img"], "val").sources[0].example(0, "image2pose", RNG(0))
    left, top = (round(at - BOX[2] / 2) for at in BOX[:2])
    seen = PHOTOGRAPH.crop((left, top, left + 128, top + 128)).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(example.image, np.array(seen))


def test_a_joint_of_3dpw_that_is_a_guess_does_not_widen_the_box(tmp_path, monkeypatch):
    files = threedpw()
    sequence = files["sequenceFiles/train/walk_00.pkl"]
    sequence["cam_poses"][2] = np.nan  # of a frame that is not valid
    points = sequence["poses2d"][0]
    points[0, :, 2] = 6000, 100, .05
    points[1, 2, :2] = .06, .04  # of nobody are the joints sure, yet they are all there is
    rows = read(tmp_path, monkeypatch, "3dpw", files).sources[0].rows
    assert [row.box for row in rows] == [pytest.approx(BOX, abs=.1)] * 2


def test_words_about_real_pictures_are_against_gravity(tmp_path, monkeypatch):
    """3DPW tells it: who is upright before its tilted camera is leaning. Of other pictures nobody knows, so that what
    depends on it is neither said nor asked."""
    says = lambda source, index: {said(i) for seed in range(60) for task in ("image2text", "vqa")  # noqa: E731
                                  for i in captions.parse(source.example(index, task, RNG(seed)).answer)}
    known = read(tmp_path / "a", monkeypatch, "3dpw", split="test").sources[0]
    assert [row.holds.shape for row in known.rows] == [(1, captions.S)] * 2
    upright = torch.stack([row.against_gravity()[0] for row in known.rows])
    assert torch.allclose(upright[:, 0, 1, 1], torch.tensor([.2, .3]).cos(), atol=1e-4)
    leans = [says(known, index) & LEANS for index in range(2)]
    assert leans == [{"the person is leaning back"}, {"the person is leaning slightly forward"}]
    unknown = read(tmp_path / "b", monkeypatch, "spin", split="test").sources[0]
    assert [row.holds.shape for row in unknown.rows] == [(5, captions.S)] * 2
    words = says(unknown, 0)
    assert not words & LEANS and {"the person is standing", "the left hand is above the head"} <= words
    asked = {unknown.example(0, "vqa", RNG(seed)).prompt for seed in range(100)}
    assert "Is the person upright or leaning?" not in asked and "Which hand is higher?" in asked


def test_bedlam_of_smplx_has_no_hands(tmp_path, monkeypatch):
    files = bedlam()
    files["set.npz"]["pose_cam"] = np.concatenate([files["set.npz"]["pose_cam"][:, :66], np.full((2, 99), .5)], 1)
    rotmats = read(tmp_path, monkeypatch, "bedlam", files).sources[0].rows[0].rotmats
    assert torch.equal(rotmats[22:], torch.eye(3).expand(2, 3, 3)) and captions.pose_holds(rotmats)[LEFT]


def test_what_a_format_itself_leaves_out_is_no_fault(tmp_path, monkeypatch):
    files = threedpw()
    files["sequenceFiles/train/walk_00.pkl"]["poses2d"][0][1, 2] = 0  # not seen at all in frame 1; frame 2: no camera
    assert [row.where[-8:] for row in read(tmp_path / "a", monkeypatch, "3dpw", files).sources[0].rows] == [" frame 0"]
    files = spin()
    files["set.npz"]["has_smpl"][0] = 0
    assert [row.where[-5:] for row in read(tmp_path / "b", monkeypatch, "spin", files).sources[0].rows] == ["row 1"]


def test_amass_split_and_posescript_frames_and_captions(tmp_path, monkeypatch):
    mixture = read(tmp_path / "a", monkeypatch, "amass", split="val")
    assert len(mixture.sources[0]) == 3
    rows = {row.where[-4:]: row for row in read(tmp_path / "b", monkeypatch, "posescript").sources[0].rows}
    assert len(rows["id 7"].captions) == 4 and len(rows["id 8"].captions) == 1  # both files, text or list
    files = posescript()
    files["ps/ids_2_dataset_sequence_and_frame_index_100k.json"]["7"][2] = 249  # the last frame of the T-pose
    rows = read(tmp_path / "c", monkeypatch, "posescript", files).sources[0].rows
    assert sorted(captions.pose_holds(row.rotmats)[LEFT].item() for row in rows) == [False, True]


def test_the_heading_is_removed_where_there_is_no_picture(tmp_path, monkeypatch):
    files = amass()
    up, turned = body.axis_angle_to_matrix(torch.tensor([[math.pi / 2, 0, 0], [0, 0, 2.0]]))
    files["train/s/1.npz"]["poses"] = files["train/s/1.npz"]["poses"].copy()
    files["train/s/1.npz"]["poses"][:, :3] = body.matrix_to_axis_angle(turned @ up).numpy()
    source, = read(tmp_path, monkeypatch, "amass", files).sources
    assert all(torch.allclose(row.rotmats[0], torch.eye(3), atol=1e-5) for row in source.rows)


@pytest.mark.parametrize("text, mirrored", [
    ("Left hand up, RIGHT foot down", "Right hand up, LEFT foot down"),
    ("bent at a right angle", "bent at a right angle"),
    ("a right-angle to the left", "a right-angle to the right"), ("leaning leftwards", "leaning rightwards"),
    ("the rightmost, right-handed", "the leftmost, left-handed"), ("bright and deftly", "bright and deftly")])
def test_words_of_people_are_mirrored(text, mirrored):
    assert captions.swap_sides(text) == mirrored and captions.swap_sides(mirrored) == text


# ---------------------------------------------------------------- pictures

def test_pictures_are_opened_when_an_example_is_drawn_and_not_before(tmp_path, monkeypatch):
    opened, real = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path, **options: opened.append(path) or real(path, **options))
    mixture = read(tmp_path, monkeypatch, "spin")
    assert not opened
    mixture.draw({"image2pose": 1.0}, 3, RNG(0))
    assert len(opened) == 3


# ---------------------------------------------------------------- what may be wrong

def put(name: str, *keys, value):
    """A change of the files: the value at name, keys; without keys the whole file."""
    def change(files: dict) -> None:
        at = files
        for key in (name, *keys)[:-1]:
            at = at[key]
        at[(name, *keys)[-1]] = value
    return change


def drop(name: str, *keys):
    def change(files: dict) -> None:
        at = files
        for key in (name, *keys)[:-1]:
            at = at[key]
        del at[(name, *keys)[-1]]
    return change


def cell(name: str, key: str, index, value):
    def change(files: dict) -> None:
        files[name][key] = np.array(files[name][key])
        files[name][key][index] = value
    return change


PLACE, SEQUENCE = "ps/ids_2_dataset_sequence_and_frame_index_100k.json", "sequenceFiles/train/walk_00.pkl"
AUTO, TRUTH = "ps/posescript_auto_100k.json", ("refine.json", 0, "ground_truth")
SAID, SEEN, SAMPLE = (f"be/{name}" for name in (
    "bedlam_training_3caps_fs2_try.pkl", "bedlam_training_try.pkl", "farther_sample_training_3_try.pt"))
HALF = b"PK\x03\x04half of it"
# Format, what is wrong, what must be said. "file": nothing can be read of it, so that it stops in any case. "row": with
# skip_bad the row is left out. "drawn": known when the picture is opened.
CASES = [
    ("amass", "row", put("train/s/1.npz", value=HALF), "1.npz cannot be read as an npz"),
    ("amass", "row", put("train/s/1.npz", value=b""), "1.npz cannot be read as an npz"),
    ("amass", "row", cell("train/s/1.npz", "poses", (1, 5), np.nan), "`poses` holds NaN or infinity in 1 frames"),
    ("amass", "row", put("train/s/1.npz", "poses", value=np.zeros((3, 66))),
     "(T, 156) or (T, 165) or (T, 72), found float64 (3, 66)"),
    ("amass", "row", put("train/s/1.npz", "poses", value=np.zeros((0, 156))), "found float64 (0, 156)"),
    ("amass", "row", cell("train/s/1.npz", "poses", (1, 5), 1e30), "`poses` holds 1e+30, which no angle"),
    ("amass", "row", put("train/s/1.npz", "mocap_framerate", value=np.zeros(())), "`mocap_framerate` must be one"),
    ("amass", "row", put("train/s/1.npz", "mocap_framerate", value=np.ones(2)), "found float64 (2,)"),
    ("amass", "row", drop("train/s/1.npz", "poses"), "has no array `poses`"),
    ("amass", "row", put("train/s/1.npz", "poses", value=np.array([["a"]])), "must be floats"),
    ("amass", "file", lambda files: [files.pop(f) for f in list(files) if "train" in f], "no npz files for the train"),
    ("posescript", "file", drop(PLACE), "frame_index_100k.json: no such file"),
    ("posescript", "file", put(PLACE, value=b"{"), "is not valid JSON"),
    ("posescript", "file", put(PLACE, value=[1]), "must hold a JSON dict, found list"),
    ("posescript", "file", drop("ps/train_ids_100k.json"), "train_ids_100k.json: no such file"),
    ("posescript", "file", put("ps/train_ids_100k.json", value={}), "must hold a JSON list, found dict"),
    ("posescript", "file", put("ps/train_ids_100k.json", value=[]), "no usable row for the train split"),
    ("posescript", "row", put("ps/train_ids_100k.json", value=[7, 99]), "id 99: an id of the split that"),
    ("posescript", "row", put("ps/train_ids_100k.json", value=[7, "8"]), "id 8: an id of the split that"),
    ("posescript", "row", put(PLACE, "8", value=["AMASS", "x.npz"]), 'must be ["AMASS", file, frame]'),
    ("posescript", "row", put(PLACE, "8", value=["H36M", "a/b.npz", 3]), "found ['H36M'"),
    ("posescript", "row", put(PLACE, "8", 2, value="12"), 'must be ["AMASS", file, frame]'),
    ("posescript", "row", put(PLACE, "8", 2, value=300), "frame 300 of AMASS/CMU/s/2_poses.npz, which has 300"),
    ("posescript", "row", put(PLACE, "8", 2, value=-1), "frame -1 of"),
    ("posescript", "row", put(PLACE, "8", 1, value="CMU/s/no.npz"), "id 8: no motion CMU/s/no.npz in AMASS"),
    ("posescript", "row", put(PLACE, "8", 1, value=""), "id 8: no motion"),
    ("posescript", "row", put("AMASS/CMU/s/2_poses.npz", value=HALF), "2_poses.npz cannot be read as an npz"),
    ("posescript", "row", cell("AMASS/CMU/s/2_poses.npz", "poses", (0, 0), np.inf), "holds NaN or infinity"),
    ("posescript", "row", drop(AUTO, "8"), "id 8: there is no caption for it"),
    ("posescript", "row", put(AUTO, "8", value=[]), "there is no caption, or an empty one"),
    ("posescript", "row", put(AUTO, "8", value=["Fine.", "  "]), "there is no caption, or an empty one"),
    ("posescript", "row", put(AUTO, "8", value={"a": 1}), "captions must be text or a list of texts"),
    ("posescript", "row", put(AUTO, "8", value=[3]), "captions must be text or a list of texts"),
    ("posescript", "file", lambda files: [files.pop(f) for f in list(files) if "ps/posescript" in f],
     "neither posescript"),
    ("spin", "file", put("set.npz", value=HALF), "set.npz cannot be read as an npz"),
    ("spin", "file", drop("set.npz"), "set.npz cannot be read as an npz"),
    ("spin", "file", drop("set.npz", "pose"), "neither `pose` (SPIN) nor `body_pose` (HMR2)"),
    ("spin", "file", drop("set.npz", "imgname"), "set.npz: `imgname` is missing"),
    ("spin", "file", drop("set.npz", "center"), "set.npz: `center` is missing"),
    ("spin", "file", drop("set.npz", "scale"), "set.npz: `scale` is missing"),
    ("spin", "file", drop("set.npz", "shape"), "set.npz: `shape` is missing"),
    ("spin", "file", put("set.npz", "imgname", value=np.array([1, 2])), "`imgname` must be text"),
    ("spin", "file", put("set.npz", "imgname", value=np.array(["a", None])), "cannot be read as an npz file: Object"),
    ("spin", "file", put("set.npz", "pose", value=np.zeros((2, 69))),
     "`pose` must have the shape (2, 72), found (2, 69)"),
    ("spin", "file", put("set.npz", "center", value=np.zeros((3, 2))),
     "`center` must have the shape (2, 2), found (3, 2)"),
    ("spin", "file", put("set.npz", "scale", value=np.array(["a", "b"])), "`scale` must be numbers"),
    ("spin", "file", put("set.npz", "has_smpl", value=np.ones(5)), "`has_smpl` must have the shape (2,), found (5,)"),
    ("spin", "file", put("set.npz", "has_smpl", value=np.zeros(2)), "no usable row"),
    ("spin", "row", put("set.npz", "shape", value=np.full((2, 10), [[0], [np.nan]])), "row 1: `shape` holds NaN"),
    ("spin", "row", cell("set.npz", "pose", (1, 7), np.nan), "set.npz, row 1: `pose` holds NaN or infinity"),
    ("spin", "row", cell("set.npz", "pose", (1, 7), 90), "row 1: `pose` holds 90, which no angle in radians is"),
    ("spin", "row", cell("set.npz", "scale", 1, 0), "row 1: the person's box has no area"),
    ("spin", "row", cell("set.npz", "scale", 1, -1), "row 1: the person's box has no area"),
    ("spin", "row", cell("set.npz", "center", 1, np.nan), "row 1: the person's box holds NaN"),
    ("spin", "row", drop("img/a/2.png"), "set.npz, row 1: no image 'a/2.png' in img"),
    ("spin", "row", cell("set.npz", "imgname", 1, ""), "row 1: no image ''"),
    ("spin", "drawn", put("img/a/2.png", value=b"\x89PNG nothing"), "row 1: img/a/2.png cannot be used as an image"),
    ("spin", "drawn", put("img/a/2.png", value=b""), "img/a/2.png cannot be used as an image"),
    ("spin", "drawn", cell("set.npz", "center", 1, -500),
     "row 1: the person's box lies outside of img/a/2.png, 260 x 200"),
    ("spin", "drawn", cell("set.npz", "scale", 1, 128), "25600 pixels, is far larger than img/a/2.png"),
    ("hmr2", "file", drop("set.npz", "betas"), "`betas` is missing"),
    ("hmr2", "file", put("set.npz", "betas", value=np.ones((2, 5, 2))), "`betas` must have the shape (2, any)"),
    ("hmr2", "row", cell("set.npz", "body_pose", (1, 0), np.inf), "row 1: `body_pose` holds NaN or infinity"),
    ("hmr2", "row", cell("set.npz", "imgname", 1, "no.png"), "row 1: no image 'no.png'"),
    ("bedlam", "file", put("set.npz", "pose_cam", value=np.zeros((2, 156))), "`pose_cam` must have the shape (2, 72)"),
    ("bedlam", "row", cell("set.npz", "pose_cam", (1, 0), np.nan), "row 1: `pose_cam` holds NaN"),
    ("3dpw", "file", drop(SEQUENCE), "no pickles of sequences"),
    ("3dpw", "pickle", put(SEQUENCE, value=b"cos\nsystem\n(S'touch ran'\ntR."), "it asks for os.system"),
    ("3dpw", "pickle", put(SEQUENCE, value=b"\x80\x02}"), "walk_00.pkl is refused as a pickle"),
    ("3dpw", "pickle", put(SEQUENCE, value=python2([1])), "must hold a dict, found list"),
    ("3dpw", "pickle", drop(SEQUENCE, "cam_poses"), "walk_00.pkl: `cam_poses` is missing"),
    ("3dpw", "pickle", drop(SEQUENCE, "poses2d"), "walk_00.pkl: `poses2d` is missing"),
    ("3dpw", "pickle", put(SEQUENCE, "sequence", value=3), "`sequence` must be str, found int"),
    ("3dpw", "pickle", put(SEQUENCE, "cam_poses", value=np.zeros((3, 3))),
     "`cam_poses` must have the shape (any, 4, 4)"),
    ("3dpw", "pickle", put(SEQUENCE, "poses", 0, value=np.zeros((2, 72))), "`poses` must have the shape (3, 72)"),
    ("3dpw", "pickle", put(SEQUENCE, "poses2d", 0, value=np.zeros((3, 18, 3))),
     "`poses2d` must have the shape (3, 3, 18)"),
    ("3dpw", "pickle", put(SEQUENCE, "betas", 0, value=np.ones(4)), "`betas` must have the shape (10,), found (4,)"),
    ("3dpw", "pickle", put(SEQUENCE, "betas", value=[]), "differ in the number of people"),
    ("3dpw", "pickle", put(SEQUENCE, "campose_valid", value=[np.zeros(3)]), "no usable row"),
    ("3dpw", "row", lambda files: files[SEQUENCE]["poses"][0].__setitem__((1, 4), np.nan),
     "person 0, frame 1: `poses` holds NaN"),
    ("3dpw", "row", lambda files: files[SEQUENCE]["cam_poses"].__setitem__(1, 0),
     "frame 1: `cam_poses` holds no rotation"),
    ("3dpw", "row", lambda files: files[SEQUENCE]["poses2d"][0].__setitem__((1, slice(None), 1), 0), "box has no area"),
    ("3dpw", "row", drop("imageFiles/walk_00/image_00001.jpg"), "frame 1: no image 'walk_00/image_00001.jpg'"),
    ("3dpw", "drawn", put("imageFiles/walk_00/image_00001.jpg", value=b"\xff\xd8\xff\xe0"),
     "cannot be used as an image"),
    ("rpe", "file", put("refine.json", value=b"[{]"), "refine.json is not valid JSON"),
    ("rpe", "file", put("refine.json", value=b"\xff\xfe"), "refine.json is not valid JSON"),
    ("rpe", "file", put("refine.json", value=b"[" * 100_000), "refine.json is not valid JSON"),
    ("rpe", "file", put("refine.json", value={"a": 1}), "must hold a JSON list, found dict"),
    ("rpe", "row", put("refine.json", 0, value=3),
     "refine.json, row 0: must be an object with `ground_truth`, found int"),
    ("rpe", "row", drop(*TRUTH), "row 0: `ground_truth` is missing"),
    ("rpe", "row", drop(*TRUTH, "smpl_param", "pose"), "row 0: `pose` is missing"),
    ("rpe", "row", put(*TRUTH, "smpl_param", "pose", value=[0.0] * 71),
     "`pose` must have the shape (72,), found (71,)"),
    ("rpe", "row", put(*TRUTH, "smpl_param", "pose", 3, value=float("nan")), "row 0: `pose` holds NaN"),
    ("rpe", "row", put(*TRUTH, "smpl_param", "pose", 3, value="a"), "row 0: `pose` must be numbers"),
    ("rpe", "row", put(*TRUTH, "smpl_param", "pose", 3, value=[1]), "row 0: `pose` must be numbers"),
    ("rpe", "row", put(*TRUTH, "smpl_param", "shape", 3, value=10 ** 400), "row 0: `shape` must be numbers"),
    ("rpe", "row", put(*TRUTH, "bbox", value=[1, 2, 3]), "row 0: `bbox` must have the shape (4,), found (3,)"),
    ("rpe", "row", put(*TRUTH, "bbox", value=[5, 5, 0, 9]), "row 0: the person's box has no area"),
    ("rpe", "row", put(*TRUTH, "bbox", value=[5, 5, float("nan"), 9]), "box holds NaN"),
    ("rpe", "row", put("refine.json", 0, "real_image", value="no.jpg"), "row 0: no image 'no.jpg' in img"),
    ("rpe", "row", put("refine.json", 0, "conversations", value=[]), "of human and gpt by turns"),
    ("rpe", "row", put("refine.json", 0, "conversations", 1, "value", value="No idea."), "gives no <POSE>"),
    ("rpe", "drawn", put(*TRUTH, "bbox", value=[900, 900, 50, 50]), "lies outside of"),
    ("bedlam-script", "row", put(SAID, 0, value=[]), "fs2_try.pkl, 0: there is no caption"),
    ("bedlam-script", "row", put(SAID, 0, value=None), "captions must be text"),
    ("bedlam-script", "row", put(SAID, 0, value=["It is <POSE>."]), "an answer holds <POSE>"),
    ("bedlam-script", "row", drop(SEEN, CLOSE), f"`{CLOSE}` is missing"),
    ("bedlam-script", "row", put(SEEN, CLOSE, value=[]), f"0: no person 1 in {CLOSE}"),
    ("bedlam-script", "row", drop(SEEN, CLOSE, 1, "smplx_tight_bbox"), "`smplx_tight_bbox` is missing"),
    ("bedlam-script", "row", put(SEEN, CLOSE, 1, "smplx_tight_bbox", value=np.zeros(4)), "box has no area"),
    ("bedlam-script", "row", put(SEEN, CLOSE, 1, "smplx_tight_bbox", value=np.full(4, np.nan)), "box holds NaN"),
    ("bedlam-script", "row", drop(f"img/training/{CLOSE}"), f"no image '{CLOSE}' in img/training"),
    ("bedlam-script", "file", drop(SAID), "be: must hold one file bedlam_training_3caps*.pkl, found 0"),
    ("bedlam-script", "file", drop(SAID, 1), "has captions of 1 people, where 2 were chosen"),
    ("bedlam-script", "file", drop(SEEN), "bedlam_training_try.pkl: no such file"),
    ("bedlam-script", "file", put(SEEN, value=b"cos\nsystem\n(S'touch ran'\ntR."), "it asks for os.system"),
    ("bedlam-script", "file", drop(SAMPLE), "no farther_sample_training_*_try.pt"),
    ("bedlam-script", "file", put(SAMPLE, value=b""), "is no choice of people that can be read safely"),
    ("bedlam-script", "file", put(SAMPLE, value=[{}, [9, 8], 0]), "sample_training_3_try.pt does not belong to"),
    ("llava", "row", put("set.json", 0, "image", value="no.png"), "row 0: no image 'no.png'"),
    ("llava", "row", put("set.json", 0, "image", value=None), "speaks of an <image> but has no `image`"),
    ("llava", "row", put("set.json", 0, "image", value=7), "`image` must be str, found int"),
    ("llava", "row", put("set.json", 0, "image", value=["a/1.png", "a/1.png"]), "it has 2 images, of which an example"),
    ("llava", "row", put("set.json", 1, "conversations", 0, "value", value="<video>\nHi"), "speaks of an <video> but"),
    ("llava", "row", drop("set.json", 0, "image"), "speaks of an <image> but has no `image`"),
    ("llava", "row", put("set.json", 0, "conversations", value="text"), "`conversations` must be list, found str"),
    ("llava", "row", drop("set.json", 0, "conversations", 1), "of human and gpt by turns"),
    ("llava", "row", put("set.json", 0, "conversations", value=[]), "with an answer to a question"),
    ("llava", "file", put("set.json", value=b'{"id": "1"}\n{"id": '), "not valid JSON: Expecting value: line 2"),
    ("llava", "row", put("set.json", 0, "conversations", 1, "from", value="human"), "of human and gpt by turns"),
    ("llava", "row", put("set.json", 0, "conversations", 1, "value", value="<image>\n"), "has an empty turn"),
    ("llava", "row", put("set.json", 0, "conversations", 1, "value", value=5), "`value` must be str, found int"),
    ("llava", "row", put("set.json", 0, "conversations", 1, value="gpt"), "must be an object with `from`, found str"),
    ("llava", "row", put("set.json", 0, "conversations", 1, "value", value="A <POSE>."), "an answer holds <POSE>"),
    ("llava", "drawn", put("img/a/1.png", value=b"GIF89a"), "img/a/1.png cannot be used as an image"),
]


@pytest.mark.parametrize("name, kind, change, words", CASES, ids=[f"{c[0]}: {c[3]}" for c in CASES])
def test_what_is_wrong_stops_or_is_counted_and_left_out(name, kind, change, words, tmp_path, monkeypatch, capsys):
    files = FORMATS[name][0]()
    change(files)

    def draw(mixture) -> list:
        return mixture.draw({mixture.sources[0].tasks[0]: 1.0}, 20, RNG(0))

    with pytest.raises(ValueError) as caught:
        draw(read(tmp_path, monkeypatch, name, files))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    if kind in ("file", "pickle"):  # a 3DPW folder of one bad pickle has nothing left
        with pytest.raises(ValueError):
            formats.read_data([FORMATS[name][1]], skip_bad=True)
        return
    capsys.readouterr()
    mixture = formats.read_data([FORMATS[name][1]], skip_bad=True)
    loaded = len(mixture.sources[0])
    assert mixture.left_out == (kind == "row")
    examples = draw(mixture)
    assert len(examples) == 20 and mixture.left_out == 1 and len(mixture.sources[0]) == loaded
    told = capsys.readouterr().out
    assert words in told and told.count("\n") == 1 and "left out" in told


def test_a_bad_pickle_among_good_ones_is_left_out(tmp_path, monkeypatch):
    files = threedpw() | {"sequenceFiles/train/bad.pkl": b"nothing"}
    with pytest.raises(ValueError, match="bad.pkl is refused"):
        read(tmp_path, monkeypatch, "3dpw", files)
    mixture = formats.read_data(["3dpw:."], skip_bad=True)
    assert len(mixture.sources[0]) == 2 and mixture.left_out == 1


def test_rows_left_out_in_reading_do_not_hide_those_of_other_files_that_are_left_out_when_drawn(
        tmp_path, monkeypatch, capsys):
    many = {"imgname": np.array(["a/0.png", "a/1.png"]), "center": np.tile(BOX[:2], (2, 1)),
            "scale": np.full(2, BOX[2] / 200), "pose": RNG(0).normal(size=(2, 72)), "shape": np.zeros((2, 10))}
    wrong = many | {"pose": np.array([[np.nan] * 72, [0.1] * 72])}
    write(tmp_path, {"read.npz": wrong, "drawn.npz": many | {"imgname": np.array(["a/2.png", "a/3.png"])}}
          | {f"img/a/{i}.png": PHOTOGRAPH if i < 2 else b"bad" for i in range(4)})
    monkeypatch.chdir(tmp_path)
    mixture = formats.read_data(["images:read.npz,img", "images:drawn.npz,img"], skip_bad=True)
    assert mixture.left_out == 1 and "read.npz, row 0" in capsys.readouterr().out
    with pytest.raises(ValueError, match="drawn.npz,img: every row was left out, the first because of drawn.npz, row"):
        mixture.draw({"image2pose": 1.0}, 20, RNG(0))
    told = capsys.readouterr().out
    assert told.count("\n") == 1 and "when drawn: drawn.npz, row" in told and mixture.left_out == 3


def test_a_run_that_goes_on_draws_the_rows_that_it_would_have_drawn(tmp_path, monkeypatch):
    """Also where bad ones were met before it was stopped; each counts once."""
    files = {"set.npz": {"imgname": np.array([f"a/{i}.png" for i in range(6)]), "center": np.tile(BOX[:2], (6, 1)),
                         "scale": np.full(6, BOX[2] / 200), "pose": RNG(0).normal(size=(6, 72)),
                         "shape": np.zeros((6, 10)), "has_smpl": np.ones(6)}}
    files |= {f"img/a/{i}.png": b"bad" if i in (1, 4) else PHOTOGRAPH for i in range(6)}
    mixture = read(tmp_path, monkeypatch, "spin", files, skip_bad=True)
    rng = RNG(3)
    mixture.draw({"image2pose": 1}, 40, rng)
    assert mixture.faults.count == 2
    state = rng.bit_generator.state
    whole = mixture.draw({"image2pose": 1}, 40, rng)
    resumed = formats.read_data(["images:set.npz,img"], skip_bad=True)
    rng.bit_generator.state = state
    again = resumed.draw({"image2pose": 1}, 40, rng)
    assert all(torch.equal(a.rotmats, b.rotmats) for a, b in zip(whole, again)) and resumed.faults.count == 2


def test_when_nothing_is_left_it_is_said(tmp_path, monkeypatch):
    files = spin() | {"img/a/1.png": b"bad", "img/a/2.png": b"bad"}
    mixture = read(tmp_path, monkeypatch, "spin", files, skip_bad=True)
    with pytest.raises(ValueError, match="images:set.npz,img: every row was left out, .*cannot be used as an image"):
        mixture.draw({"image2pose": 1}, 1, RNG(0))
    with pytest.raises(ValueError, match="no usable row"):
        empty = {"train/s/1.npz": b"", "train/s/2.npz": b""}
        read(tmp_path / "b", monkeypatch, "amass", amass() | empty, skip_bad=True)


@pytest.mark.parametrize("spec", ["", "amass", "amass:", "coco:DIR", "amass:.,.", "images:set.npz", "images:set.npz,",
                                  "amass:.=0", "amass:.=-1", "amass:.=nan", "amass:.=inf", "amass:.=many", ".=1"])
def test_a_spec_that_cannot_be_read_lists_the_kinds(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="KIND:PATHS=WEIGHT.*amass:DIR, posescript:DIR,AMASS_DIR, images:FILE.npz,IMA"):
        formats.read_data([spec])


def test_a_folder_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for spec, folder in (("amass:none", "none"), ("llava:a.json,images", "images"), ("posescript:.,AMASS", "AMASS")):
        with pytest.raises(ValueError, match=f"{folder} is not a folder"):
            formats.read_data([spec])


@pytest.mark.parametrize("folder", ["a,b", ",", "a=b", "v=2", "a=1,2=3", ",=,"])
@pytest.mark.parametrize("ending, weight", [("", 1.0), ("=.5", .5), ("=3", 3.0)])
def test_a_path_may_hold_commas_and_equals_signs(folder, ending, weight, tmp_path, monkeypatch):
    write(tmp_path / folder, amass() | spin())
    monkeypatch.chdir(tmp_path)
    mixture = formats.read_data([f"amass:{folder}{ending}", f"images:{folder}/set.npz,{folder}/img{ending}"])
    assert [len(source) > 0 for source in mixture.sources] == [True, True] and mixture.weights == [weight, weight]
    with pytest.raises(ValueError, match="KIND:PATHS=WEIGHT|is not a folder"):
        formats.read_data([f"images:{folder}/set.npz,{folder}/none{ending}"])


def test_what_follows_the_last_equals_sign_is_a_weight_where_it_can_be(tmp_path, monkeypatch):
    for folder in ("v", "v=2"):
        write(tmp_path / folder, amass())
    monkeypatch.chdir(tmp_path)
    assert [formats.read_data([spec]).weights for spec in ("amass:v=2", "amass:v=2=3", "amass:v")] == [[2], [3], [1]]


# ---------------------------------------------------------------- mixtures and training

def mixture_of_all(tmp_path, monkeypatch, **how) -> formats.Mixture:
    specs = []
    for i, (name, (make, spec)) in enumerate(FORMATS.items()):
        write(tmp_path / name, make())
        kind, _, places = spec.partition(":")
        specs.append(f"{kind}:" + ",".join(f"{name}/{place}" for place in places.split(",")) + f"={i % 3 + 1}")
    monkeypatch.chdir(tmp_path)
    return formats.read_data(specs, **how)


def test_a_batch_is_of_one_task_and_weights_are_shares_of_examples(tmp_path, monkeypatch):
    mixture = mixture_of_all(tmp_path, monkeypatch)
    assert mixture.weights == [1, 2, 3, 1, 2, 3, 1, 2, 3]
    counts, rng = np.zeros(9), RNG(0)
    for source, i in zip(mixture.sources, range(9)):
        def example(index, task, rng, source=source, i=i):
            assert task in source.tasks
            counts[i] += 1
            return task
        source.example = example
    for _ in range(2000):
        assert len(set(data.draw_batch(mixture, train_sft.MIX, 8, rng))) == 1
    assert np.allclose(counts / counts.sum(), np.array(mixture.weights) / 18, atol=.015)
    counts[:] = 0
    data.draw_batch(mixture, {"text2pose": 1.0}, 50, rng)
    assert counts[:2].sum() == 50
    with pytest.raises(ValueError, match="none of --data has examples of pose2text: amass:amass/.* has text2pose"):
        mixture.draw({"pose2text": 1.0}, 1, rng)


def test_batches_repeat_with_the_seed(tmp_path, monkeypatch):
    mixture = mixture_of_all(tmp_path, monkeypatch)
    first, again = ([e.prompt for _ in range(8) for e in mixture.draw(train_sft.MIX, 4, RNG(3))] for _ in range(2))
    assert first == again


def test_both_losses_take_examples_without_pose_or_statements(tmp_path, monkeypatch):
    torch.manual_seed(0)
    mixture = mixture_of_all(tmp_path, monkeypatch)
    texts = [e.prompt + e.answer for task in train_sft.MIX for e in mixture.draw({task: 1.0}, 10, RNG(0))]
    policy = PosePolicy(*build_tiny(texts))
    talk = mixture.sources[-1].example(0, "vqa", RNG(0)), mixture.sources[-1].example(1, "vqa", RNG(0))
    posed = mixture.sources[2].example(0, "vqa", RNG(0)), mixture.sources[2].example(0, "image2pose", RNG(0))
    assert talk[0].rotmats is None and talk[1].image is None and posed[0].rotmats is not None
    loss, numbers = train_sft.sft_loss(policy, [*talk, posed[0]])
    assert torch.isfinite(loss) and numbers.keys() == {"text"}  # nothing of poses, where there are none
    loss, numbers = train_sft.sft_loss(policy, [*talk, *posed])  # only the one with <POSE> counts
    alone = train_sft.sft_loss(policy, [posed[1]])[1]
    assert numbers["pose"] == pytest.approx(alone["pose"], rel=1e-4)


def test_sigma_is_frozen_on_the_tasks_that_the_data_have(tmp_path, monkeypatch):
    policy = PosePolicy(*build_tiny(["The left knee is bent.", captions.POSE_ANSWER] * 20, hidden_size=32, layers=1))
    with pytest.raises(ValueError, match="none of --data has examples of text2pose: llava"):
        freeze_sigma(policy, read(tmp_path / "talk", monkeypatch, "llava"), 0)
    assert policy.pose_head.sigma.weight.requires_grad
    freeze_sigma(policy, read(tmp_path / "motion", monkeypatch, "amass"), 0)
    assert not policy.pose_head.sigma.weight.requires_grad and policy.pose_head.sigma.bias.isfinite().all()


def test_the_second_stage_trains_on_the_mix_too(tmp_path, monkeypatch):
    """Also on captions in which nothing can be measured: they have no reward of statements, and no NaN follows."""
    torch.manual_seed(0)
    files = posescript()
    files[AUTO], files["ps/posescript_human_6293.json"] = {"7": "A fine gesture.", "8": "It waves."}, {}
    write(tmp_path, spin() | {"talk.json": llava()["set.json"]} | files)
    monkeypatch.chdir(tmp_path)
    specs = ["images:set.npz,img", "llava:talk.json,img", "posescript:ps,AMASS"]
    mixture, rng = formats.read_data(specs), RNG(0)
    texts = [e.prompt + e.answer for task in train_sft.MIX for e in mixture.draw({task: 1.0}, 10, rng)]
    policy = PosePolicy(*build_tiny([*texts, captions.POSE_ANSWER * 50]))
    retriever = Retriever(policy.tokenizer.backend_tokenizer).eval().requires_grad_(False)
    examples = [*mixture.draw({"text2pose": 1.0}, 2, rng), *mixture.draw({"vqa": 1.0}, 2, rng)]
    assert not examples[0].statements
    policy.vlm.get_output_embeddings().register_forward_hook(  # an answer is <POSE> and nothing else
        lambda module, inputs, logits: logits.index_fill(-1, torch.tensor([policy.pose_id, 2]), 50.0))
    rollout = policy.sample(policy.encode(examples), 2, 3, seeds=range(len(examples)))
    text, pose, by_joint = rewards.score(examples, rollout, retriever, mixture.base_rates())
    assert pose["statements"].isnan().all()
    assert pose["semantic"][:2].isfinite().all() and text["text"][2:].isfinite().all()
    for advantage in hygrpo.advantages(text, pose, rollout.has_pose, rewards.weights(), by_joint):
        assert advantage.isfinite().all()
    config = train_rft.RFTConfig(rft_steps=6, prompts=3, group_size=2, poses_per_answer=2, eval_every=9)
    rows = train_rft.train_rft(policy, mixture, retriever, config, 0, lambda policy: {})
    assert {row["task"] for row in rows[1:]} >= {"text2pose", "vqa"}
    assert all(math.isfinite(value) for row in rows for key, value in row.items() if key != "task")
    assert all("statements" not in row for row in rows)


def test_sft_trains_on_the_mix(tmp_path, monkeypatch, capsys):
    files = spin() | {"img/a/2.png": b"not a picture"}
    write(tmp_path, files)
    write(tmp_path, {"talk.json": llava()["set.json"]})
    monkeypatch.chdir(tmp_path)
    arguments = ["train_sft.py", "--data", "images:set.npz,img=3", "llava:talk.json,img", "--out", "runs",
                 "--encoder_steps", "2", "--sft_steps", "3", "--sft_batch", "4", "--train_poses", "40",
                 "--eval_poses", "4", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(ValueError, match="row 1: img/a/2.png cannot be used"):
        train_sft.main()
    monkeypatch.setattr("sys.argv", [*arguments, "--skip_bad"])
    seen, loss = [], train_sft.sft_loss
    monkeypatch.setattr(train_sft, "sft_loss", lambda policy, examples, counts: seen.append(examples) or loss(
        policy, examples, counts))
    monkeypatch.setattr(train_sft, "MIX", {"vqa": 1.0, "image2pose": 1.0})
    train_sft.main()
    assert len(seen) == 3 and not any(e.betas.any() and not (e.betas == 1).all() for batch in seen for e in batch)
    told = capsys.readouterr().out
    assert "img/a/2.png cannot be used" in told and "1 rows of --data were left out since this start" in told
    assert (tmp_path / "runs" / "sft" / "pose.json").exists()
    monkeypatch.setattr("sys.argv", ["train_sft.py", "--out", "runs", "--encoder_steps", "2", "--sft_steps", "3",
                                     "--sft_batch", "4", "--train_poses", "40", "--eval_poses", "4"])
    with pytest.raises(ValueError, match="a run with data = "):
        train_sft.main()


def test_what_the_policy_cannot_read_whole_is_a_fault_of_its_row(tmp_path, monkeypatch, capsys):
    """And nothing shorter is: captions of people reach 500 tokens. One limit, that of predict.py."""
    talk, captioned = llava(), posescript()
    turns = talk["set.json"][1]["conversations"]
    captioned["ps/posescript_human_6293.json"]["7"] = "Not kneeling. " * 80
    write(tmp_path, {"talk.json": talk["set.json"], "img/a/1.png": PHOTOGRAPH} | captioned)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    policy, specs = PosePolicy(*build_tiny([captions.POSE_ANSWER] * 30)), ["llava:talk.json,img", "posescript:ps,AMASS"]
    mixture = formats.read_data(specs)
    world.keep_features(policy, {"data": mixture})
    longest = max(mixture.draw({"text2pose": 1.0}, 99, RNG(0)), key=lambda e: len(e.prompt))
    assert policy.encode([longest]).ids.shape[1] > 500
    mixture.draw({"vqa": 1.0}, 30, RNG(0))
    for i, name in ((0, "prompt"), (1, "answer")):  # a token each, so that nothing is left for the other, or for its end
        said = {0: "!" * 1968, 1: "!" * 2048}[i]
        changed = [talk["set.json"][0], talk["set.json"][1] | {"conversations": [
            turn | {"value": said} if j == i else turn for j, turn in enumerate(turns)]}]
        write(tmp_path, {"talk.json": changed})
        mixture = formats.read_data(specs)
        world.keep_features(policy, {"data": mixture})
        with pytest.raises(ValueError, match=rf"talk.json, row 1: .*{name} {'has ' if not i else ''}\d+.* at most 2048, 80"):
            mixture.draw({"vqa": 1.0}, 30, RNG(0))
        mixture = formats.read_data(specs, skip_bad=True)
        world.keep_features(policy, {"data": mixture})
        capsys.readouterr()
        assert len(mixture.draw({"vqa": 1.0}, 30, RNG(0))) == 30
        assert mixture.faults.count == 1 and "talk.json, row 1" in capsys.readouterr().out
    with pytest.raises(ValueError, match="the prompt has .* at most 1968: make it shorter"):
        policy.encode([SimpleNamespace(prompt="!" * 1968, image=None)])
