"""The body: rotations, SMPL's skeleton, the posed mesh, and a small renderer.

SMPL (Loper et al. 2015) poses a body by one rotation per joint, each relative to its parent:
    global(j) = global(parent(j)) R(j),    position(j) = position(parent(j)) + global(parent(j)) offset(j)
Everywhere in this project a pose is a tensor of rotation matrices (..., 24, 3, 3) in one frame: y up, an upright
person with the identity at the root faces +z, the body's left is +x. Lengths are metres, angles radians.
Read next: captions.py, which puts a pose into words.
"""

import functools

import numpy as np
import smplx
import torch
from torch import Tensor

from real import smpl_pickle

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

# Rest joints (24, 3), a T-pose with the pelvis at the origin. Heights, limb lengths and widths are the segment
# proportions of Drillis & Contini (1966; in Winter, Biomechanics, 2009) for a stature of 1.70 m, to the centimetre.
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
    turn = axis_angle_to_matrix(torch.stack([torch.zeros_like(heading), -heading, torch.zeros_like(heading)], -1))
    return torch.cat([(turn @ rotmats[..., 0, :, :]).unsqueeze(-3), rotmats[..., 1:, :, :]], -3)


# ---------------------------------------------------------------- a body made in code

# SMPL's own arrays need a licence, so the built-in body is made here: round cones, melted into one signed distance
# field and meshed. Rows: the joint that moves a cone, its two ends, the radius at each; in cm, the right side mirrored.
_CONES = (
    ("pelvis", (0, 2, -2), (0, -5, -2), 10.3, 10), ("pelvis", (7, 2, -2.5), (8.5, -7, -2), 9.6, 9.4),
    ("pelvis", (7, -10, -5.5), (7, -6, -6), 7.2, 7.4), ("spine1", (0, 5, -2), (0, 13, -1.5), 10.3, 9.7),
    ("spine1", (6, 5, -2), (6, 13, -1.5), 9.8, 8.8), ("spine2", (0, 14, -1.5), (0, 25, -1.5), 9.7, 10.2),
    ("spine2", (6, 14, -1.5), (7.3, 25, -1.5), 8.8, 9.8), ("spine3", (0, 26, -1.5), (0, 36, -2.5), 10.3, 8),
    ("spine3", (7.5, 26, -1.5), (8.5, 36, -2.5), 9.8, 8.2), ("spine3", (8, 33, 2), (7, 30, 2), 6.5, 6.5),
    ("neck", (0, 40, -3.5), (0, 58, -1), 6, 5.4), ("left_collar", (3, 43.5, -3), (16, 43, -2), 5, 5.8),
    ("head", (0, 63, -3), (0, 64, 2.5), 8.2, 7.4), ("head", (0, 60, 3), (0, 53.5, 5.5), 6, 3.6),
    ("head", (0, 62, 9.4), (0, 58.2, 11.6), .9, 1.4), ("head", (7.3, 60.5, 0), (7.5, 57.5, -.5), 1.5, 1.1),
    ("left_shoulder", (18, 43, -2), (45, 44, -3), 6.2, 4.1), ("left_elbow", (45, 44, -3), (53, 44, -3), 4, 4.2),
    ("left_elbow", (53, 44, -3), (69, 44, -3), 4.2, 2.6), ("left_wrist", (70, 44, -3), (78, 44, -5), 2.4, 2),
    ("left_wrist", (70, 44, -3), (78, 44, -1.2), 2.4, 2), ("left_wrist", (72, 43.7, -1), (79, 43, 3.8), 1.8, 1.4),
    ("left_hand", (78, 44, -5), (85.5, 43.5, -4.5), 2, 1.6), ("left_hand", (78, 44, -1.2), (86.5, 43.5, -2), 2, 1.6),
    ("left_hip", (9, -10, -.5), (10, -49, 0), 8.8, 5.3), ("left_knee", (10, -49, 0), (9.8, -62, -2), 5.1, 5.6),
    ("left_knee", (9.8, -62, -2), (9, -90, -2), 5.6, 3.6), ("left_ankle", (9, -90, -2), (10.5, -95, 7), 3.8, 3.4),
    ("left_ankle", (9, -95.5, -4.5), (9.5, -96, 10), 3.6, 3.4), ("left_ankle", (9, -95.5, -3), (12.5, -96, 10), 3, 3),
    ("left_foot", (9.5, -96, 10), (10, -96.5, 16), 3.4, 2.4), ("left_foot", (12.5, -96, 10), (12, -96.5, 14.5), 3, 2.2),
)
# The grid it is meshed on: (from, spacing) per stretch of x, y and z, metres; finer at the head, hands and feet.
_GRID = (((.0115, .023), (.13, .034), (.20, .050), (.64, .02), (.70, .016), (.92, 0)), ((-1.04, .022), (-.88, .054),
         (-.12, .036), (.34, .022), (.53, .019), (.74, 0)), ((-.20, .024), (.06, .02), (.24, 0)))
