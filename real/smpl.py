"""SMPL's mesh: a body of your own from the official files, or the built-in one, and the vertices of a posed body.

    vertices = skinning(template + shapes betas + pose correctives, rotations)        (Loper et al. 2015, by smplx)
Read next: smpl_pickle.py, which reads the official files without chumpy, and builtin/mesh.py, the body in their place.
"""

import copy
import functools

import numpy as np
import smplx
from torch import Tensor

from body import PARENTS
from builtin.mesh import built_in_arrays
from real.smpl_pickle import read_smpl


def load_body(path: str | None = None) -> smplx.SMPL:
    """SMPL (Loper et al. 2015) from its official pickle, an .npz of its arrays or a folder of either, as
    `smpl_pickle.read_smpl` finds and checks them; without a path the built-in body in its place. A file is read once;
    each body is the caller's own, to be moved to a device.

    SMPL's own rest pose stands in this project's frame. Raises FileNotFoundError, or ValueError for any other file."""
    return copy.deepcopy(_read_body(path))


@functools.lru_cache
def _read_body(path: str | None) -> smplx.SMPL:
    arrays = built_in_arrays() if path is None else read_smpl(path)
    if tuple(arrays["kintree_table"][0, 1:]) != PARENTS[1:]:
        raise ValueError(f"{path}: kintree_table is not that of SMPL's 24 joints")
    # smplx takes 10 shape coefficients, but prints a warning unless there are 300. The points it reads off the skin
    # (nose, toes, finger tips) are not used here, so any vertex will do.
    arrays["shapedirs"] = np.pad(arrays["shapedirs"][..., :10], ((0, 0), (0, 0), (0, 290)))
    return smplx.SMPL(model_path="", data_struct=smplx.utils.Struct(**arrays), create_transl=False,
                      vertex_ids=dict.fromkeys(smplx.vertex_ids.vertex_ids["smplh"], 0)).requires_grad_(False)


def body_vertices(body: smplx.SMPL, rotmats: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
    """Vertices (B, V, 3) and joints (B, 24, 3), metres, pelvis joint at the origin, of poses (B, 24, 3, 3) and shape
    coefficients betas (B, 10), which are about standard normal among people."""
    if rotmats.shape[1:] != (24, 3, 3) or betas.shape != (len(rotmats), 10):
        raise ValueError(f"need rotmats (B, 24, 3, 3), betas (B, 10); got {tuple(rotmats.shape)}, {tuple(betas.shape)}")
    out = body(betas=betas, global_orient=rotmats[:, :1], body_pose=rotmats[:, 1:], pose2rot=False)
    return out.vertices - out.joints[:, :1], out.joints[:, :24] - out.joints[:, :1]
