"""The field's own files: AMASS, PoseScript, 3DPW, SPIN-, HMR2- and BEDLAM-style npz, RPE-Refined, LLaVA-Instruct.

A reader makes `Row`s of a file: checked annotations in this project's frame. Two other frames are met, in which the
root of a person upright and facing the viewer is not the identity: AMASS has z up, R = Rx(-90) R_amass; a camera has y
down, R = Rx(180) R_camera. A file that cannot be read at all stops; of a row at fault see mixture.py.
Read next: train_sft.py, whose --data takes these files.
"""

import functools
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import body
import captions
from body import axis_rotation
from real.amass import amass_files, amass_poses, amass_rotmats, read_amass
from real.mixture import Faults, Mixture, Row, Source
from real.photos import Box
from real.smpl_pickle import restricted_load

# PoseScript knows AMASS's folders by their first names.
RENAMED = {"BioMotionLab_NTroje": "BMLrub", "Eyes_Japan_Dataset": "EyesJapanDataset", "MPI_HDM05": "HDM05",
           "MPI_Limits": "PosePrior", "MPI_mosh": "MoSh", "SSM_synced": "SSM", "DFaust_67": "DFaust",
           "Transitions_mocap": "Transitions"}
DESCRIBE = ("Describe the pose of this person.", "How is this person posed?", "What is this person doing?")


# ---------------------------------------------------------------- checks

def _get(record: object, key: str, kind: type):
    if not isinstance(record, dict):
        raise ValueError(f"must be an object with `{key}`, found {type(record).__name__}")
    if key not in record:
        raise ValueError(f"`{key}` is missing")
    if not isinstance(record[key], kind):
        raise ValueError(f"`{key}` must be {kind.__name__}, found {type(record[key]).__name__}")
    return record[key]


def _numbers(value: object, name: str, *shape: int | None) -> np.ndarray:
    """The value as float32 of that shape, in which None is any length. It may hold NaN; see `_finite`."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"`{name}` must be numbers {shape}".replace("None", "any") + ", found something else")
    if array.ndim != len(shape) or any(want not in (None, found) for want, found in zip(shape, array.shape)):
        raise ValueError(f"`{name}` must have the shape {shape}, found {array.shape}".replace("None", "any"))
    return array.astype(np.float32)


def _finite(array: np.ndarray, name: str, most: float = np.inf) -> np.ndarray:
    if not np.isfinite(array).all():
        raise ValueError(f"`{name}` holds NaN or infinity")
    if np.abs(array).max(initial=0) > most:
        raise ValueError(f"`{name}` holds {np.abs(array).max():.0f}, which no angle in radians is; are these degrees?")
    return array


def _image(root: str | Path, name: str) -> Path:
    if not name or not (Path(root) / name).is_file():
        raise ValueError(f"no image {name!r} in {root}")
    return Path(root) / name


def _box(x: float, y: float, side: float) -> Box:
    if not np.isfinite([x, y, side]).all():
        raise ValueError("the person's box holds NaN or infinity")
    if side < 1:
        raise ValueError(f"the person's box has no area (its side is {side:.3g} pixels)")
    return float(x), float(y), float(side)


def _bbox(value: object) -> Box:
    x, y, width, height = _numbers(value, "bbox", 4)
    if min(width, height) <= 0:
        raise ValueError(f"the person's box has no area: `bbox` is {width:.3g} wide and {height:.3g} high")
    return _box(x + width / 2, y + height / 2, max(width, height))


def _captions(value: object) -> tuple[str, ...]:
    """A caption or a list of them, none empty."""
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError("captions must be text or a list of texts")
    if not value or not all(text.strip() for text in value):
        raise ValueError("there is no caption, or an empty one")
    return tuple(text.strip() for text in value)


def _turns(record: dict) -> tuple[tuple[str, str], ...]:
    """Questions and answers of `conversations` in LLaVA's form, without the mark of the image's place."""
    turns = _get(record, "conversations", list)
    if not turns or [_get(said, "from", str) for said in turns] != ["human", "gpt"] * (len(turns) // 2):
        raise ValueError("`conversations` must be of human and gpt by turns, the human first")
    words = [_get(said, "value", str).replace("<image>", "").strip() for said in turns]
    if not all(words):
        raise ValueError("`conversations` has an empty turn")
    return tuple(zip(words[::2], words[1::2]))


def _answers_in_words(turns: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    if any(mark in answer for _, answer in turns for mark in (captions.POSE_TOKEN, "<image>")):
        raise ValueError(f"an answer holds {captions.POSE_TOKEN} or <image>, yet there is no such pose or image")
    return turns


def _json(path: str | Path, kind: type):
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"{path}: no such file, or it cannot be read") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, kind):
        raise ValueError(f"{path} must hold a JSON {kind.__name__}, found {type(value).__name__}")
    return value


def _rotmats(pose: np.ndarray, degrees: float, camera: np.ndarray | None = None) -> Tensor:
    """Axis-angles (N, 72) of SMPL, or (N, 165) of SMPL-X, whose face and hands are left out, to (N, 24, 3, 3), with the
    root turned by camera (N, 3, 3), if given, and then by `degrees` about x."""
    rotmats = torch.eye(3).repeat(len(pose), 24, 1, 1)
    joints = 24 if pose.shape[1] == 72 else 22
    for start in range(0, len(pose), 10_000):  # or a large file would need its size many times over
        axis_angle = torch.from_numpy(pose[start:start + 10_000, :3 * joints]).unflatten(1, (joints, 3))
        rotmats[start:start + 10_000, :joints] = body.axis_angle_to_matrix(axis_angle)
    root = rotmats[:, 0] if camera is None else torch.from_numpy(camera) @ rotmats[:, 0]
    rotmats[:, 0] = axis_rotation(0, torch.tensor(degrees)) @ root
    return rotmats


# ---------------------------------------------------------------- readers: (split, faults, *paths) to rows

def read_amass_folder(split: str, faults: Faults, folder: str) -> list[Row]:
    """AMASS (Mahmood et al. 2019): every pose of a split's files (amass.amass_files), to be described by captions."""
    rows = []
    for path in amass_files(folder, split):
        with faults.at(path):
            rows += [Row(f"{path}, pose {i}", pose) for i, pose in enumerate(body.remove_heading(read_amass(path)))]
    return rows