# A row per shape coefficient: the growth, along x, y and z of the T-pose, of the parts whose joint's name holds one of
# the words. What hangs on a part moves along, so that a longer thigh lowers the foot.
_LEGS, _ARMS, _TORSO = " hip knee ankle foot", " shoulder elbow wrist hand", " pelvis spine"
_SHAPES = (
    {_LEGS + _ARMS + _TORSO + " collar neck head": (.035, .035, .035)},  # stature
    {_TORSO: (.07, 0, .10), _LEGS: (.07, 0, .07), _ARMS: (0, .07, .07), "neck": (.04, 0, .04)},  # weight
    {_ARMS: (.05, 0, 0), _LEGS: (0, .05, 0)}, {_TORSO: (0, .04, 0)},  # limb length, torso length
    {"spine3": (.05, 0, 0), "collar": (.06, 0, 0)}, {"pelvis": (.07, 0, .04)},  # shoulder width, hip width
    {_LEGS: (.08, 0, .08)}, {"spine1": (.05, 0, .12), "spine2": (.05, 0, .08)},  # leg thickness, belly
    {"spine3": (.02, 0, .09), _ARMS: (0, .05, .05)}, {"head": (.06, .06, .06)},  # chest and arms, head size
)


def _field(points: Tensor) -> tuple[Tensor, Tensor]:
    """Signed distance (...), metres, of points (..., 3) to the body; the joint (...) that moves the nearest cone."""
    distances, joints = [], []
    for name, start, end, r0, r1 in _CONES:
        for side in (1, -1) if end[0] else (1,):
            a, b = (torch.tensor(e) * torch.tensor([side, 1, 1]) / 100 for e in (start, end))
            along = ((points - a) @ (b - a) / (b - a).square().sum()).clamp(0, 1)
            distances.append((points - a - along[..., None] * (b - a)).norm(dim=-1) - (r0 + along * (r1 - r0)) / 100)
            joints.append(JOINT[name] if side == 1 else MIRRORED[JOINT[name]])
    distances = torch.stack(distances, -1)
    melted = -.012 * torch.logsumexp(-distances / .012, -1)  # a smooth minimum: cones blend over about a centimetre
    return torch.maximum(melted, -.985 - points[..., 1]), torch.tensor(joints)[distances.argmin(-1)]  # flat soles


