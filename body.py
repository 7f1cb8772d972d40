"""The body: rotations, SMPL's skeleton, and kinematics, from the joints' rotations to where the joints are.

SMPL (Loper et al. 2015) poses a body by one rotation per joint, each relative to its parent:
    global(j) = global(parent(j)) R(j),    position(j) = position(parent(j)) + global(parent(j)) offset(j)
Everywhere in this project a pose is a tensor of rotation matrices (..., 24, 3, 3) in one frame: y up, an upright
person with the identity at the root faces +z, the body's left is +x. Lengths are metres, angles radians. The root has
no position: the pelvis is the origin, and where a height above the ground is needed, the lowest joint is the ground.
Read next: data.py, which makes training examples of poses.
"""

import torch
from torch import Tensor

JOINT_NAMES = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle", "right_ankle",
    "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head", "left_shoulder",
    "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hand", "right_hand")
JOINT = {name: index for index, name in enumerate(JOINT_NAMES)}
PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
MIRRORED = (0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20, 23, 22)  # the other side's
# Joints of equal depth in the tree, posed in one operation each.
LEVELS = ((1, 2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12, 13, 14), (15, 16, 17), (18, 19), (20, 21), (22, 23))


# ---------------------------------------------------------------- rotations

def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """Axis-angle (..., 3), radians, to rotation matrices (..., 3, 3) by Rodrigues' formula; smooth at zero."""
    angle_sq = (axis_angle ** 2).sum(-1, keepdim=True)  # (..., 1)
    small = angle_sq < 1e-8
    angle = torch.where(small, torch.ones_like(angle_sq), angle_sq).sqrt()
    # sin(a)/a and (1-cos(a))/a^2, with their Taylor series where a is small, so that gradients stay finite.
    a = torch.where(small, 1 - angle_sq / 6, angle.sin() / angle)[..., None]  # (..., 1, 1)
    b = torch.where(small, 0.5 - angle_sq / 24, (1 - angle.cos()) / angle ** 2)[..., None]
    eye = torch.eye(3, dtype=a.dtype, device=a.device).expand(*axis_angle.shape, 3)
    k = torch.linalg.cross(axis_angle[..., None].expand_as(eye), eye, dim=-2)  # (..., 3, 3), takes v to axis_angle x v
    return eye + a * k + b * (k @ k)


def axis_rotation(axis: int, degrees: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) about x, y or z (axis 0, 1, 2) by angles (...) in degrees."""
    vector = torch.zeros(*degrees.shape, 3)
    vector[..., axis] = torch.deg2rad(degrees)
    return axis_angle_to_matrix(vector)


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) to axis-angle (..., 3), radians, angle in [0, pi]; exact near 0 and near pi,
    by way of the quaternion (Shepperd 1978: of four equal formulas the best conditioned is taken)."""
    a, b, c, d, e, f, g, h, i = matrix.flatten(-2).unbind(-1)
    w, x, y, z = 1 + a + e + i, 1 + a - e - i, 1 - a + e - i, 1 - a - e + i  # the quaternion's squares, times 4
    # Row k is the quaternion (w, x, y, z) times 4 of its component k.
    rows = torch.stack([w, h - f, c - g, d - b, h - f, x, b + d, c + g, c - g, b + d, y, f + h, d - b, c + g, f + h, z])
    best = torch.stack([w, x, y, z]).argmax(0)  # (...)
    quat = torch.take_along_dim(rows.unflatten(0, (4, 4)), best[None, None], 0)[0]  # (4, ...)
    quat = torch.nn.functional.normalize(quat, dim=0).movedim(0, -1)  # (..., 4)
    quat = torch.where(quat[..., :1] < 0, -quat, quat)
    sin_half = quat[..., 1:].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sin_half, quat[..., :1])
    scale = torch.where(sin_half < 1e-6, 2 * torch.ones_like(angle), angle / sin_half.clamp_min(1e-6))
    return quat[..., 1:] * scale


