"""The splits of the built-in world: poses, made up or captured, each with a heading, a camera and a picture.

    rotmats (what words can tell) -> image_rotmats = Rx(tilt) Ry(heading) rotmats (what the camera sees) -> picture
Poses come from poses.py or, as motion capture, from real/amass.py; scene.py draws them.
Read next: ../data.py, which makes examples of a split.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import captions
from body import axis_rotation, mirror, remove_heading
from builtin.poses import sample_poses
from builtin.scene import photograph
from data import Split
from real.amass import SPLITS, load_amass
from real.smpl import load_body


def make_split(rotmats: Tensor, rng: np.random.Generator, size: int = 64, images: bool = True,
               body_model: torch.nn.Module | None = None) -> Split:
    """Give every pose (N, 24, 3, 3) a shape, a heading, a camera and, unless `images` is off, a picture.

    body_model: from `load_body`, the built-in one when None.
    """
    n, rotmats = len(rotmats), remove_heading(rotmats)
    # People face the camera more often than not; every heading occurs.
    heading, tilt = (torch.from_numpy(drawn).float() for drawn in (rng.normal(0, 50, n), rng.uniform(-5, 15, n)))
    betas = torch.from_numpy(rng.standard_normal((n, 10))).float()
    in_camera = rotmats.clone()
    # The camera looks down by `tilt` degrees; in its frame the whole body leans towards it by as much.
    in_camera[:, 0] = axis_rotation(0, tilt) @ axis_rotation(1, heading) @ rotmats[:, 0]
    pictures = None
    if images:
        model = body_model if body_model is not None else load_body()
        pictures = np.concatenate([photograph(model, in_camera[i:i + 32], betas[i:i + 32], size, rng)
                                   for i in range(0, n, 32)])
    return Split(rotmats, captions.pose_holds(rotmats).numpy(), in_camera, betas, pictures)


def load_splits(poses_dir: str | Path | None = None, counts: dict[str, int] | None = None, seed: int = 0,
                images: bool = True, body_model: torch.nn.Module | None = None, size: int = 64) -> dict[str, Split]:
    """The splits train, val and test, which share no pose: made-up poses, or motion capture from `poses_dir`.

    counts: how many poses of each split, at most what `poses_dir` holds. The captured train poses are mirrored too.
    size: pixels a side of the pictures.
    """
    counts = counts or {"train": 10_000, "val": 500, "test": 1_000}
    read = {}  # all of them before the first picture is drawn: one may not be there
    for name, count in counts.items():
        rng = np.random.default_rng([seed, SPLITS.index(name)])  # no split depends on the size of another
        if poses_dir is None:
            rotmats = sample_poses(count, rng)
        else:
            rotmats = load_amass(poses_dir, name)
            rotmats = torch.cat([rotmats, mirror(rotmats)]) if name == "train" else rotmats
            rotmats = rotmats[rng.permutation(len(rotmats))[:count]]
        read[name] = rotmats, rng
    return {name: make_split(*found, size, images, body_model) for name, found in read.items()}