def _stand_in_arrays() -> dict[str, np.ndarray]:
    """SMPL's arrays, as smpl_pickle.read_smpl lists them, for the body made of cones."""
    # Surface nets (Gibson 1998): a vertex in every grid cell, a quad around every grid edge that the surface crosses.
    x, y, z = (torch.cat([torch.arange(a, b, step) for (a, step), (b, _) in zip(s, s[1:])]) for s in _GRID)
    planes = torch.cat([-x.flip(0), x]), y, z  # none at x = 0, so that the midline gets vertices of its own
    inside = _field(torch.stack(torch.meshgrid(*planes, indexing="ij"), -1))[0] < 0
    crossed = (torch.nn.functional.avg_pool3d(inside[None].float(), 2, stride=1)[0] - .5).abs() < .5  # grid cells
    index = crossed.flatten().cumsum(0).view_as(crossed) - 1  # a crossed cell's vertex
    mirrored = index.flip(0)[crossed]
    quads = []
    for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):  # grid edges along x, y and z
        solid, cell = inside.permute(order), index.permute(order)
        here, there = solid[:-1, 1:-1, 1:-1], solid[1:, 1:-1, 1:-1]
        around = torch.stack([cell[:, :-1, :-1], cell[:, 1:, :-1], cell[:, 1:, 1:], cell[:, :-1, 1:]], -1)
        quads += [around[here & ~there], around[~here & there].flip(-1)]  # counter-clockwise seen from outside
    quads = torch.cat(quads)  # (Q, 4)
    average = torch.zeros(len(mirrored), len(mirrored))  # (V, V), replaces a value by its mean with its neighbours'
    average[quads, quads.roll(1, 1)] = 1  # every edge lies in two quads, once each way round
    average = (average / average.sum(1, keepdim=True) + torch.eye(len(mirrored))) / 2
    vertices = torch.stack(torch.meshgrid(*[(p[1:] + p[:-1]) / 2 for p in planes], indexing="ij"), -1)[crossed]
    for step in range(8):  # even the vertices out, then step back onto the surface (Newton)
        vertices = (average @ vertices if step < 6 else vertices).requires_grad_()
        distance = _field(vertices)[0]
        slope, = torch.autograd.grad(distance.sum(), vertices)
        vertices = (vertices - distance[:, None] * slope / slope.square().sum(-1, keepdim=True)).detach()
        vertices = (vertices + vertices[mirrored] * torch.tensor([-1, 1, 1])) / 2
    across = (vertices[quads] - vertices[quads.roll(2, 1)]).norm(dim=-1)  # (Q, 4): cut quads along the shorter diagonal
    faces = torch.where(across[:, :1] < across[:, 1:2], quads[:, [0, 1, 2, 0, 2, 3]], quads[:, [0, 1, 3, 1, 2, 3]])
    from_joint = vertices[:, None] - REST_JOINTS  # (V, 24, 3)
    # Skinning: every vertex starts with the joint of its nearest cone, then weights spread along the surface, never
    # through the air, so that no arm pulls the chest and no leg the other.
    weights = torch.nn.functional.one_hot(_field(vertices)[1], 24).float()  # (V, 24)
    for _ in range(12):
        weights = average @ weights
    weights = weights + weights[mirrored][:, MIRRORED]
    four = weights >= weights.topk(4).values[:, -1:]  # joints a vertex, or more if they tie
    weights = torch.nn.functional.normalize(weights * four, p=1, dim=-1)
    # Joint regressor: a Gaussian window around the joint, tilted so that it returns the joint exactly; such a row also
    # follows every affine change of the flesh around the joint, hence the shape coefficients.
    window = torch.exp(-from_joint.square().sum(-1) / .02)[..., None]  # (V, 24, 1)
    basis = (window * torch.cat([torch.ones_like(window), from_joint], -1)).transpose(0, 1)  # (24, V, 4)
    regressor = torch.linalg.pinv(basis)[:, 0] * window[..., 0].T  # (24, V)
    shapedirs = torch.zeros(*vertices.shape, 10)
    for k, row in enumerate(_SHAPES):
        growth, moved = torch.zeros(24, 3), torch.zeros(24, 3)
        for words, amount in row.items():
            growth[[any(word in name for word in words.split()) for name in JOINT_NAMES]] += torch.tensor(amount)
        for j in range(1, 24):
            moved[j] = moved[PARENTS[j]] + growth[PARENTS[j]] * (REST_JOINTS[j] - REST_JOINTS[PARENTS[j]])
        shapedirs[..., k] = (weights[..., None] * (moved + growth * from_joint)).sum(1)
    arrays = dict(v_template=vertices, shapedirs=shapedirs, posedirs=torch.zeros(*vertices.shape, 207), weights=weights,
                  f=faces.view(-1, 3), J_regressor=regressor, kintree_table=torch.tensor([PARENTS, range(24)]))
    return {name: array.numpy() for name, array in arrays.items()}