def read_posescript(split: str, faults: Faults, folder: str, amass: str) -> list[Row]:
    """PoseScript v2 (Delmas et al. 2022): frames of AMASS with the captions of people, of a program, or both."""
    place = _json(Path(folder) / "ids_2_dataset_sequence_and_frame_index_100k.json", dict)
    files = [Path(folder) / f"posescript_{name}.json" for name in ("auto_100k", "human_6293")]
    files = [path for path in files if path.exists()]
    if not files:
        raise ValueError(f"{folder}: neither posescript_auto_100k.json nor posescript_human_6293.json is there")
    words, rows = [_json(path, dict) for path in files], []
    ids = _json(Path(folder) / f"{split}_ids_100k.json", list)
    poses_of = functools.lru_cache(1)(lambda path: amass_poses(path)[0])  # ids are sorted by file
    for id in sorted(ids, key=lambda id: str(place.get(str(id)))):
        with faults.at(f"{folder}, id {id}"):
            if type(id) is not int or str(id) not in place:
                raise ValueError("an id of the split that ids_2_dataset_sequence_and_frame_index_100k.json lacks")
            entry = place[str(id)]
            if not isinstance(entry, list) or [type(item) for item in entry] != [str, str, int] or entry[0] != "AMASS":
                raise ValueError(f"must be [\"AMASS\", file, frame], found {entry}")
            said = sum((_captions(texts[str(id)]) for texts in words if str(id) in texts), ())
            if not said:
                raise ValueError("there is no caption for it")
            first, _, rest = entry[1].partition("/")
            candidates = [Path(amass) / name / rest for name in dict.fromkeys((first, RENAMED.get(first, first)))]
            path = next(filter(Path.is_file, candidates), None)
            if path is None:
                raise ValueError(f"no motion {entry[1]} in {amass}")
            poses = poses_of(path)
            if not 0 <= entry[2] < len(poses):
                raise ValueError(f"frame {entry[2]} of {path}, which has {len(poses)}")
            rotmats = body.remove_heading(amass_rotmats(poses[entry[2]][None])[0])
            rows.append(Row(f"{folder}, id {id}", rotmats, captions=said))
    return rows


