import numpy as np
import pytest
import smplx
import torch

import body as bd

EYE = torch.eye(3).expand(1, 24, 3, 3)


def random_pose(n, seed=0, scale=.5):
    generator = torch.Generator().manual_seed(seed)
    return bd.axis_angle_to_matrix(scale * torch.randn(n, 24, 3, generator=generator))


@pytest.fixture(scope="module")
def body():
    return bd.load_body()


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
    assert torch.allclose(joints, bd.body_vertices(body, rotmats, betas)[1], atol=1e-5)
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


# ---------------------------------------------------------------- the built-in body

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
    vertices, joints = bd.body_vertices(body, rotmats, betas)
    mirrored_vertices, mirrored_joints = bd.body_vertices(body, bd.mirror(rotmats), betas)
    assert torch.allclose(mirrored_vertices, vertices[:, index] * flip, atol=1e-5)
    assert torch.allclose(mirrored_joints, joints[:, bd.MIRRORED] * flip, atol=1e-5)
    assert torch.allclose(bd.mirror(bd.mirror(rotmats)), rotmats)


def test_regressor_and_weights(body):
    assert torch.allclose(body.J_regressor @ body.v_template, bd.REST_JOINTS, atol=1e-4)
    assert torch.allclose(body.J_regressor.sum(1), torch.ones(24), atol=1e-5)
    assert torch.allclose(body.lbs_weights.sum(1), torch.ones(len(body.v_template)), atol=1e-5)
    assert (body.lbs_weights >= 0).all() and ((body.lbs_weights > 0).sum(1) <= 5).all()
    _, joints = bd.body_vertices(body, EYE, torch.zeros(1, 10))
    assert torch.allclose(joints[0], bd.REST_JOINTS, atol=1e-4)


def test_betas_make_people(body):
    betas = torch.cat([torch.randn(200, 10, generator=torch.Generator().manual_seed(4)), 2.5 * torch.eye(10)])
    vertices, joints = bd.body_vertices(body, EYE.expand(len(betas), -1, -1, -1), betas)
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


def test_body_vertices_refuses_wrong_shapes(body):
    with pytest.raises(ValueError, match="betas"):
        bd.body_vertices(body, EYE, torch.zeros(1, 16))


def test_load_body_from_a_file(body, tmp_path, capsys):
    arrays = {"v_template": body.v_template, "shapedirs": body.shapedirs, "weights": body.lbs_weights,
              "posedirs": body.posedirs.T.reshape(-1, 3, 207), "J_regressor": body.J_regressor, "f": body.faces_tensor,
              "kintree_table": torch.tensor([bd.PARENTS, range(24)])}
    arrays = {name: array.numpy() for name, array in arrays.items()}
    np.savez(tmp_path / "smpl.npz", **arrays)
    loaded = bd.load_body(str(tmp_path / "smpl.npz"))
    assert isinstance(loaded, smplx.SMPL) and capsys.readouterr().out == ""
    rotmats, betas = random_pose(2), torch.ones(2, 10)
    assert torch.equal(bd.body_vertices(loaded, rotmats, betas)[0], bd.body_vertices(body, rotmats, betas)[0])

    with pytest.raises(FileNotFoundError, match="npz"):
        bd.load_body(str(tmp_path / "absent.npz"))
    (tmp_path / "SMPL_NEUTRAL.pkl").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match="v_template"):
        bd.load_body(str(tmp_path / "SMPL_NEUTRAL.pkl"))
    np.savez(tmp_path / "bad.npz", **arrays | {"weights": arrays["weights"][:, :22]})
    with pytest.raises(ValueError, match="weights"):
        bd.load_body(str(tmp_path / "bad.npz"))
    np.savez(tmp_path / "bad2.npz", **{k: v for k, v in arrays.items() if k != "J_regressor"})
    with pytest.raises(ValueError, match="J_regressor"):
        bd.load_body(str(tmp_path / "bad2.npz"))


# ---------------------------------------------------------------- pictures

def draw(vertices, faces, colors, size=8, view_height=8., distance=None, supersample=1):
    B = len(vertices)
    return bd.render(vertices, torch.tensor(faces), colors, size, torch.zeros(B, 2), torch.full((B,), view_height),
                     None if distance is None else torch.full((B,), distance),
                     light=torch.tensor([[0., 0, 1]]).expand(B, 3), background=torch.zeros(B, 3), supersample=supersample)


TRIANGLE = torch.tensor([[[-4., -4, 0], [4, -4, 0], [-4, 4, 0]]])  # the lower left half of the picture
WHITE = torch.ones(1, 3, 3)


def test_a_triangle_covers_the_pixels_whose_centres_it_holds():
    picture = draw(TRIANGLE * .99, [[0, 1, 2]], WHITE)[0, ..., 0]
    assert torch.equal(picture == 255, torch.ones(8, 8).tril(-1).bool() | (picture == 255) & torch.eye(8).bool())
    assert picture.tril(-1).bool().sum() == 28 and not picture.triu(1).any()
    assert not draw(TRIANGLE, [[0, 2, 1]], WHITE).any()  # the back is not drawn
    half = draw(TRIANGLE * .5 + torch.tensor([.5, 0, 0]), [[0, 1, 2]], WHITE, supersample=4)[0, ..., 0]
    assert ((half > 0) & (half < 255)).any()  # smooth edges


def test_no_cracks_between_triangles():
    square = torch.tensor([[[-3., -3, 0], [3, -3, 0], [3, 3, 0], [-3, 3, 0]]])
    picture = draw(square, [[0, 1, 2], [0, 2, 3]], torch.ones(1, 4, 3), size=64)[0, ..., 0]
    assert (picture[8:56, 8:56] == 255).all() and picture.count_nonzero() == 48 ** 2


