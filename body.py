"""The body: rotations, SMPL's skeleton, the posed mesh, and a small renderer.

SMPL (Loper et al. 2015) poses a body by one rotation per joint, each relative to its parent:
    global(j) = global(parent(j)) R(j),    position(j) = position(parent(j)) + global(parent(j)) offset(j)
Everywhere in this project a pose is a tensor of rotation matrices (..., 24, 3, 3) in one frame: y up, an upright
person with the identity at the root faces +z, the body's left is +x. Lengths are metres, angles radians.

Read next: captions.py, which puts a pose into words.
"""

import functools
from pathlib import Path

import numpy as np
import smplx
import torch
from torch import Tensor

JOINT_NAMES = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle", "right_ankle",
    "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head", "left_shoulder",
    "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hand", "right_hand",
)
JOINT = {name: index for index, name in enumerate(JOINT_NAMES)}
PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
# The joint that stands on the other side of the body (itself on the midline).
MIRRORED = tuple(JOINT[n.replace("left", "?").replace("right", "left").replace("?", "right")] for n in JOINT_NAMES)
# Joints of equal depth in the tree are posed in one operation: 9 levels instead of 23 joints.
_DEPTH = [0]
for _parent in PARENTS[1:]:
    _DEPTH.append(_DEPTH[_parent] + 1)
LEVELS = tuple(tuple(j for j in range(24) if _DEPTH[j] == d) for d in range(1, max(_DEPTH) + 1))


# ---------------------------------------------------------------- rotations

def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """Axis-angle (..., 3), radians, to rotation matrices (..., 3, 3) by Rodrigues' formula; smooth at zero."""
    angle_sq = (axis_angle ** 2).sum(-1, keepdim=True)  # (..., 1)
    small = angle_sq < 1e-8
    angle = torch.where(small, torch.ones_like(angle_sq), angle_sq).sqrt()
    # sin(a)/a and (1-cos(a))/a^2, with their Taylor series where a is small, so that gradients stay finite.
    a = torch.where(small, 1 - angle_sq / 6, angle.sin() / angle)[..., None]  # (..., 1, 1)
    b = torch.where(small, 0.5 - angle_sq / 24, (1 - angle.cos()) / angle ** 2)[..., None]
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    k = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))  # (..., 3, 3)
    return torch.eye(3, dtype=k.dtype, device=k.device) + a * k + b * (k @ k)


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) to axis-angle (..., 3), radians, angle in [0, pi]; exact near 0 and near pi.

    Goes through the quaternion by Shepperd's method: of four equal formulas the best conditioned is taken.
    """
    m = matrix
    diag = torch.diagonal(m, dim1=-2, dim2=-1)
    trace = diag.sum(-1, keepdim=True)
    sq = torch.cat([1 + trace, 1 + 2 * diag - trace], -1)  # (..., 4) = 4 w^2, 4 x^2, 4 y^2, 4 z^2
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    w4, x4, y4, z4 = sq.unbind(-1)
    # Row i of this table is the quaternion (w, x, y, z) times 4 of its component i.
    table = torch.stack([w4, wx, wy, wz, wx, x4, xy, xz, wy, xy, y4, yz, wz, xz, yz, z4], -1).unflatten(-1, (4, 4))
    best = sq.argmax(-1)[..., None, None].expand(*sq.shape[:-1], 1, 4)
    quat = torch.nn.functional.normalize(table.gather(-2, best).squeeze(-2), dim=-1)  # (..., 4)
    quat = torch.where(quat[..., :1] < 0, -quat, quat)
    sin_half = quat[..., 1:].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sin_half, quat[..., :1])
    scale = torch.where(sin_half < 1e-6, 2 * torch.ones_like(angle), angle / sin_half.clamp_min(1e-6))
    return quat[..., 1:] * scale


def rot6d_to_matrix(rot6d: Tensor) -> Tensor:
    """6D (..., 6), the matrix's first two columns one after the other, to (..., 3, 3) by Gram-Schmidt (Zhou et al. 2019)."""
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
    (.09, -.91, -.02), (-.09, -.91, -.02), (0, .30, 0), (.11, -.97, .11), (-.11, -.97, .11), (0, .51, -.02),
    (.08, .42, -.02), (-.08, .42, -.02), (0, .60, .02), (.18, .44, -.02), (-.18, .44, -.02), (.45, .44, -.03),
    (-.45, .44, -.03), (.70, .44, -.03), (-.70, .44, -.03), (.79, .44, -.03), (-.79, .44, -.03),
])