def read_3dpw(split: str, faults: Faults, folder: str) -> list[Row]:
    """3DPW (von Marcard et al. 2018): each person in each frame whose camera is known and who is seen at all."""
    place, rows = Path(folder) / "sequenceFiles" / {"val": "validation"}.get(split, split), []
    files = sorted(place.glob("*.pkl"))
    if not files:
        raise ValueError(f"{place}: no pickles of sequences; {folder} should be the folder of 3DPW")
    for path in files:
        with faults.at(path):
            sequence = restricted_load(path)
            name = _get(sequence, "sequence", str)
            camera = _numbers(_get(sequence, "cam_poses", np.ndarray), "cam_poses", None, 4, 4)[:, :3, :3]  # (F, 3, 3)
            people = [_get(sequence, key, list) for key in ("poses", "betas", "poses2d", "campose_valid")]
            if len({len(of_people) for of_people in people}) != 1:
                raise ValueError("`poses`, `betas`, `poses2d`, `campose_valid` differ in the number of people")
            for person, (poses, betas, points, valid) in enumerate(zip(*people)):
                poses = _numbers(poses, "poses", len(camera), 72)
                points = _numbers(points, "poses2d", len(camera), 3, 18)
                valid, shape = _numbers(valid, "campose_valid", len(camera)), _numbers(betas, "betas", None)
                shape = torch.from_numpy(_numbers(_finite(shape, "betas")[:10], "betas", 10))
                rotmats = _rotmats(poses, 180.0, camera)
                for frame in range(len(camera)):
                    x, y = points[frame, :2, points[frame, 2] > 0].T
                    if not valid[frame] or not len(x):
                        continue
                    with faults.at(f"{path}, person {person}, frame {frame}"):
                        _finite(poses[frame], "poses", 20)
                        if not np.allclose(camera[frame] @ camera[frame].T, np.eye(3), atol=.01):
                            raise ValueError("`cam_poses` holds no rotation")
                        box = _box((x.min() + x.max()) / 2, (y.min() + y.max()) / 2, 1.2 * max(np.ptp(x), np.ptp(y)))
                        image = _image(Path(folder) / "imageFiles", f"{name}/image_{frame:05d}.jpg")
                        rows.append(Row(f"{path}, person {person}, frame {frame}", rotmats[frame], shape, image, box))
    return rows


# An npz is known by its pose: then what says that a row has one, its shape, and what `scale` times this is in pixels.
LAYOUTS = {"body_pose": ("has_body_pose", "betas", 1.0), "pose_cam": (None, "shape", 200.0),
           "pose": ("has_smpl", "shape", 200.0)}


def read_images(split: str, faults: Faults, file: str, root: str) -> list[Row]:
    """An npz of people in images, in the manner of SPIN (Kolotouros et al. 2019: Human3.6M, MPI-INF-3DHP, COCO, MPII),
    of HMR2 (Goel et al. 2023) or of BEDLAM (Black et al. 2023). The file is its own split."""
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as opened:
            key = next((key for key in LAYOUTS if key in opened), "")
            has, shape, pixels = LAYOUTS.get(key, (None, "", 0))
            arrays = {name: opened[name] for name in ("imgname", "center", "scale", key, has, shape) if name in opened}
    except Exception as error:  # zipfile, zlib, numpy and the system each raise their own
        raise ValueError(f"{file} cannot be read as an npz file: {error}") from None
    rows = []
    with Faults().at(file):
        if not key:
            raise ValueError("found neither `pose` (SPIN) nor `body_pose` (HMR2) nor `pose_cam` (BEDLAM)")
        names = _get(arrays, "imgname", np.ndarray)
        if names.ndim != 1 or names.dtype.kind not in "SU":
            raise ValueError(f"`imgname` must be text (any,), found {names.dtype} {names.shape}")
        names, N = (np.char.decode(names, "utf-8") if names.dtype.kind == "S" else names).tolist(), len(names)
        pose = _numbers(_get(arrays, key, np.ndarray), key, N, 165 if arrays[key].shape[1:] == (165,) else 72)
        betas = _numbers(_get(arrays, shape, np.ndarray), shape, N, None)[:, :10]
        center, scale = _numbers(_get(arrays, "center", np.ndarray), "center", N, 2), _get(arrays, "scale", np.ndarray)
        scale = _numbers(scale[:, None] if scale.ndim == 1 else scale, "scale", N, None).max(1).astype(float) * pixels
        valid = _numbers(arrays[has], has, N) if has in arrays else np.ones(N)
        rotmats = _rotmats(pose, 180.0)
    for i in np.flatnonzero(valid):
        with faults.at(f"{file}, row {i}"):
            _finite(pose[i], key, 20)
            beta = torch.from_numpy(_numbers(_finite(betas[i], shape), shape, 10))
            image = _image(root, names[i])
            rows.append(Row(f"{file}, row {i}", rotmats[i], beta, image, _box(*center[i], scale[i])))
    return rows


def read_rpe(split: str, faults: Faults, file: str, root: str) -> list[Row]:
    """RPE-Refined: ChatPose's questions about people of 3DPW, with the pose that answers them. The file is its own
    split; `real_image` is a path from root."""
    rows = []
    for i, record in enumerate(_json(file, list)):
        with faults.at(f"{file}, row {i}"):
            truth = _get(record, "ground_truth", dict)
            smpl = _get(truth, "smpl_param", dict)
            pose = _finite(_numbers(_get(smpl, "pose", list), "pose", 72), "pose", 20)
            betas = torch.from_numpy(_finite(_numbers(_get(smpl, "shape", list), "shape", 10), "shape"))
            question, answer = _turns(record)[0]
            if captions.POSE_TOKEN not in answer:
                raise ValueError(f"the answer {answer!r} gives no {captions.POSE_TOKEN}")
            image, box = _image(root, _get(record, "real_image", str)), _bbox(_get(truth, "bbox", list))
            rows.append(Row(f"{file}, row {i}", _rotmats(pose[None], 180.0)[0], betas, image, box,
                            turns=((question, captions.POSE_ANSWER),), id=str(record.get("id", i))))
    return rows


