"""The built-in body: a closed, symmetric surface with sound weights, whose shapes make people."""

import pytest
import torch

import body as bd
from real.smpl import body_vertices, load_body
from test_body import EYE, random_pose


@pytest.fixture(scope="module")
def body():
    return load_body()


def mirror_of_vertices(body):
    flipped = body.v_template * torch.tensor([-1, 1, 1])
    distance, index = torch.cdist(flipped, body.v_template, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert distance.max() == 0
    return index


def test_stand_in_is_a_closed_outward_surface(body):
    faces = body.faces_tensor
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    key, back = edges @ torch.tensor([100_000, 1]), edges.flip(1) @ torch.tensor([100_000, 1])
    assert len(key.unique()) == len(key)  # no edge twice in one direction ...
    assert torch.equal(key.sort().values, back.sort().values)  # ... and each once in the other
    V, E, F = len(body.v_template), len(edges) // 2, len(faces)
    assert len(faces.unique()) == V and V - E + F == 2
    assert 1_500 < V < 4_000
    label = torch.arange(V)  # one piece: the smallest label floods the surface
    for _ in range(V):
        spread = label.scatter_reduce(0, edges[:, 0], label[edges[:, 1]], "amin")
        if torch.equal(spread, label):
            break
        label = spread
    assert label.max() == 0
    a, b, c = body.v_template[faces].unbind(1)
    volume = (a * torch.linalg.cross(b, c)).sum() / 6  # positive when faces turn outwards
    assert .04 < volume < .09  # cubic metres; a person of 60 kg has about 0.06
    assert (torch.linalg.cross(b - a, c - a).norm(dim=-1) > 1e-7).all()


def test_stand_in_is_symmetric(body):
    index = mirror_of_vertices(body)
    flip = torch.tensor([-1, 1, 1])
    assert torch.equal(index[index], torch.arange(len(index)))
    assert torch.allclose(body.lbs_weights[index][:, bd.MIRRORED], body.lbs_weights, atol=1e-6)
    assert torch.allclose(body.shapedirs[index], body.shapedirs * flip[:, None], atol=1e-6)
    faces = {tuple(sorted(f)) for f in body.faces_tensor.tolist()}
    assert faces == {tuple(sorted(f)) for f in index[body.faces_tensor].tolist()}


def test_mirrored_pose_is_the_mirrored_mesh(body):
    index, flip = mirror_of_vertices(body), torch.tensor([-1, 1, 1])
    rotmats, betas = random_pose(4), torch.randn(4, 10, generator=torch.Generator().manual_seed(3))
    vertices, joints = body_vertices(body, rotmats, betas)
    mirrored_vertices, mirrored_joints = body_vertices(body, bd.mirror(rotmats), betas)
    assert torch.allclose(mirrored_vertices, vertices[:, index] * flip, atol=1e-5)
    assert torch.allclose(mirrored_joints, joints[:, bd.MIRRORED] * flip, atol=1e-5)
    assert torch.allclose(bd.mirror(bd.mirror(rotmats)), rotmats)


def test_regressor_and_weights(body):
    assert torch.allclose(body.J_regressor @ body.v_template, bd.REST_JOINTS, atol=1e-4)
    assert torch.allclose(body.J_regressor.sum(1), torch.ones(24), atol=1e-5)
    assert torch.allclose(body.lbs_weights.sum(1), torch.ones(len(body.v_template)), atol=1e-5)
    assert (body.lbs_weights >= 0).all() and ((body.lbs_weights > 0).sum(1) <= 5).all()
    _, joints = body_vertices(body, EYE, torch.zeros(1, 10))
    assert torch.allclose(joints[0], bd.REST_JOINTS, atol=1e-4)


def test_betas_make_people(body):
    betas = torch.cat([torch.randn(200, 10, generator=torch.Generator().manual_seed(4)), 2.5 * torch.eye(10)])
    vertices, joints = body_vertices(body, EYE.expand(len(betas), -1, -1, -1), betas)
    stature = vertices[..., 1].amax(1) - vertices[..., 1].amin(1)
    assert 1.4 < stature.min() and stature.max() < 2.1
    # the joint stays within its limb: in the middle third of the wrist, knee and elbow rings around it
    for name in ("left_elbow", "right_knee", "left_wrist"):
        j, axis = bd.JOINT[name], 1 if "knee" in name else 0
        for k in range(len(betas)):
            ring = vertices[k][(vertices[k] - joints[k, j]).norm(dim=-1) < .12]
            ring = ring[(ring[:, axis] - joints[k, j, axis]).abs() < .05]
            other = [a for a in range(3) if a != axis]
            low, high = ring.amin(0)[other], ring.amax(0)[other]
            inside = (joints[k, j][other] - low) / (high - low)
            assert (inside > .2).all() and (inside < .8).all()