@functools.lru_cache
def load_body(path: str | None = None) -> smplx.SMPL:
    """SMPL (Loper et al. 2015) from its official pickle, an .npz of its arrays or a folder of either, as
    `smpl_pickle.read_smpl` finds and checks them; without a path the built-in body in its place.

    SMPL's own rest pose stands in this project's frame. Raises FileNotFoundError, or ValueError for any other file."""
    arrays = _stand_in_arrays() if path is None else smpl_pickle.read_smpl(path)
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


# ---------------------------------------------------------------- pictures

# In the built-in world the left sleeve and the left trouser leg have a colour of their own, so that left and right can
# be told apart in a small picture, by lightness too, for the colour-blind. _WORN_BY: the joints that move each part.
PARTS = ("skin", "hair", "shirt", "left_sleeve", "trousers", "left_leg", "shoes")
PALETTE = torch.tensor([(.87, .68, .55), (.24, .17, .13), (.18, .42, .68), (.95, .73, .20), (.30, .33, .40),
                        (.64, .70, .76), (.15, .15, .17)])
_WORN_BY = ((12, 15, 20, 21, 22, 23), (15,), (3, 6, 9, 13, 14, 17, 19), (16, 18), (0, 2, 5), (1, 4), (7, 8, 10, 11))


def part_colors(body: smplx.SMPL, palette: Tensor) -> Tensor:
    """Colours (B, V, 3) of the body's vertices, which wear what the joints that move them wear.

    palette: (B, 7, 3) colours in [0, 1] in the order of PARTS, for example PALETTE[None]."""
    share = torch.stack([body.lbs_weights[:, joints].sum(1) for joints in _WORN_BY], -1)  # (V, 7)
    head = body.lbs_weights[:, JOINT["head"]]
    low, high = body.v_template[head > .5].amin(0), body.v_template[head > .5].amax(0)
    _, y, z = ((body.v_template - low) / (high - low)).unbind(-1)  # 0 to 1 from chin to crown, from nape to nose
    share[:, 1] = head * torch.sigmoid((y - .4 - .45 * z) / .04)  # hair: the top and the back of the head
    share[:, 0] -= share[:, 1]
    share = share ** 6  # a seam as narrow as the mesh shows without teeth
    return (share / share.sum(-1, keepdim=True)) @ palette