def forward_kinematics(rotmats: Tensor, rest_joints: Tensor = REST_JOINTS) -> tuple[Tensor, Tensor]:
    """Joint positions (..., 24, 3), pelvis at the origin, and global rotations (..., 24, 3, 3) of a pose.

    rotmats: (..., 24, 3, 3) local rotations. rest_joints: (24, 3) or batched (..., 24, 3), metres.
    """
    if rotmats.shape[-3:] != (24, 3, 3):
        raise ValueError(f"a pose must be rotation matrices (..., 24, 3, 3), got {tuple(rotmats.shape)}")
    rest_joints = rest_joints.to(rotmats)
    offsets = rest_joints - rest_joints[..., PARENTS, :]  # row 0 is not used
    positions = [torch.zeros_like(rotmats[..., 0, :, 0])] * 24
    rotations = list(rotmats.unbind(-3))
    for joints in LEVELS:
        parents = [PARENTS[j] for j in joints]
        parent_rotation = torch.stack([rotations[p] for p in parents], -3)  # (..., n, 3, 3)
        parent_position = torch.stack([positions[p] for p in parents], -2)  # (..., n, 3)
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
    """The pose (..., 24, 3, 3) turned about the vertical until its hip line has no depth: what a sentence can tell.

    Taking the angle of the hip line is sturdier than an Euler angle, which is ill-posed for a body lying down.
    """
    left = rotmats[..., 0, :, 0]  # the root's x axis: the hip line
    heading = torch.atan2(-left[..., 2], left[..., 0])  # turn about +y that takes +x to the hip line
    turn = axis_angle_to_matrix(torch.stack([torch.zeros_like(heading), -heading, torch.zeros_like(heading)], -1))
    return torch.cat([(turn @ rotmats[..., 0, :, :]).unsqueeze(-3), rotmats[..., 1:, :, :]], -3)


# ---------------------------------------------------------------- a body made in code

# SMPL's own arrays need a licence, so the built-in body is made here: round cones, smoothly blended into one signed
# distance field and meshed. A row is (joint that moves it, from, to, radius there, radius here), in metres; a row off
# the midline stands for its mirror image too.
_CONES = (
    ("pelvis", (.075, .01, -.025), (.085, -.07, -.02), .098, .094), ("pelvis", (.075, -.10, -.055), (.075, -.06, -.06), .074, .074),
    ("spine1", (.060, .05, -.02), (.058, .13, -.015), .100, .090),
    ("spine2", (.058, .14, -.015), (.070, .25, -.015), .090, .098),
    ("spine3", (.075, .26, -.015), (.080, .36, -.03), .100, .085), ("spine3", (.07, .33, .03), (.06, .30, .03), .06, .06),
    ("neck", (0, .40, -.035), (0, .58, -.01), .062, .054), ("left_collar", (.03, .44, -.03), (.16, .435, -.02), .05, .055),
    ("head", (0, .63, -.03), (0, .64, .025), .082, .074), ("head", (0, .60, .03), (0, .54, .06), .060, .034),
    ("head", (0, .610, .098), (0, .580, .112), .008, .013), ("head", (.074, .60, 0), (.076, .575, -.005), .014, .010),
    ("left_shoulder", (.18, .43, -.02), (.45, .44, -.03), .062, .040),
    ("left_elbow", (.45, .44, -.03), (.53, .44, -.03), .039, .041), ("left_elbow", (.53, .44, -.03), (.69, .44, -.03), .041, .025),
    ("left_wrist", (.70, .44, -.03), (.78, .44, -.048), .024, .018), ("left_wrist", (.70, .44, -.03), (.78, .44, -.015), .024, .018),
    ("left_wrist", (.71, .437, -.01), (.79, .43, .035), .016, .012),
    ("left_hand", (.78, .44, -.048), (.86, .435, -.045), .018, .012), ("left_hand", (.78, .44, -.015), (.87, .435, -.02), .018, .012),
    ("left_hip", (.09, -.10, -.005), (.10, -.49, .0), .088, .053),
    ("left_knee", (.10, -.49, .0), (.098, -.62, -.02), .051, .055), ("left_knee", (.098, -.62, -.02), (.09, -.90, -.02), .055, .036),
    ("left_ankle", (.09, -.90, -.02), (.105, -.955, .07), .038, .034), ("left_ankle", (.088, -.955, -.045), (.095, -.96, .1), .034, .032),
    ("left_ankle", (.09, -.957, -.03), (.125, -.96, .1), .03, .03),
    ("left_foot", (.092, -.96, .1), (.10, -.965, .16), .032, .024), ("left_foot", (.125, -.96, .1), (.12, -.967, .145), .03, .022),
)
_BLEND = 0.012  # metres over which neighbouring cones melt into each other
# Grid planes: (position, spacing from there on). Finer where the body has detail: head, hands and feet.
_GRID_X = ((.01, .02), (.13, .025), (.20, .034), (.64, .02), (.70, .015), (.92, 0))
_GRID_Y = ((-1.04, .018), (-.88, .034), (-.12, .026), (.34, .019), (.74, 0))
_GRID_Z = ((-.20, .021), (.24, 0))


