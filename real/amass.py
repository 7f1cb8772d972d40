"""Motion capture in AMASS's layout (Mahmood et al. 2019): files of axis-angles, their frame, and splits of files.

    R_root = Rx(-90 degrees) R_amass,    AMASS's world has z up, ours y; 12 poses a second are taken
Fingers and face are left out: SMPL has 24 joints, of which SMPL+H and SMPL-X, in which AMASS is published, have 22; the
two hands stay at rest. Sets made of it in SMPL itself have all 24.
Read next: formats.py, which reads AMASS with captions, and every other format.
"""

import functools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import body
from body import axis_rotation

SPLITS = ("train", "val", "test")
WIDTHS = (156, 165, 72)  # of `poses`: SMPL+H, SMPL-X, SMPL
RATES = ("mocap_framerate", "mocap_frame_rate")  # frames a second, as the release in SMPL+H and that in SMPL-X name it


@functools.cache
def _tell_of_no_rate(folder: Path) -> None:
    print(f"{folder}: motions without {' or '.join(RATES)} are taken whole, every frame a pose")


def amass_poses(path: str | Path) -> tuple[np.ndarray, int]:
    """The axis-angles (T, 156, 165 or 72) of an AMASS file, as they are, and the step that leaves about 12 a second (1
    in a file with `frame_idx`, which was thinned before, or without a rate). Every fault of the file raises a
    ValueError that names it."""
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("poses", *RATES, "frame_idx") if key in file}
    except Exception as error:  # zipfile, zlib, numpy and the system each raise their own
        raise ValueError(f"{path} cannot be read as an npz file: {error}") from error
    poses = arrays.get("poses")
    if poses is None:
        raise ValueError(f"{path} has no array `poses`; is it an AMASS motion file?")
    if poses.ndim != 2 or poses.shape[1] not in WIDTHS or not len(poses) or poses.dtype.kind != "f":
        shapes = " or ".join(f"(T, {width})" for width in WIDTHS)
        raise ValueError(f"{path}: `poses` must be floats {shapes}, found {poses.dtype} {poses.shape}")
    if not np.isfinite(poses).all():
        raise ValueError(f"{path}: `poses` holds NaN or infinity in {(~np.isfinite(poses)).any(1).sum()} frames")
    if np.abs(poses).max() > 100:
        raise ValueError(f"{path}: `poses` holds {np.abs(poses).max():.3g}, which no angle in radians is")
    named = next((name for name in RATES if name in arrays), None)
    if named is None:
        if "frame_idx" not in arrays:
            _tell_of_no_rate(Path(path).absolute().parent.parent)  # DATASET/SUBJECT/motion.npz: once a data set
        return poses, 1
    rate = arrays[named]
    if rate.size != 1 or rate.dtype.kind not in "fiu" or not 0 < rate.item() < np.inf:
        raise ValueError(f"{path}: `{named}` must be one number above 0, found {rate.dtype} {rate.shape}")
    return poses, 1 if "frame_idx" in arrays else max(1, round(rate.item() / 12))


def amass_rotmats(poses: np.ndarray) -> Tensor:
    """Poses (T, 24, 3, 3), turned from AMASS's z-up world into ours, of its axis-angles: SMPL's 24 joints, or the root,
    21 body joints, then fingers or face, which SMPL does not have: its joints 22 and 23 stay at the identity."""
    joints = 24 if poses.shape[1] == 72 else 22
    rotmats = torch.eye(3).repeat(len(poses), 24, 1, 1)
    axis_angle = torch.from_numpy(poses[:, :3 * joints].astype(np.float32)).unflatten(1, (joints, 3))
    rotmats[:, :joints] = body.axis_angle_to_matrix(axis_angle)
    rotmats[:, 0] = axis_rotation(0, torch.tensor(-90.0)) @ rotmats[:, 0]
    return rotmats


def read_amass(path: str | Path) -> Tensor:
    """Poses (T, 24, 3, 3) of an AMASS file in our frame, about 12 a second; see `amass_poses`, `amass_rotmats`."""
    poses, step = amass_poses(path)
    return amass_rotmats(poses[::step])


def subjects(files: Sequence[Path], at_least: int) -> list[list[Path]]:
    """The files of each subject. A subject is a folder, as AMASS lays them out, DATASET/SUBJECT/motion_poses.npz; where
    all files lie in one folder, what their names begin with: cmu_85_05.npz is of cmu_85. Where that leaves fewer than
    `at_least` subjects each file is taken for one."""
    names = [path.parent for path in files]
    if len(set(names)) == 1:
        names = [re.sub(r"_(poses|stageii)$", "", path.stem).rpartition("_")[0] or path.stem for path in files]
    names = names if len(set(names)) >= at_least else files
    found = {name: [] for name in names}
    for name, path in zip(names, files):
        found[name].append(path)
    return list(found.values())


def _motions(folder: Path) -> list[Path]:
    """The npz files in a folder and below, sorted, without the shapes that AMASS lays beside a subject's motions."""
    return sorted(path for path in folder.rglob("*.npz")
                  if path.name != "shape.npz" and not path.name.endswith("_stagei.npz"))


def amass_files(folder: str | Path, split: str) -> list[Path]:
    """The npz files of `split` ("train", "val", "test"), sorted: those under folder/split where these three folders
    exist (so that the data's own split of subjects is kept), else of every ten subjects one is test and one val."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of motion capture files")
    if all((folder / name).is_dir() for name in SPLITS):
        files = _motions(folder / split)
    else:
        files = [path for i, own in enumerate(subjects(_motions(folder), len(SPLITS))) for path in own
                 if split == {0: "test", 1: "val"}.get(i % 10, "train")]
    if not files:
        raise ValueError(f"{folder}: no npz files for the {split} split")
    return files


def load_amass(folder: str | Path, split: str) -> Tensor:
    """All poses (N, 24, 3, 3) of a split of an AMASS folder, with the heading removed; see `amass_files`."""
    return body.remove_heading(torch.cat([read_amass(path) for path in amass_files(folder, split)]))