def rot6d_to_matrix(rot6d: Tensor) -> Tensor:
    """6D (..., 6), a matrix's first two columns, to (..., 3, 3) by Gram-Schmidt (Zhou et al. 2019); finite for any."""
    first = torch.nn.functional.normalize(rot6d[..., :3], dim=-1)
    second = rot6d[..., 3:] - (first * rot6d[..., 3:]).sum(-1, keepdim=True) * first
    second = torch.nn.functional.normalize(second, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], -1)


def matrix_to_rot6d(matrix: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) to their first two columns, (..., 6)."""
    return torch.cat([matrix[..., 0], matrix[..., 1]], -1)


# ---------------------------------------------------------------- the skeleton

# Rest joints (24, 3), a T-pose with the pelvis at the origin. Heights, legs and forearms are, to about 2 cm, those
# of Drillis & Contini (1966; in Winter, Biomechanics, 2009) for 1.70 m; hips, shoulders and elbows are further inward.
REST_JOINTS = torch.tensor([
    (0, 0, 0), (.06, -.09, 0), (-.06, -.09, 0), (0, .11, -.02), (.10, -.49, 0), (-.10, -.49, 0), (0, .24, -.02),
    (.09, -.91, -.02), (-.09, -.91, -.02), (0, .30, 0), (.11, -.97, .11), (-.11, -.97, .11), (0, .49, -.02),
    (.08, .42, -.02), (-.08, .42, -.02), (0, .57, .01), (.18, .44, -.02), (-.18, .44, -.02), (.45, .44, -.03),
    (-.45, .44, -.03), (.70, .44, -.03), (-.70, .44, -.03), (.79, .44, -.03), (-.79, .44, -.03),
])


def forward_kinematics(rotmats: Tensor, rest_joints: Tensor = REST_JOINTS) -> tuple[Tensor, Tensor]:
    """Joint positions (..., 24, 3), pelvis at the origin, and global rotations (..., 24, 3, 3) of a pose.

    rotmats: (..., 24, 3, 3), local. rest_joints: (24, 3) or batched (..., 24, 3), metres."""
    if rotmats.shape[-3:] != (24, 3, 3):
        raise ValueError(f"a pose must be rotation matrices (..., 24, 3, 3), got {tuple(rotmats.shape)}")
    rest_joints = rest_joints.to(rotmats)
    offsets = rest_joints - rest_joints[..., PARENTS, :]  # row 0 is not used
    positions = [torch.zeros_like(rotmats[..., 0, :, 0])] * 24
    rotations = list(rotmats.unbind(-3))
    for joints in LEVELS:
        parent_rotation = torch.stack([rotations[PARENTS[j]] for j in joints], -3)  # (..., n, 3, 3)
        parent_position = torch.stack([positions[PARENTS[j]] for j in joints], -2)  # (..., n, 3)
        position = parent_position + (parent_rotation @ offsets[..., joints, :, None]).squeeze(-1)
        rotation = parent_rotation @ rotmats[..., joints, :, :]
        for i, j in enumerate(joints):
            positions[j], rotations[j] = position[..., i, :], rotation[..., i, :, :]
    return torch.stack(positions, -2), torch.stack(rotations, -3)


def mirror(rotmats: Tensor) -> Tensor:
    """The pose (..., 24, 3, 3) seen in a mirror: left and right joints swapped, every rotation reflected in x."""
    flip = torch.tensor([-1.0, 1.0, 1.0], dtype=rotmats.dtype, device=rotmats.device)
    return flip[:, None] * rotmats[..., MIRRORED, :, :] * flip


def remove_heading(rotmats: Tensor) -> Tensor:
    """The pose (..., 24, 3, 3) turned about the vertical until its hip line has no depth: what a sentence can tell. The
    hip line's angle is sturdier than an Euler angle, which is ill-posed for a body lying down."""
    left = rotmats[..., 0, :, 0]  # the root's x axis: the hip line
    heading = torch.atan2(-left[..., 2], left[..., 0])  # turn about +y that takes +x to the hip line
    back = axis_angle_to_matrix(torch.stack([torch.zeros_like(heading), -heading, torch.zeros_like(heading)], -1))
    return torch.cat([(back @ rotmats[..., 0, :, :]).unsqueeze(-3), rotmats[..., 1:, :, :]], -3)
