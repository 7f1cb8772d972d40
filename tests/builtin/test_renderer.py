"""The renderer: which pixels, which triangle in front, perspective, and the same bits each time."""

import pytest
import torch

import body as bd
from builtin.renderer import PALETTE, PARTS, part_colors, render
from real.smpl import body_vertices, load_body
from test_body import EYE, random_pose


@pytest.fixture(scope="module")
def body():
    return load_body()


def draw(vertices, faces, colors, size=8, view_height=8., distance=None, supersample=1):
    B = len(vertices)
    return render(vertices, torch.tensor(faces), colors, size, torch.zeros(B, 2), torch.full((B,), view_height),
                     None if distance is None else torch.full((B,), distance),
                     light=torch.tensor([[0., 0, 1]]).expand(B, 3), background=torch.zeros(B, 3),
                  supersample=supersample)


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
    # colours are linear on the surface, not on the screen: half way up the picture of a strip that recedes from z = 0
    # to z = -8, seen from z = 8, the surface is one third along
    strip = torch.tensor([[[-2., -4, 0], [2, -4, 0], [4, 8, -8], [-4, 8, -8]]])
    red = torch.tensor([0., 0, 1, 1])[None, :, None].expand(1, 4, 3)
    column = draw(strip, faces, red, size=64, distance=8.)[0, 31, 32, 0] / 255
    light = .45 + .55 * (12 / (12 ** 2 + 8 ** 2) ** .5)
    assert column / light == pytest.approx(1 / 3, abs=.02)


def test_render_same_bits_and_batch_is_one_by_one(body):
    rotmats = random_pose(3)
    vertices, _ = body_vertices(body, rotmats, torch.zeros(3, 10))
    palette = torch.rand(3, 7, 3, generator=torch.Generator().manual_seed(0))
    colors, faces = part_colors(body, palette), body.faces_tensor
    extra = dict(light=torch.tensor([[.3, .5, 1], [0, 1, 0], [1, 0, 0]]), supersample=2,
                 background=torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(1)))
    args = [torch.zeros(3, 2), torch.tensor([2., 2.2, 2.4]), torch.tensor([3., 4., 5.])]
    batch = render(vertices, faces, colors, 32, *args, **extra)
    assert torch.equal(batch, render(vertices, faces, colors, 32, *args, **extra))
    for i in range(3):
        one = {k: v if k == "supersample" else v[i:i + 1] for k, v in extra.items()}
        assert torch.equal(batch[i:i + 1], render(vertices[i:i + 1], faces, colors[i:i + 1], 32,
                                                     *[a[i:i + 1] for a in args], **one))
    broken = vertices.clone()
    broken[1, 7, 2] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        render(broken, faces, colors, 32, *args, **extra)


def test_left_is_on_the_viewers_right_and_the_face_in_front(body):
    rotmats = EYE.clone()
    rotmats[0, bd.JOINT["left_shoulder"]] = bd.axis_angle_to_matrix(torch.tensor([0, 0, 1.4]))  # raised
    rotmats[0, bd.JOINT["right_shoulder"]] = bd.axis_angle_to_matrix(torch.tensor([0, 0, 1.4]))  # hangs
    vertices, joints = body_vertices(body, rotmats, torch.zeros(1, 10))
    assert joints[0, bd.JOINT["left_wrist"], 1] > joints[0, bd.JOINT["head"], 1] > joints[0, bd.JOINT["right_wrist"], 1]
    only = {part: torch.eye(7)[PARTS.index(part)][None, :, None].expand(1, 7, 3) for part in PARTS}

    def seen(part, turn=0.):  # the part in white, everything else black
        turned = vertices @ bd.axis_angle_to_matrix(torch.tensor([0, turn, 0])).T
        return draw(turned, body.faces, part_colors(body, only[part]), size=64, view_height=2.4)[0, ..., 0] > 60
    rows, columns = seen("left_sleeve").nonzero().unbind(1)
    assert (columns > 32).all() and rows.float().mean() < 24  # right half, high
    assert (seen("left_leg").nonzero()[:, 1] >= 31).all() and (seen("shoes").nonzero()[:, 0] > 50).all()
    face, nape = seen("skin")[:28, 28:37].sum(), seen("skin", torch.pi)[:28, 28:37].sum()
    assert face > nape and seen("hair", torch.pi).sum() > seen("hair").sum()


def test_part_colors_mix_the_palette(body):
    colors = part_colors(body, PALETTE[None])
    assert colors.shape == (1, *body.v_template.shape) and (colors >= 0).all() and (colors <= 1).all()
    alone = (torch.cdist(colors[0], PALETTE).min(1).values < .02).float().mean()
    assert alone > .7  # most vertices wear one part
    assert torch.allclose(part_colors(body, torch.ones(2, 7, 3)), torch.ones(2, *body.v_template.shape), atol=1e-5)