def _distances(points: Tensor) -> tuple[Tensor, list[int]]:
    """Distance of points (..., 3) to each cone, (..., cones), negative inside, and the joint that moves each cone."""
    distances, joints = [], []
    for name, start, end, r0, r1 in _CONES:
        for side in (1, -1) if end[0] else (1,):
            flip = torch.tensor([side, 1.0, 1.0])
            a, b = torch.tensor(start) * flip, torch.tensor(end) * flip
            t = ((points - a) @ ((b - a) / (b - a).square().sum())).clamp(0, 1)
            distances.append((points - a - t[..., None] * (b - a)).norm(dim=-1) - r0 - t * (r1 - r0))
            joints.append(JOINT[name] if side == 1 else MIRRORED[JOINT[name]])
    return torch.stack(distances, -1), joints


def _field(points: Tensor) -> Tensor:
    """Signed distance (...), about metres, of points (..., 3) to the blended cones."""
    return -_BLEND * torch.logsumexp(-_distances(points)[0] / _BLEND, -1)


def _grid_planes(knots: tuple) -> Tensor:
    planes = [torch.arange(a, b, step) for (a, step), (b, _) in zip(knots, knots[1:])]
    return torch.cat(planes)


def _body_mesh() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Vertices (V, 3), faces (F, 3), edges (2, E) both ways round, and each vertex's mirror image (V,): surface nets.

    One vertex in every grid cell that the surface crosses, one quad around every grid edge that it crosses.
    """
    half = _grid_planes(_GRID_X)  # no plane at x = 0, so the middle cells hold vertices on the midline
    axes = torch.cat([-half.flip(0), half]), _grid_planes(_GRID_Y), _grid_planes(_GRID_Z)
    inside = _field(torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)) < 0  # (X, Y, Z)
    corners = inside.float()[None]
    occupancy = torch.nn.functional.avg_pool3d(corners, 2, stride=1)[0]
    crossed = (occupancy > 0) & (occupancy < 1)
    index = torch.full(crossed.shape, -1)
    index[crossed] = torch.arange(int(crossed.sum()))
    centers = torch.stack(torch.meshgrid(*[(a[1:] + a[:-1]) / 2 for a in axes], indexing="ij"), -1)
    vertices, mirrored = centers[crossed], index.flip(0)[crossed]

    quads = []
    for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):  # grid edges along x, y, z
        solid, cell = inside.permute(order), index.permute(order)
        start, stop = solid[:-1, 1:-1, 1:-1], solid[1:, 1:-1, 1:-1]
        quad = torch.stack([cell[:, :-1, :-1], cell[:, 1:, :-1], cell[:, 1:, 1:], cell[:, :-1, 1:]], -1)  # outward along +
        quads += [quad[start & ~stop], quad[~start & stop].flip(-1)]
    quads = torch.cat(quads)
    edges = torch.cat([torch.stack([quads[:, i], quads[:, (i + 1) % 4]]) for i in range(4)], 1)

    for step in range(8):  # relax along the surface, then step back onto it (Newton)
        vertices = (vertices + _neighbour_mean(vertices, edges)) / 2 if step < 6 else vertices
        points = vertices.requires_grad_()
        distance = _field(points)
        slope, = torch.autograd.grad(distance.sum(), points)
        vertices = (points - distance[:, None] * slope / slope.square().sum(-1, keepdim=True)).detach()
        vertices = (vertices + vertices[mirrored] * torch.tensor([-1.0, 1.0, 1.0])) / 2

    a, b, c, d = vertices[quads].unbind(1)
    short = ((a - c).norm(dim=-1) <= (b - d).norm(dim=-1))[:, None]
    faces = torch.cat([torch.where(short, quads[:, [0, 1, 2]], quads[:, [0, 1, 3]]),
                       torch.where(short, quads[:, [0, 2, 3]], quads[:, [1, 2, 3]])])
    return vertices, faces, edges, mirrored


def _neighbour_mean(values: Tensor, edges: Tensor) -> Tensor:
    total = torch.zeros_like(values).index_add_(0, edges[0], values[edges[1]])
    return total / torch.bincount(edges[0])[:, None]


class _TenShapes(smplx.SMPL):
    SHAPE_SPACE_DIM = 10  # as many as there are; smplx prints a warning for fewer than 300


# One row per shape coefficient: the growth along x, y and z of the T-pose of the parts whose joint's name holds one
# of the words. Children move along, so that a longer thigh lowers the foot.
_LEGS, _ARMS, _TORSO = " hip knee ankle foot", " shoulder elbow wrist hand", " pelvis spine"
_SHAPES = (
    {_LEGS + _ARMS + _TORSO + " collar neck head": (.035, .035, .035)},  # stature
    {_TORSO: (.07, 0, .10), _LEGS: (.07, 0, .07), _ARMS: (0, .07, .07), "neck": (.04, 0, .04)},  # weight
    {_ARMS: (.05, 0, 0), _LEGS: (0, .05, 0)},  # limb length
    {"spine3": (.05, 0, 0), "collar": (.06, 0, 0)},  # shoulder width
    {"pelvis": (.07, 0, .04)},  # hip width
    {_TORSO: (0, .04, 0)},  # torso length
    {_LEGS: (.08, 0, .08)},  # leg thickness
    {"spine1": (.05, 0, .12), "spine2": (.05, 0, .08)},  # belly
    {"spine3": (.02, 0, .09), _ARMS: (0, .05, .05)},  # chest and arms
    {"head": (.06, .06, .06)},  # head size
)


def _stand_in_arrays() -> dict[str, np.ndarray]:
    """The arrays of SMPL (see load_body) for the body made of cones."""
    vertices, faces, edges, mirrored = _body_mesh()
    # Skinning: every vertex starts with the joint of its nearest cone, then weights spread along the surface, never
    # through the air, so that an arm cannot pull the chest and a leg cannot pull the other.
    distances, joints = _distances(vertices)
    weights = torch.nn.functional.one_hot(torch.tensor(joints)[distances.argmin(-1)], 24).float()  # (V, 24)
    for _ in range(10):
        weights = (weights + _neighbour_mean(weights, edges)) / 2
    weights = (weights + weights[mirrored][:, MIRRORED]) / 2
    weights = weights * (weights >= weights.topk(4).values[:, -1:])
    weights = weights / weights.sum(-1, keepdim=True)

    # Joint regressor: a Gaussian window around the joint, corrected to return the joint exactly. What returns a point
    # and sums to one also follows every affine change of the flesh around it, hence the shape coefficients.
    offsets = (vertices - REST_JOINTS[:, None]).double()  # (24, V, 3)
    window = torch.exp(-offsets.square().sum(-1) / (2 * .07 ** 2))  # (24, V)
    basis = torch.cat([torch.ones_like(window)[..., None], offsets], -1)  # (24, V, 4)
    gram = torch.einsum("jva,jv,jvb->jab", basis, window, basis)
    regressor = window * (basis @ torch.linalg.inv(gram)[:, :, :1]).squeeze(-1)  # rows: sum to 1, first moment 0

    shapedirs = []
    for row in _SHAPES:
        growth, moved = torch.zeros(24, 3), torch.zeros(24, 3)
        for words, amount in row.items():
            growth += torch.tensor([amount if any(w in n for w in words.split()) else (0, 0, 0) for n in JOINT_NAMES])
        for j in range(1, 24):
            moved[j] = moved[PARENTS[j]] + growth[PARENTS[j]] * (REST_JOINTS[j] - REST_JOINTS[PARENTS[j]])
        per_joint = moved + growth * (vertices[:, None] - REST_JOINTS)  # (V, 24, 3)
        shapedirs.append((weights[..., None] * per_joint).sum(1))

    # Averaging a rotation R with the identity shrinks the flesh at the joint: with weight s beyond the joint,
    # |(1-s)p + sRp|^2 = |p|^2 - s(1-s)|(R-I)p|^2. To first order, adding -s(1-s)(R-I+(R-I)^T)p/2 undoes it, and this is
    # linear in R - I, which is just what SMPL's pose correctives are.
    beyond = weights.clone()
    for j in range(23, 0, -1):
        beyond[:, PARENTS[j]] += beyond[:, j]
    pull = -(beyond * (1 - beyond))[..., None] * (vertices[:, None] - REST_JOINTS) / 2  # (V, 24, 3)
    eye = torch.eye(3)
    posedirs = torch.einsum("cr,vjs->vcjrs", eye, pull) + torch.einsum("cs,vjr->vcjrs", eye, pull)

    tree = np.array([PARENTS, range(24)])
    arrays = {"v_template": vertices, "shapedirs": torch.stack(shapedirs, -1), "J_regressor": regressor.float(),
              "posedirs": posedirs[:, :, 1:].flatten(2), "weights": weights, "f": faces}
    return {name: array.numpy() for name, array in arrays.items()} | {"kintree_table": tree}


# ---------------------------------------------------------------- the posed mesh

@functools.lru_cache
def load_body(path: str | None = None) -> smplx.SMPL:
    """SMPL's body model: the built-in stand-in, or the arrays of a real SMPL.

    path: an .npz of v_template (V, 3), shapedirs (V, 3, 10 or more), posedirs (V, 3, 207), J_regressor (24, V),
    kintree_table (2, 24), weights (V, 24) and f (F, 3). Raises FileNotFoundError, or ValueError for anything else.
    """
    if path is None:
        arrays = _stand_in_arrays()
    else:
        if Path(path).suffix != ".npz":
            raise ValueError(f"{path}: give the body as an .npz of SMPL's arrays (v_template, shapedirs, ...), no other file")
        if not Path(path).exists():
            raise FileNotFoundError(f"{path}: no such file; give an .npz of SMPL's arrays, or no path for the built-in body")
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        v, f = len(arrays.get("v_template", ())), len(arrays.get("f", ()))
        wanted = {"v_template": (v, 3), "shapedirs": (v, 3, 10), "posedirs": (v, 3, 207), "J_regressor": (24, v),
                  "kintree_table": (2, 24), "weights": (v, 24), "f": (f, 3)}
        for name, shape in wanted.items():
            if name == "shapedirs" and name in arrays:
                arrays[name] = arrays[name][..., :10]
            if name not in arrays or arrays[name].shape != shape:
                found = arrays[name].shape if name in arrays else "nothing"
                raise ValueError(f"{path}: {name} must be an array {shape}, found {found}; is this SMPL?")
    # smplx always picks some face vertices as extra joints; body_vertices drops them, so any index will do.
    picked = dict.fromkeys(("nose", "reye", "leye", "rear", "lear"), 0)
    absent = dict.fromkeys(("create_betas", "create_global_orient", "create_body_pose", "create_transl"), False)
    return _TenShapes(model_path="", data_struct=smplx.utils.Struct(**arrays), vertex_ids=picked, use_hands=False,
                      use_feet_keypoints=False, **absent)


def body_vertices(body: smplx.SMPL, rotmats: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
    """Vertices (B, V, 3) and joints (B, 24, 3) in metres, pelvis joint at the origin.

    rotmats: (B, 24, 3, 3) local rotations. betas: (B, 10) shape coefficients.
    """
    if rotmats.shape[1:] != (24, 3, 3) or betas.shape != (len(rotmats), 10):
        raise ValueError(f"need rotmats (B, 24, 3, 3) and betas (B, 10), got {tuple(rotmats.shape)}, {tuple(betas.shape)}")
    out = body(betas=betas, global_orient=rotmats[:, :1], body_pose=rotmats[:, 1:], pose2rot=False)
    joints = out.joints[:, :24]
    return out.vertices - joints[:, :1], joints - joints[:, :1]


# ---------------------------------------------------------------- pictures

AMBIENT = 0.45  # share of the light that comes from everywhere
# In the built-in world everybody wears the left sleeve and the left trouser leg in a second colour, so that left and
# right can be told apart in a small picture, from the front and from behind.
PARTS = ("skin", "hair", "shirt", "left_sleeve", "trousers", "left_leg", "shoes")
PALETTE = torch.tensor([(.87, .68, .55), (.24, .17, .13), (.20, .45, .70), (.94, .72, .20), (.33, .35, .40),
                        (.64, .70, .76), (.16, .16, .18)])  # (7, 3) in the order of PARTS, told apart by the colour-blind
_PART_OF = {"shoulder": "shirt", "elbow": "shirt", "wrist": "skin", "hand": "skin", "neck": "skin", "head": "skin",
            "pelvis": "trousers", "hip": "trousers", "knee": "trousers", "ankle": "shoes", "foot": "shoes"}


def part_colors(body: smplx.SMPL, palette: Tensor) -> Tensor:
    """Colours (B, V, 3) of the body's vertices: each wears the part of the joint that moves it most.

    palette: (B, 7, 3) colours in [0, 1] in the order of PARTS, e.g. PALETTE[None].
    """
    part_of_joint = []
    for name in JOINT_NAMES:
        part = next((part for word, part in _PART_OF.items() if word in name), "shirt")
        if name.startswith("left"):
            part = {"shirt": "left_sleeve" if "collar" not in name else part, "trousers": "left_leg"}.get(part, part)
        part_of_joint.append(PARTS.index(part))
    joint = body.lbs_weights.argmax(-1)  # (V,)
    part = torch.tensor(part_of_joint, device=joint.device)[joint]
    head = joint == JOINT["head"]
    low, high = body.v_template[head].amin(0), body.v_template[head].amax(0)
    x, y, z = ((body.v_template - low) / (high - low)).unbind(-1)
    part[head & (y + .5 * (1 - z) > .9)] = PARTS.index("hair")  # the top and the back of the head
    return palette[:, part]


@torch.no_grad()
def render(vertices: Tensor, faces: Tensor, colors: Tensor, size: int, center: Tensor, view_height: Tensor,
           distance: Tensor | None = None, *, light: Tensor, background: Tensor, supersample: int = 1) -> Tensor:
    """Pictures (B, size, size, 3), uint8, of triangle meshes, by a z-buffer over all images at once.

    The camera stands at (center, distance) and looks along -z, y up; the plane z = 0 is seen view_height metres high
    around center. Without a distance the projection is weak-perspective: depth does not change size.
    vertices: (B, V, 3), metres. faces: (F, 3), counter-clockwise from outside; back faces are not drawn, nor triangles
    that reach behind the camera. colors: (B, V, 3) in [0, 1]. center: (B, 2). view_height, distance: (B,), metres.
    light: (B, 3), direction towards the light. background: (B, 3) or (B, size, size, 3) in [0, 1].
    supersample: render that many times larger, then average. Raises ValueError for a vertex that is not finite.
    Several bodies in one picture are one mesh: concatenate their vertices, faces and colours.
    """
    if not torch.isfinite(vertices).all():
        raise ValueError("cannot render a mesh with a vertex that is not finite; check the pose and the shape")
    B, V, side = *vertices.shape[:2], size * supersample
    depth = torch.ones_like(vertices[..., 2]) if distance is None else distance[:, None] - vertices[..., 2]  # (B, V)
    in_front = depth > 1e-3
    inverse = 1 / depth.clamp(min=1e-3)  # unlike depth itself, linear on the screen
    scale = inverse if distance is None else inverse * distance[:, None]
    right, up = ((vertices[..., :2] - center[:, None]) * (side / view_height)[:, None, None]).unbind(-1)
    screen = torch.stack([side / 2 + right * scale, side / 2 - up * scale], -1)  # (B, V, 2) pixels, y down

    origin, second, third = vertices[:, faces].unbind(2)
    cross = torch.linalg.cross(second - origin, third - origin)  # (B, F, 3)
    normals = torch.zeros_like(vertices)
    for i in range(3):  # a vertex's normal is the mean of its triangles', weighted by their areas
        normals.index_add_(1, faces[:, i], cross)
    normals = torch.nn.functional.normalize(normals, dim=-1)

    # Candidates: every pixel whose centre lies in a triangle's bounding box, N of them in one flat list.
    corner = screen[:, faces]  # (B, F, 3, 2)
    first, last = (corner.amin(2) - .5).ceil().clamp(min=0), (corner.amax(2) - .5).floor().clamp(max=side - 1)
    a, b, c = corner.unbind(2)
    shown = in_front[:, faces].all(2) & (_twice_area(a, b, c) < 0)  # y points down, so the front turns clockwise
    extent = ((last - first + 1).clamp(min=0) * shown[..., None]).long().flatten(0, 1)  # (B F, 2)
    count = extent.prod(-1)
    triangle = torch.repeat_interleave(count)  # (N,) index into B F
    nth = torch.arange(len(triangle), device=count.device) - (count.cumsum(0) - count)[triangle]
    column, line = nth % extent[triangle, 0], nth // extent[triangle, 0]
    pixel = first.flatten(0, 1)[triangle] + torch.stack([column, line], -1)  # (N, 2)
    a, b, c = corner.flatten(0, 1)[triangle].unbind(1)
    p = pixel + .5
    bary = -torch.stack([_twice_area(p, b, c), _twice_area(a, p, c), _twice_area(a, b, p)], -1)  # (N, 3)
    inside = (bary >= 0).all(-1)
    triangle, pixel, bary = triangle[inside], pixel[inside].long(), bary[inside]
    bary = bary / bary.sum(-1, keepdim=True).clamp(min=1e-20)

    # z-buffer: one integer a candidate, nearness in its high half and the triangle in its low half; the largest wins.
    image, face = triangle // len(faces), triangle % len(faces)
    vertex = image[:, None] * V + faces[face]  # (N, 3) index into B V
    nearness = (bary * (vertices[..., 2] if distance is None else inverse).flatten()[vertex]).sum(-1)
    bits = nearness.view(torch.int32)  # the bits of floats sort as the floats do, once those of negatives are flipped
    key = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32 | face
    slot = (image * side + pixel[:, 1]) * side + pixel[:, 0]
    best = torch.full((B * side * side,), torch.iinfo(torch.int64).min, device=key.device)
    best.scatter_reduce_(0, slot, key, "amax")
    won = key == best[slot]
    image, vertex, slot, bary = image[won], vertex[won], slot[won], bary[won]

    bary = bary * inverse.flatten()[vertex]  # perspective-correct
    bary = (bary / bary.sum(-1, keepdim=True))[..., None]
    normal = torch.nn.functional.normalize((bary * normals.flatten(0, 1)[vertex]).sum(1), dim=-1)
    lambert = (normal * torch.nn.functional.normalize(light, dim=-1)[image]).sum(-1, keepdim=True).clamp(min=0)
    shaded = (bary * colors.flatten(0, 1)[vertex]).sum(1) * (AMBIENT + (1 - AMBIENT) * lambert)
    canvas = torch.zeros(B * side * side, 4, device=vertices.device)  # colour and coverage
    canvas[slot] = torch.cat([shaded, torch.ones_like(lambert)], -1)
    canvas = canvas.view(B, size, supersample, size, supersample, 4).mean((2, 4))
    background = background if background.dim() == 4 else background[:, None, None]
    picture = canvas[..., :3] + (1 - canvas[..., 3:]) * background
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)


def _twice_area(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Twice the signed area (...) of the triangles with corners a, b, c (..., 2)."""
    return (b - a)[..., 0] * (c - a)[..., 1] - (b - a)[..., 1] * (c - a)[..., 0]
