"""Rotations and the skeleton: round trips, gradients at the identity, kinematics against smplx."""

import numpy as np
import pytest
import torch

import body as bd
from real.smpl import body_vertices, load_body

EYE = torch.eye(3).expand(1, 24, 3, 3)


def random_pose(n, seed=0, scale=.5):
    generator = torch.Generator().manual_seed(seed)
    return bd.axis_angle_to_matrix(scale * torch.randn(n, 24, 3, generator=generator))


def keys(rotmats: torch.Tensor) -> set[bytes]:
    """One hashable value for every pose."""
    return {pose.tobytes() for pose in rotmats.numpy()}


@pytest.fixture(scope="module")
def body():
    return load_body()


# ---------------------------------------------------------------- rotations and the skeleton

@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-3), (torch.float64, 1e-7)])
def test_axis_angle_round_trip(dtype, tolerance):
    axis = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    axis = axis / axis.norm(dim=-1, keepdim=True)
    for angle in (0, 1e-7, 1e-4, 1e-2, 1, 2, 3.1, np.pi - 1e-3, np.pi):
        matrix = bd.axis_angle_to_matrix(axis * angle)
        assert torch.allclose(matrix @ matrix.mT, torch.eye(3, dtype=dtype), atol=tolerance ** 1.5 + 1e-6)
        back = bd.matrix_to_axis_angle(matrix)
        assert torch.allclose(back.norm(dim=-1), torch.tensor(angle, dtype=dtype), atol=tolerance)
        # compare rotations: at pi the axis may come back with the other sign
        assert torch.allclose(bd.axis_angle_to_matrix(back), matrix, atol=tolerance / 10 + 1e-6)
        assert torch.allclose(bd.rot6d_to_matrix(bd.matrix_to_rot6d(matrix)), matrix, atol=1e-6)


def test_axis_angle_known_value():
    turn = bd.axis_angle_to_matrix(torch.tensor([0, torch.pi / 2, 0]))  # about y: the front turns to the body's left
    assert torch.allclose(turn @ torch.tensor([0., 0, 1]), torch.tensor([1., 0, 0]), atol=1e-6)
    assert torch.allclose(bd.axis_angle_to_matrix(torch.tensor([.3, -.5, .7])),
                          torch.linalg.matrix_exp(torch.tensor([[0, -.7, -.5], [.7, 0, -.3], [.5, .3, 0]])), atol=1e-6)


@pytest.mark.parametrize("function, start", [
    (bd.axis_angle_to_matrix, torch.zeros(3)), (bd.matrix_to_axis_angle, torch.eye(3)),
    (bd.rot6d_to_matrix, torch.tensor([1., 0, 0, 0, 1, 0])), (bd.forward_kinematics, EYE), (bd.remove_heading, EYE)])
def test_gradients_are_finite_at_the_identity(function, start):
    start = start.clone().requires_grad_()
    out = function(start)
    (out[0] if isinstance(out, tuple) else out).sum().backward()
    assert start.grad.isfinite().all()


def test_levels_and_mirrored_follow_from_the_names():
    assert sorted(j for level in bd.LEVELS for j in level) == list(range(1, 24))
    known = {0}
    for level in bd.LEVELS:
        assert all(bd.PARENTS[j] in known for j in level)
        known |= set(level)
    swap = {"left": "right", "right": "left"}
    for j, name in enumerate(bd.JOINT_NAMES):
        side, _, rest = name.partition("_")
        assert bd.JOINT_NAMES[bd.MIRRORED[j]] == (f"{swap[side]}_{rest}" if side in swap else name)


def test_forward_kinematics_is_smplx(body):
    rotmats, betas = random_pose(5), torch.randn(5, 10, generator=torch.Generator().manual_seed(1))
    rest = body.J_regressor @ (body.v_template + (body.shapedirs * betas[:, None, None]).sum(-1))
    joints, rotations = bd.forward_kinematics(rotmats, rest)
    assert torch.allclose(joints, body_vertices(body, rotmats, betas)[1], atol=1e-5)
    product = rotmats[:, 0]
    for j in (3, 6, 9, 13, 16, 18, 20):  # from the pelvis to the left wrist
        product = product @ rotmats[:, j]
    assert torch.allclose(rotations[:, 20], product, atol=1e-5)
    with pytest.raises(ValueError, match="24, 3, 3"):
        bd.forward_kinematics(torch.zeros(2, 22, 3, 3))


def test_remove_heading():
    rotmats = random_pose(20, seed=2, scale=1.)
    plain = bd.remove_heading(rotmats)
    assert torch.allclose(bd.remove_heading(plain), plain, atol=1e-5)
    turned = rotmats.clone()
    turned[:, 0] = bd.axis_angle_to_matrix(torch.tensor([0, 2.3, 0])) @ turned[:, 0]
    assert torch.allclose(bd.remove_heading(turned), plain, atol=1e-5)
    assert torch.allclose(plain[:, 0, 2, 0], torch.zeros(20), atol=1e-6) and (plain[:, 0, 0, 0] > 0).all()
    assert torch.equal(plain[:, 1:], rotmats[:, 1:])