@pytest.mark.parametrize("distance", [None, 10.])
@pytest.mark.parametrize("z", [(0., 1.), (-2., -1.), (-1., 1.)])
def test_the_nearer_triangle_hides_the_farther(distance, z):
    vertices = torch.cat([TRIANGLE + torch.tensor([0, 0, z[0]]), TRIANGLE + torch.tensor([0, 0, z[1]])], 1)
    colors = torch.eye(3)[[0, 0, 0, 1, 1, 1]][None]  # far red, near green
    for faces in ([[0, 1, 2], [3, 4, 5]], [[3, 4, 5], [0, 1, 2]]):
        picture = draw(vertices, faces, colors, distance=distance)[0]
        assert picture[5, 2].tolist() == [0, 255, 0]


def test_perspective():
    square = torch.tensor([[[-1., -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]])
    faces, colors = [[0, 1, 2], [0, 2, 3]], torch.ones(1, 4, 3)

    def width(z, distance):
        picture = draw(square + torch.tensor([0, 0, z]), faces, colors, size=64, distance=distance)
        return picture[0, 32, :, 0].count_nonzero()
    assert width(0., 4.) == width(0., None) == width(2., None) == 16
    assert width(2., 4.) == 32 and width(-4., 4.) == 8  # half as far is twice as large
    assert width(4.5, 4.) == 0  # behind the camera
    # colours are linear on the surface, not on the screen: half way up the picture of a strip that recedes from z = 0 to
    # z = -8, seen from z = 8, the surface is one third along
    strip = torch.tensor([[[-2., -4, 0], [2, -4, 0], [4, 8, -8], [-4, 8, -8]]])
    red = torch.tensor([0., 0, 1, 1])[None, :, None].expand(1, 4, 3)
    column = draw(strip, faces, red, size=64, distance=8.)[0, 31, 32, 0] / 255
    light = .45 + .55 * (12 / (12 ** 2 + 8 ** 2) ** .5)
    assert column / light == pytest.approx(1 / 3, abs=.02)


def test_render_same_bits_and_batch_is_one_by_one(body):
    rotmats = random_pose(3)
    vertices, _ = bd.body_vertices(body, rotmats, torch.zeros(3, 10))
    palette = torch.rand(3, 7, 3, generator=torch.Generator().manual_seed(0))
    colors, faces = bd.part_colors(body, palette), body.faces_tensor
    extra = dict(light=torch.tensor([[.3, .5, 1], [0, 1, 0], [1, 0, 0]]), supersample=2,
                 background=torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(1)))
    args = [torch.zeros(3, 2), torch.tensor([2., 2.2, 2.4]), torch.tensor([3., 4., 5.])]
    batch = bd.render(vertices, faces, colors, 32, *args, **extra)
    assert torch.equal(batch, bd.render(vertices, faces, colors, 32, *args, **extra))
    for i in range(3):
        one = {k: v if k == "supersample" else v[i:i + 1] for k, v in extra.items()}
        assert torch.equal(batch[i:i + 1], bd.render(vertices[i:i + 1], faces, colors[i:i + 1], 32,
                                                     *[a[i:i + 1] for a in args], **one))
    broken = vertices.clone()
    broken[1, 7, 2] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        bd.render(broken, faces, colors, 32, *args, **extra)


def test_left_is_on_the_viewers_right_and_the_face_in_front(body):
    rotmats = EYE.clone()
    rotmats[0, bd.JOINT["left_shoulder"]] = bd.axis_angle_to_matrix(torch.tensor([0, 0, 1.4]))  # raised
    rotmats[0, bd.JOINT["right_shoulder"]] = bd.axis_angle_to_matrix(torch.tensor([0, 0, 1.4]))  # hangs
    vertices, joints = bd.body_vertices(body, rotmats, torch.zeros(1, 10))
    assert joints[0, bd.JOINT["left_wrist"], 1] > joints[0, bd.JOINT["head"], 1] > joints[0, bd.JOINT["right_wrist"], 1]
    only = {part: torch.eye(7)[bd.PARTS.index(part)][None, :, None].expand(1, 7, 3) for part in bd.PARTS}

    def seen(part, turn=0.):  # the part in white, everything else black
        turned = vertices @ bd.axis_angle_to_matrix(torch.tensor([0, turn, 0])).T
        return draw(turned, body.faces, bd.part_colors(body, only[part]), size=64, view_height=2.4)[0, ..., 0] > 60
    rows, columns = seen("left_sleeve").nonzero().unbind(1)
    assert (columns > 32).all() and rows.float().mean() < 24  # right half, high
    assert (seen("left_leg").nonzero()[:, 1] >= 31).all() and (seen("shoes").nonzero()[:, 0] > 50).all()
    face, nape = seen("skin")[:28, 28:37].sum(), seen("skin", torch.pi)[:28, 28:37].sum()
    assert face > nape and seen("hair", torch.pi).sum() > seen("hair").sum()


def test_part_colors_mix_the_palette(body):
    colors = bd.part_colors(body, bd.PALETTE[None])
    assert colors.shape == (1, *body.v_template.shape) and (colors >= 0).all() and (colors <= 1).all()
    alone = (torch.cdist(colors[0], bd.PALETTE).min(1).values < .02).float().mean()
    assert alone > .7  # most vertices wear one part
    assert torch.allclose(bd.part_colors(body, torch.ones(2, 7, 3)), torch.ones(2, *body.v_template.shape), atol=1e-5)