@torch.no_grad()
def render(vertices: Tensor, faces: Tensor, colors: Tensor, size: int, center: Tensor, view_height: Tensor,
           distance: Tensor | None = None, *, light: Tensor, background: Tensor, supersample: int = 1) -> Tensor:
    """Pictures (B, size, size, 3), uint8, of a triangle mesh in B states, by a z-buffer over all of them at once.

    The camera stands at (center, distance), y up, and looks along -z; at z = 0 it sees view_height around center.
    Without distance the projection is weak-perspective. Back faces, and triangles that reach behind the camera, are
    not drawn. Several bodies in one picture are one mesh: concatenate. vertices: (B, V, 3), metres. faces: (F, 3),
    counter-clockwise from outside. colors: (B, V, 3) in [0, 1]. center: (B, 2), view_height, distance: (B,), metres.
    light: (B, 3), the way to the light. background: (B, 3) or (B, size, size, 3) in [0, 1]. supersample: a pixel is
    the mean of that many squared. Raises ValueError for a vertex that is not finite."""
    if not torch.isfinite(vertices).all():
        raise ValueError("a vertex to render is not finite; check the pose and the shape it came from")
    B, V, side, device = *vertices.shape[:2], size * supersample, vertices.device
    p, q, r = (vertices[:, faces[:, i]] for i in range(3))
    cross = torch.linalg.cross(q - p, r - p).repeat(1, 3, 1)  # twice a triangle's area long, once for each corner
    normals = torch.zeros_like(vertices).index_add_(1, faces.T.flatten(), cross)
    normals, light = (torch.nn.functional.normalize(v, dim=-1) for v in (normals, light))
    shade = .45 + .55 * (normals @ light[:, :, None]).clamp(min=0)  # (B, V, 1) ambient and Lambert
    colors, z = (colors * shade).flatten(0, 1), vertices[..., 2]  # (B V, 3), (B, V)
    depth = 1 - z / (torch.inf if distance is None else distance[:, None])  # (B, V), in units of the camera's distance
    zoom = 1 / depth.clamp(min=1e-3)  # what is nearer looks larger
    right, up = ((vertices[..., :2] - center[:, None]) * (zoom * side / view_height[:, None])[..., None]).unbind(-1)
    screen = side / 2 + torch.stack([right, -up]).flatten(1)  # (2, B V) pixels, x right and y down
    # Triangles to draw, M of them: turned to the camera (clockwise, since y points down) and wholly in front of it.
    corner = (torch.arange(B, device=device)[:, None, None] * V + faces).view(-1, 3).T  # (3, B F) index into B V
    (ax, bx, cx), (ay, by, cy) = screen[:, corner]
    shown = ((bx - ax) * (cy - ay) < (by - ay) * (cx - ax)) & (depth.flatten()[corner] > 1e-3).all(0)
    corner = corner[:, shown]  # (3, M)
    points = screen[:, corner] - .5  # (2, 3, M), pixel centres at whole numbers
    first = points.amin(1).ceil().clamp(min=0)  # (2, M) of the box around a triangle
    columns, lines = (points.amax(1).floor().clamp(max=side - 1) - first + 1).clamp(min=0).long()
    # A barycentric coordinate is a plane: slope_x * i + slope_y * j + offset at column i, line j of the box.
    (x1, y1), (x2, y2) = ((points - first[:, None]).roll(-k, 1) for k in (1, 2))
    planes = torch.stack([y1 - y2, x2 - x1, x1 * y2 - x2 * y1])  # (3, 3, M)
    planes = planes / planes[2].sum(0)
    # Candidates, N of them: every pixel of every box in one flat list, kept if inside its triangle.
    count = columns * lines
    triangle = torch.repeat_interleave(count)  # (N,) index into M
    nth = torch.arange(len(triangle), device=device) - (count.cumsum(0) - count)[triangle]
    i, j = nth % columns[triangle], nth // columns[triangle]
    slope_x, slope_y, offset = planes[:, :, triangle]
    bary = slope_x * i + slope_y * j + offset  # (3, N)
    inside = (bary.amin(0) > -1e-5).nonzero().squeeze(1)  # a hair wider, lest rounding open a crack
    triangle, i, j, bary = triangle[inside], i[inside], j[inside], bary[:, inside]
    vertex, (left, top) = corner[:, triangle], first.long()[:, triangle]
    slot = (vertex[0] // V * side + top + j) * side + left + i  # index into B side side
    bary = bary * zoom.flatten()[vertex]  # perspective-correct: what is linear on the screen is 1 / depth
    bary = bary / bary.sum(0)
    # z-buffer: one integer a candidate, nearness in the high half and the triangle in the low half; the largest wins.
    bits = (bary * z.flatten()[vertex]).sum(0).view(torch.int32)
    key = (bits ^ (bits >> 31 & 0x7FFFFFFF)).long() << 32 | triangle  # floats sort as their bits do, negatives flipped
    best = torch.full((B * side * side,), torch.iinfo(torch.int64).min, device=device)
    won = (best.scatter_reduce_(0, slot, key, "amax")[slot] == key).nonzero().squeeze(1)
    slot, vertex, bary = slot[won], vertex[:, won], bary[:, won, None]
    seen = torch.cat([(bary * colors[vertex]).sum(0), torch.ones_like(bary[0])], -1)  # (pixels, 4) colour and coverage
    pixel = slot // side // supersample * size + slot % side // supersample  # index into B size size
    canvas = torch.zeros(B * size * size, 4, device=device).index_add_(0, pixel, seen / supersample ** 2)
    color, coverage = canvas.view(B, size, size, 4).split([3, 1], -1)
    background = background if background.dim() == 4 else background[:, None, None]
    return ((color + (1 - coverage) * background).clamp(0, 1) * 255).round().to(torch.uint8)
