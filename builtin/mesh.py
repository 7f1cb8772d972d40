"""The built-in body: SMPL's arrays (template, shapes, skinning weights, joint regressor), made without SMPL's licence.

    surface = {x : -s log sum_c exp(-d_c(x) / s) = 0},   d_c the signed distance to round cone c, s = 12 mm
The cones of a body are melted into one signed distance field, which is meshed; skinning weights spread along the mesh.
It has SMPL's 24 joints and 10 shape coefficients, so the same code (real/smpl.py) poses it and the true SMPL.
Read next: renderer.py, which draws such a mesh.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, normalize, one_hot

from body import JOINT, JOINT_NAMES, MIRRORED, PARENTS, REST_JOINTS

# The body's cones: the joint that moves it, its two ends, the radius at each; in cm, the right side mirrored.
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


def built_in_arrays() -> dict[str, np.ndarray]:
    """SMPL's arrays, as smpl_pickle.read_smpl lists them, for the body made of cones."""
    vertices, quads, mirrored = _surface_net()
    average = _average_of_neighbours(quads, len(vertices))
    vertices = _even_out(vertices, average, mirrored)
    across = (vertices[quads] - vertices[quads.roll(2, 1)]).norm(dim=-1)  # (Q, 4): cut quads along the shorter diagonal
    faces = torch.where(across[:, :1] < across[:, 1:2], quads[:, [0, 1, 2, 0, 2, 3]], quads[:, [0, 1, 3, 1, 2, 3]])
    weights = _skinning_weights(vertices, average, mirrored)
    from_joint = vertices[:, None] - REST_JOINTS  # (V, 24, 3)
    arrays = dict(v_template=vertices, shapedirs=_shape_directions(weights, from_joint),
                  posedirs=torch.zeros(*vertices.shape, 207), weights=weights, f=faces.view(-1, 3),
                  J_regressor=_joint_regressor(from_joint), kintree_table=torch.tensor([PARENTS, range(24)]))
    return {name: array.numpy() for name, array in arrays.items()}


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


def _surface_net() -> tuple[Tensor, Tensor, Tensor]:
    """Surface nets (Gibson 1998): a vertex in every grid cell that the surface passes through, a quad around every grid
    edge that it crosses. Vertices (V, 3), quads (Q, 4), and of each vertex its mirror image (V,)."""
    x, y, z = (torch.cat([torch.arange(a, b, step) for (a, step), (b, _) in zip(s, s[1:])]) for s in _GRID)
    planes = torch.cat([-x.flip(0), x]), y, z  # none at x = 0, so that the midline gets vertices of its own
    inside = _field(torch.stack(torch.meshgrid(*planes, indexing="ij"), -1))[0] < 0
    crossed = (avg_pool3d(inside[None].float(), 2, stride=1)[0] - .5).abs() < .5  # grid cells
    index = crossed.flatten().cumsum(0).view_as(crossed) - 1  # a crossed cell's vertex
    quads = []
    for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):  # grid edges along x, y and z
        solid, cell = inside.permute(order), index.permute(order)
        here, there = solid[:-1, 1:-1, 1:-1], solid[1:, 1:-1, 1:-1]
        around = torch.stack([cell[:, :-1, :-1], cell[:, 1:, :-1], cell[:, 1:, 1:], cell[:, :-1, 1:]], -1)
        quads += [around[here & ~there], around[~here & there].flip(-1)]  # counter-clockwise seen from outside
    vertices = torch.stack(torch.meshgrid(*[(p[1:] + p[:-1]) / 2 for p in planes], indexing="ij"), -1)[crossed]
    return vertices, torch.cat(quads), index.flip(0)[crossed]


def _average_of_neighbours(quads: Tensor, V: int) -> Tensor:
    """The matrix (V, V) that replaces a vertex's value half by itself, half by the mean of its neighbours."""
    average = torch.zeros(V, V)
    average[quads, quads.roll(1, 1)] = 1  # every edge lies in two quads, once each way round
    return (average / average.sum(1, keepdim=True) + torch.eye(V)) / 2


def _even_out(vertices: Tensor, average: Tensor, mirrored: Tensor) -> Tensor:
    """The vertices (V, 3) at even distances, then stepped back onto the surface (Newton)."""
    for step in range(8):
        vertices = (average @ vertices if step < 6 else vertices).requires_grad_()
        distance = _field(vertices)[0]
        slope, = torch.autograd.grad(distance.sum(), vertices)
        vertices = (vertices - distance[:, None] * slope / slope.square().sum(-1, keepdim=True)).detach()
        vertices = (vertices + vertices[mirrored] * torch.tensor([-1, 1, 1])) / 2
    return vertices


def _skinning_weights(vertices: Tensor, average: Tensor, mirrored: Tensor) -> Tensor:
    """How much each joint moves a vertex, (V, 24). Each starts with the joint of its nearest cone, then weights spread
    along the surface, never through the air, so that no arm pulls the chest and no leg the other."""
    weights = one_hot(_field(vertices)[1], 24).float()
    for _ in range(12):
        weights = average @ weights
    weights = weights + weights[mirrored][:, MIRRORED]
    four = weights >= weights.topk(4).values[:, -1:]  # joints a vertex, or more if they tie
    return normalize(weights * four, p=1, dim=-1)


def _joint_regressor(from_joint: Tensor) -> Tensor:
    """Weights (24, V) that give each joint as a mean of vertices: a Gaussian window around the joint, tilted so that it
    returns the joint exactly; such a row also follows every affine change of the flesh around it, hence the shapes."""
    window = torch.exp(-from_joint.square().sum(-1) / .02)[..., None]  # (V, 24, 1)
    basis = (window * torch.cat([torch.ones_like(window), from_joint], -1)).transpose(0, 1)  # (24, V, 4)
    return torch.linalg.pinv(basis)[:, 0] * window[..., 0].T


def _shape_directions(weights: Tensor, from_joint: Tensor) -> Tensor:
    """How a vertex moves by each shape coefficient, (V, 3, 10)."""
    shapedirs = torch.zeros(len(weights), 3, 10)
    for k, row in enumerate(_SHAPES):
        growth, moved = torch.zeros(24, 3), torch.zeros(24, 3)
        for words, amount in row.items():
            growth[[any(word in name for word in words.split()) for name in JOINT_NAMES]] += torch.tensor(amount)
        for j in range(1, 24):
            moved[j] = moved[PARENTS[j]] + growth[PARENTS[j]] * (REST_JOINTS[j] - REST_JOINTS[PARENTS[j]])
        shapedirs[..., k] = (weights[..., None] * (moved + growth * from_joint)).sum(1)
    return shapedirs
