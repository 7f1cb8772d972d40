"""A small renderer: pictures of a triangle mesh with a z-buffer, in plain tensor operations; and the clothes it wears.

    pixel = colour * (ambient + (1 - ambient) max(0, n . l)) of the nearest triangle that holds the pixel's centre
So that a run needs no graphics driver, and a seed gives the same pictures to the last bit wherever torch runs alike.
Read next: scene.py, which chooses clothes, light, background and crop.
"""

import smplx
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from body import JOINT

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
    B, V, side = *vertices.shape[:2], size * supersample
    colors, z = _shade(vertices, faces, colors, light).flatten(0, 1), vertices[..., 2]  # (B V, 3), (B, V)
    depth = 1 - z / (torch.inf if distance is None else distance[:, None])  # (B, V), in units of the camera's distance
    zoom = 1 / depth.clamp(min=1e-3)  # what is nearer looks larger
    right, up = ((vertices[..., :2] - center[:, None]) * (zoom * side / view_height[:, None])[..., None]).unbind(-1)
    screen = side / 2 + torch.stack([right, -up]).flatten(1)  # (2, B V) pixels, x right and y down
    # Triangles to draw, M of them: turned to the camera (clockwise, since y points down) and wholly in front of it.
    corner = (torch.arange(B, device=z.device)[:, None, None] * V + faces).view(-1, 3).T  # (3, B F) index into B V
    (ax, bx, cx), (ay, by, cy) = screen[:, corner]
    shown = ((bx - ax) * (cy - ay) < (by - ay) * (cx - ax)) & (depth.flatten()[corner] > 1e-3).all(0)
    corner = corner[:, shown]  # (3, M)
    triangle, column, line, bary = _candidates(screen[:, corner] - .5, side)  # N pixels, perhaps several of one place
    vertex = corner[:, triangle]  # (3, N)
    slot = (vertex[0] // V * side + line) * side + column  # (N,) index into B side side
    bary = bary * zoom.flatten()[vertex]  # perspective-correct: what is linear on the screen is 1 / depth
    bary = bary / bary.sum(0)
    won = _nearest(slot, (bary * z.flatten()[vertex]).sum(0), triangle, B * side * side)
    slot, vertex, bary = slot[won], vertex[:, won], bary[:, won, None]
    drawn = torch.cat([(bary * colors[vertex]).sum(0), torch.ones_like(bary[0])], -1)  # (pixels, 4) colour and coverage
    pixel = slot // side // supersample * size + slot % side // supersample  # index into B size size
    canvas = torch.zeros(B * size * size, 4, device=z.device).index_add_(0, pixel, drawn / supersample ** 2)
    color, coverage = canvas.view(B, size, size, 4).split([3, 1], -1)
    background = background if background.dim() == 4 else background[:, None, None]
    return ((color + (1 - coverage) * background).clamp(0, 1) * 255).round().to(torch.uint8)


def _shade(vertices: Tensor, faces: Tensor, colors: Tensor, light: Tensor) -> Tensor:
    """The colours (B, V, 3) in that light: ambient and Lambert."""
    p, q, r = vertices.transpose(0, 1).flatten(1)[faces.T].unflatten(-1, (-1, 3))  # (F, B, 3) each
    cross = torch.linalg.cross(q - p, r - p).flatten(1)  # (F, 3 B), twice a triangle's area long
    # A vertex's normal is the sum over the triangles around it: over the corners, sorted by vertex, of their triangles.
    corners = faces.T.flatten()
    order, count = corners.argsort(stable=True), corners.bincount(minlength=vertices.shape[1])
    normals = embedding_bag(order % len(faces), cross, count.cumsum(0) - count, mode="sum")  # (V, 3 B)
    normals = normals.unflatten(1, (-1, 3)).transpose(0, 1)
    normals, light = (normalize(v, dim=-1) for v in (normals, light))
    return colors * (.45 + .55 * (normals @ light[:, :, None]).clamp(min=0))


def _candidates(points: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pixels inside each of M triangles, N in all: triangle (N,), column and line of the pixel (N,), barycentric
    coordinates (3, N). points: (2, 3, M), x and y of the corners, in units in which pixel centres are whole numbers."""
    first = points.amin(1).ceil().clamp(min=0)  # (2, M) of the box around a triangle
    columns, lines = (points.amax(1).floor().clamp(max=side - 1) - first + 1).clamp(min=0).long()
    # A barycentric coordinate is a plane: slope_x * i + slope_y * j + offset at column i, line j of the box.
    (x1, y1), (x2, y2) = ((points - first[:, None]).roll(-k, 1) for k in (1, 2))
    planes = torch.stack([y1 - y2, x2 - x1, x1 * y2 - x2 * y1])  # (3, 3, M)
    planes = planes / planes[2].sum(0)
    # Every pixel of every box in one flat list, kept if inside its triangle.
    count = columns * lines
    triangle = torch.repeat_interleave(count)  # index into M
    nth = torch.arange(len(triangle), device=points.device) - (count.cumsum(0) - count)[triangle]
    i, j = nth % columns[triangle], nth // columns[triangle]
    slope_x, slope_y, offset = planes[:, :, triangle]
    bary = slope_x * i + slope_y * j + offset
    inside = (bary.amin(0) > -1e-5).nonzero().squeeze(1)  # a hair wider, lest rounding open a crack
    triangle = triangle[inside]
    left, top = first.long()[:, triangle]
    return triangle, left + i[inside], top + j[inside], bary[:, inside]


def _nearest(slot: Tensor, z: Tensor, triangle: Tensor, slots: int) -> Tensor:
    """The z-buffer: which candidates (N,) are the nearest of their slot. One integer a candidate, nearness in the high
    half and the triangle in the low half; the largest wins, so that a tie has one winner too."""
    bits = z.view(torch.int32)
    key = (bits ^ (bits >> 31 & 0x7FFFFFFF)).long() << 32 | triangle  # floats sort as their bits do, negatives flipped
    best = torch.full((slots,), torch.iinfo(torch.int64).min, device=z.device)
    return (best.scatter_reduce_(0, slot, key, "amax")[slot] == key).nonzero().squeeze(1)
