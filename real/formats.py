"""The field's own files: AMASS, PoseScript, 3DPW, SPIN-, HMR2- and BEDLAM-style npz, RPE-Refined, and those of talk.py.

A reader makes `Row`s of a file: checked annotations in this project's frame. Two other frames are met, in which the
root of a person upright and facing the viewer is not the identity: AMASS has z up, R = Rx(-90) R_amass; a camera has y
down, R = Rx(180) R_camera. Words are against gravity, which of files with images 3DPW alone tells: of the others is
said what holds however the camera was held (mixture.TILTS). A file that cannot be read at all stops; of a row at fault
see mixture.py.
Read next: train_sft.py, whose --data takes these files.
"""

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import body
import captions
from body import axis_rotation
from real.amass import amass_files, amass_poses, amass_rotmats, read_amass
from real.checks import caption_texts, find_image, finite, frame_of, get, numbers, read_json, square, square_around
from real.mixture import Faults, Mixture, Row, Source, paths_and_weight
from real.smpl_pickle import restricted_load
from real.talk import read_bedlam_script, read_llava, turns, without_marks

# PoseScript knows AMASS's folders by their first names.
RENAMED = {"BioMotionLab_NTroje": "BMLrub", "Eyes_Japan_Dataset": "EyesJapanDataset", "MPI_HDM05": "HDM05",
           "MPI_Limits": "PosePrior", "MPI_mosh": "MoSh", "SSM_synced": "SSM", "DFaust_67": "DFaust",
           "Transitions_mocap": "Transitions"}


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
    place = read_json(Path(folder) / "ids_2_dataset_sequence_and_frame_index_100k.json", dict)
    files = [Path(folder) / f"posescript_{name}.json" for name in ("auto_100k", "human_6293")]
    files = [path for path in files if path.exists()]
    if not files:
        raise ValueError(f"{folder}: neither posescript_auto_100k.json nor posescript_human_6293.json is there")
    words, rows = [read_json(path, dict) for path in files], []
    ids = read_json(Path(folder) / f"{split}_ids_100k.json", list)
    poses_of = functools.lru_cache(1)(lambda path: amass_poses(path)[0])  # ids are sorted by file
    for id in sorted(ids, key=lambda id: str(place.get(str(id)))):
        with faults.at(f"{folder}, id {id}"):
            if type(id) is not int or str(id) not in place:
                raise ValueError("an id of the split that ids_2_dataset_sequence_and_frame_index_100k.json lacks")
            entry = place[str(id)]
            if not isinstance(entry, list) or [type(item) for item in entry] != [str, str, int] or entry[0] != "AMASS":
                raise ValueError(f"must be [\"AMASS\", file, frame], found {entry}")
            said = sum((caption_texts(texts[str(id)]) for texts in words if str(id) in texts), ())
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
            name = get(sequence, "sequence", str)
            camera = numbers(get(sequence, "cam_poses", np.ndarray), "cam_poses", None, 4, 4)[:, :3, :3]  # (F, 3, 3)
            people = [get(sequence, key, list) for key in ("poses", "betas", "poses2d", "campose_valid")]
            if len({len(of_people) for of_people in people}) != 1:
                raise ValueError("`poses`, `betas`, `poses2d`, `campose_valid` differ in the number of people")
            for person, (poses, betas, points, valid) in enumerate(zip(*people)):
                poses = numbers(poses, "poses", len(camera), 72)
                points = numbers(points, "poses2d", len(camera), 3, 18)
                valid, shape = numbers(valid, "campose_valid", len(camera)), numbers(betas, "betas", None)
                shape = torch.from_numpy(numbers(finite(shape, "betas")[:10], "betas", 10))
                rotmats = _rotmats(poses, 180.0, camera)
                upright = body.axis_angle_to_matrix(torch.from_numpy(poses[:, :3]))  # 3DPW's world has y up
                for frame in range(len(camera)):
                    sure = points[frame, 2]
                    if not valid[frame] or not (sure > 0).any():
                        continue
                    # A joint much less sure than the others is a guess, and may lie far outside of the picture.
                    x, y = points[frame, :2, sure > np.quantile(sure[sure > 0], .5, method="lower") / 3].T
                    with faults.at(f"{path}, person {person}, frame {frame}"):
                        finite(poses[frame], "poses", 20)
                        if not np.allclose(camera[frame] @ camera[frame].T, np.eye(3), atol=.01):
                            raise ValueError("`cam_poses` holds no rotation")
                        box = square((x.min() + x.max()) / 2, (y.min() + y.max()) / 2, 1.2 * max(np.ptp(x), np.ptp(y)))
                        image = find_image(Path(folder) / "imageFiles", f"{name}/image_{frame:05d}.jpg")
                        rows.append(Row(f"{path}, person {person}, frame {frame}", rotmats[frame], shape, image, box,
                                        upright=upright[frame]))
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
            wanted = ("imgname", "center", "scale", key, has, shape, "cam_int" if key == "pose_cam" else "")
            arrays = {name: opened[name] for name in wanted if name in opened}
    except Exception as error:  # zipfile, zlib, numpy and the system each raise their own
        raise ValueError(f"{file} cannot be read as an npz file: {error}") from None
    rows = []
    with Faults().at(file):
        if not key:
            raise ValueError("found neither `pose` (SPIN) nor `body_pose` (HMR2) nor `pose_cam` (BEDLAM)")
        names = get(arrays, "imgname", np.ndarray)
        if names.ndim != 1 or names.dtype.kind not in "SU":
            raise ValueError(f"`imgname` must be text (any,), found {names.dtype} {names.shape}")
        names, N = (np.char.decode(names, "utf-8") if names.dtype.kind == "S" else names).tolist(), len(names)
        pose = numbers(get(arrays, key, np.ndarray), key, N, 165 if arrays[key].shape[1:] == (165,) else 72)
        betas = numbers(get(arrays, shape, np.ndarray), shape, N, None)[:, :10]
        center, scale = numbers(get(arrays, "center", np.ndarray), "center", N, 2), get(arrays, "scale", np.ndarray)
        scale = numbers(scale[:, None] if scale.ndim == 1 else scale, "scale", N, None).max(1).astype(float) * pixels
        valid = numbers(arrays[has], has, N) if has in arrays else np.ones(N)
        rotmats, cameras = _rotmats(pose, 180.0), arrays.get("cam_int", np.zeros(0))
        looks_at = cameras[:, :2, 2] if cameras.shape == (N, 3, 3) and cameras.dtype.kind == "f" else np.zeros((N, 2))
    for i in np.flatnonzero(valid):
        with faults.at(f"{file}, row {i}"):
            finite(pose[i], key, 20)
            beta = torch.from_numpy(numbers(finite(betas[i], shape), shape, 10))
            image, box = find_image(root, names[i]), square(*center[i], scale[i])
            frame = frame_of(*looks_at[i], file, root, names[i]) if key == "pose_cam" else None
            rows.append(Row(f"{file}, row {i}", rotmats[i], beta, image, box, frame))
    return rows