def read_bedlam_script(split: str, faults: Faults, file: str, root: str) -> list[Row]:
    """BEDLAM-Script, PoseEmbroider: captions of people in images, without poses. The file is its own split."""
    rows = []
    for i, record in enumerate(_json(file, list)):
        with faults.at(f"{file}, row {i}"):
            said = _captions(_get(record, "captions", object))
            image, box = _image(root, _get(record, "image", str)), _bbox(_get(record, "bbox", list))
            turns = tuple((prompt, caption) for caption in said for prompt in DESCRIBE)
            rows.append(Row(f"{file}, row {i}", image=image, box=box, turns=_answers_in_words(turns)))
    return rows


def read_llava(split: str, faults: Faults, file: str, root: str) -> list[Row]:
    """LLaVA-Instruct (Liu et al. 2023): talk about whole images, or none, to keep a model's other skills. Each answer
    stands with its own question alone. The file is its own split."""
    rows = []
    for i, record in enumerate(_json(file, list)):
        with faults.at(f"{file}, row {i}"):
            turns = _answers_in_words(_turns(record))
            if "image" not in record and any("<image>" in said["value"] for said in record["conversations"]):
                raise ValueError("it speaks of an <image> but has no `image`")
            image = _image(root, _get(record, "image", str)) if "image" in record else None
            rows.append(Row(f"{file}, row {i}", image=image, turns=turns))
    return rows


# ---------------------------------------------------------------- --data

IMAGE_TASKS = ("image2pose", "image2text", "vqa")
# Kind: reader, what it reads, the tasks of its rows. Words that are not about a pose are never shown in a mirror.
KINDS = {"amass": (read_amass_folder, "DIR", ("text2pose",)),
         "posescript": (read_posescript, "DIR,AMASS_DIR", ("text2pose",)),
         "images": (read_images, "FILE.npz,IMAGE_DIR", IMAGE_TASKS), "3dpw": (read_3dpw, "DIR", IMAGE_TASKS),
         "rpe": (read_rpe, "FILE.json,IMAGE_DIR", ("image2pose",)),
         "bedlam-script": (read_bedlam_script, "FILE.json,IMAGE_DIR", ("vqa",)),
         "llava": (read_llava, "FILE.json,IMAGE_DIR", ("vqa",))}


def read_data(specs: list[str], split: str = "train", image_size: int = 64, skip_bad: bool = False) -> Mixture:
    """The data that specs such as "3dpw:DIR=2" name: a kind, its paths and a weight, 1 if not given.

    split: "train" (in which every other example is mirrored), "val" or "test"; a kind read from one file has the rows
    of that file in each. Pictures become image_size pixels square. skip_bad: leave out rows at fault, say how many and
    why the first, instead of stopping. Raises ValueError with one sentence.
    """
    faults, sources, weights = Faults(skip_bad), [], []
    for spec in specs:
        kind, _, rest = spec.partition(":")
        places, equals, weight = rest.rpartition("=") if "=" in rest else (rest, "", "1")
        reader, usage, tasks = KINDS.get(kind, (None, "", ()))
        places = places.split(",")
        try:
            weights.append(float(weight))
        except ValueError:
            weights.append(np.nan)
        if not reader or len(places) != usage.count(",") + 1 or not all(places) or not 0 < weights[-1] < np.inf:
            raise ValueError(f"--data {spec}: must be KIND:PATHS or KIND:PATHS=WEIGHT with a weight above 0, one of "
                             + ", ".join(f"{kind}:{usage}" for kind, (_, usage, _) in KINDS.items()))
        for folder in (place for place, name in zip(places, usage.split(",")) if name.endswith("DIR")):
            if not Path(folder).is_dir():
                raise ValueError(f"--data {spec}: {folder} is not a folder")
        found = Faults(skip_bad)
        rows = reader(split, found, *places)
        if found.count:
            print(f"--data {spec}: left out {found.count}, the first: {found.first}")
        if not rows:
            raise ValueError(f"--data {spec}: no usable row for the {split} split")
        faults.count += found.count
        sources.append(Source(spec, rows, tasks, image_size, split == "train" and kind != "llava"))
    return Mixture(sources, weights, faults)