def read_rpe(split: str, faults: Faults, file: str, root: str) -> list[Row]:
    """RPE-Refined: ChatPose's questions about people of 3DPW, with the pose that answers them. The file is its own
    split; `real_image` is a path from root."""
    rows = []
    for i, record in enumerate(read_json(file, list)):
        with faults.at(f"{file}, row {i}"):
            truth = get(record, "ground_truth", dict)
            smpl = get(truth, "smpl_param", dict)
            pose = finite(numbers(get(smpl, "pose", list), "pose", 72), "pose", 20)
            betas = torch.from_numpy(finite(numbers(get(smpl, "shape", list), "shape", 10), "shape"))
            question, answer = without_marks(turns(record))[0]
            if captions.POSE_TOKEN not in answer:
                raise ValueError(f"the answer {answer!r} gives no {captions.POSE_TOKEN}")
            image = find_image(root, get(record, "real_image", str))
            box = square_around(*numbers(get(truth, "bbox", list), "bbox", 4))
            rows.append(Row(f"{file}, row {i}", _rotmats(pose[None], 180.0)[0], betas, image, box,
                            turns=((question, captions.POSE_ANSWER),), id=str(record.get("id", i))))
    return rows


# ---------------------------------------------------------------- --data

IMAGE_TASKS = ("image2pose", "image2text", "vqa")
# Kind: reader, what it reads, the tasks of its rows. Words that are not about a pose are never shown in a mirror.
KINDS = {"amass": (read_amass_folder, "DIR", ("text2pose",)),
         "posescript": (read_posescript, "DIR,AMASS_DIR", ("text2pose",)),
         "images": (read_images, "FILE.npz,IMAGE_DIR", IMAGE_TASKS), "3dpw": (read_3dpw, "DIR", IMAGE_TASKS),
         "rpe": (read_rpe, "FILE.json,IMAGE_DIR", ("image2pose",)),
         "bedlam-script": (read_bedlam_script, "DIR,IMAGE_DIR", ("vqa",)),
         "llava": (read_llava, "FILE.json,IMAGE_DIR", ("vqa",))}


def read_data(specs: list[str], split: str = "train", image_size: int = 64, skip_bad: bool = False) -> Mixture:
    """The data that specs such as "3dpw:DIR=2" name: a kind, its paths and a weight, 1 if not given.

    split: "train" (in which every other example is mirrored), "val" or "test"; a kind read from one file has the rows
    of that file in each. Pictures become image_size pixels square. skip_bad: leave out rows at fault, say how many and
    why the first, instead of stopping. Raises ValueError with one sentence.
    """
    left_out, sources, weights = 0, [], []
    for spec in specs:
        kind, _, rest = spec.partition(":")
        reader, usage, tasks = KINDS.get(kind, (None, "", ()))
        places, weight = paths_and_weight(rest, usage.count(",") + 1)
        weights.append(weight)
        if not reader or len(places) != usage.count(",") + 1 or not all(places) or not 0 < weight < np.inf:
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
        left_out += found.count
        sources.append(Source(spec, rows, tasks, image_size, split == "train" and kind != "llava"))
    return Mixture(sources, weights, Faults(skip_bad), left_out)
