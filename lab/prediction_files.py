"""The files that predict.py writes.

`body.obj`: the mean pose in metres, y up, as Blender's importer expects.
`pose.npz`: float32, in SMPL's own frame (y up; an upright body with the identity at its root looks along +z):
    axis_angle (24, 3)   the mean pose: `global_orient` and `body_pose` of any SMPL implementation, radians
    rot6d (24, 6)        the same rotations, the first column of each matrix and then its second
    rot6d_order (6,)     which entries these are: R00, R10, R20, R01, R11, R21
    betas (10,)          zeros: the policy says nothing of the body's shape
    mean (144,), covariance (144, 144)   the raw Gaussian over 24 x 6 numbers, before they are made rotations
    samples (K, 24, 3)   poses drawn from it, axis-angle
`mean` has the order of `rot6d`. Others have another: pytorch3d's rotation_6d_to_matrix takes six numbers for rows, so
that what it makes of these is R transposed (`.mT` is R); SPIN and HMR2 have R00, R01, R10, R11, R20, R21, which is
`rot6d.reshape(24, 2, 3).swapaxes(1, 2)`.
`picture.png`: the mean pose and its samples, how far each part varies, and what was said.
`body.html`: the same to be turned, in a browser (body_page.py).
Read next: body_page.py, the page.
"""

import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

import captions
from body import axis_angle_to_matrix, matrix_to_axis_angle, matrix_to_rot6d
from builtin.denials import said, signed
from builtin.renderer import PALETTE, part_colors, render
from engine.lock import hold
from lab.body_page import write_page
from lab.curves import write_picture
from real.smpl import body_vertices

SIZE = 480  # pixels a picture of a body is high
GHOSTS, SHOWN = 12, 8  # samples painted translucent, and on their own


def write(folder: Path, body, prediction, asked: str, image: np.ndarray | None, checked: dict[str, Tensor],
          rotmats: Tensor, say: Callable[[str], None]) -> list[Path]:
    """All of them, over those of the last; returns them. prediction: of predict.py; checked: of `check_statements`.
    ValueError where the folder cannot be written to, or another process is writing there."""
    names = ["picture.png", "pose.npz", "body.obj"]
    try:
        with hold(folder), TemporaryDirectory(dir=folder, prefix=".") as new:  # until all is written the last stays
            write_pose(Path(new), body, *prediction[2:])
            draw(Path(new, "picture.png"), body, asked, image, prediction.answer, statement_lines(checked), rotmats)
            if write_page(Path(new, "body.html"), body, asked, image, prediction.answer, checked, rotmats):
                names.append("body.html")
            else:
                (folder / "body.html").unlink(missing_ok=True)  # that of another prediction
                say("body.html is left out: pip install plotly, then bodies can be turned in a browser.")
            for name in names:
                os.replace(Path(new, name), folder / name)
    except OSError as error:
        raise ValueError(f"--out {folder} cannot be written to: {error}") from error
    return [folder / name for name in names]


def write_pose(folder: Path, body, mean: Tensor, covariance: Tensor, rotmats: Tensor) -> None:
    """`pose.npz` and `body.obj`, as the top of this file says."""
    axis_angle, betas = matrix_to_axis_angle(rotmats), torch.zeros(10)
    np.savez(folder / "pose.npz", axis_angle=axis_angle[0], rot6d=matrix_to_rot6d(rotmats[0]), betas=betas, mean=mean,
             rot6d_order=["R00", "R10", "R20", "R01", "R11", "R21"], covariance=covariance, samples=axis_angle[1:])
    vertices = body_vertices(body, rotmats[:1], betas[None])[0][0]
    lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in vertices.tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (body.faces_tensor + 1).tolist()]  # Wavefront counts from 1
    (folder / "body.obj").write_text("\n".join(lines) + "\n")


def draw(path: Path, body, asked: str, image: np.ndarray | None, answer: str, lines: list[str],
         rotmats: Tensor) -> None:
    """The picture: the mean pose before translucent samples, from two sides; the mean pose coloured by how far each
    part varies; samples on their own; beside them the words. rotmats: (1 + K, 24, 3, 3), the mean pose first."""
    vertices = body_vertices(body, rotmats, torch.zeros(len(rotmats), 10))[0]  # (1 + K, V, 3), pelvis at the origin
    spread = 100 * vertices[1:].var(0, correction=0).sum(-1).sqrt()  # (V,) cm
    front, quarter = vertices[:1 + GHOSTS], axis_angle_to_matrix(torch.tensor([0.0, -np.pi / 2, 0.0]))
    views = torch.stack([front, front @ quarter.mT])  # (2, 1 + n, V, 3)
    low, high = views[..., :2].amin((0, 1, 2)), views[..., :2].amax((0, 1, 2))
    reach, white = 1.04 * (high - low).max(), torch.ones(1, 1, 1, 3)
    wide = 1.04 * ((high - low)[0] / reach).item()  # the share of a picture's columns that is not empty

    def paint(vertices: Tensor, colors: Tensor, background: Tensor, fine: int = 2) -> Tensor:  # (B, SIZE, SIZE, 3)
        B, light = len(vertices), torch.tensor([0.3, 0.5, 1.0])
        return render(vertices, body.faces_tensor, colors.expand(B, -1, -1), SIZE, ((low + high) / 2).expand(B, 2),
                      reach.expand(B), light=light.expand(B, 3), background=background, supersample=fine) / 255

    clothes = part_colors(body, PALETTE[None])
    ghosts = paint(views[:, 1:].flatten(0, 1), clothes, white, 1).unflatten(0, (2, -1))  # (2, n, SIZE, SIZE, 3)
    cloud = (1 - 0.3 * (1 - ghosts)).prod(1)  # stacked like films, so that their order does not matter
    means = 0.85 * paint(views[:, 0], clothes, cloud) + 0.15 * cloud
    scale = ScalarMappable(Normalize(0, max(1, spread.max().item())), "viridis")
    heat = paint(front[:1], torch.from_numpy(scale.to_rgba(spread.numpy())[None, :, :3]).float(), white)
    figure = Figure(figsize=(16, 9))

    def show(place: tuple[float, ...], pixels: Tensor | np.ndarray, title: str = "") -> None:
        axis = figure.add_axes(place, frame_on=False, xticks=[], yticks=[], title=title)
        axis.title.set_size(18)
        axis.imshow(np.asarray(pixels))
        if len(pixels) == SIZE:  # leave out the empty columns on either side
            axis.set_xlim(SIZE / 2 * (1 - wide), SIZE / 2 * (1 + wide))

    titles = ("front", "from its left") if image is None else ("as the camera sees it", "from the side")
    for i, (title, pixels) in enumerate(zip((*titles, "standard deviation, cm"), (*means, *heat))):
        show((0.23 + 0.24 * i, 0.33, 0.235, 0.6), pixels, title)
    bar = figure.colorbar(scale, cax=figure.add_axes((0.955, 0.38, 0.008, 0.5)))
    bar.ax.tick_params(labelsize=13)
    figure.text(0.23, 0.28, "samples (above: translucent, behind the mean pose)", fontsize=15)
    for i, pixels in enumerate(ghosts[0, :SHOWN]):
        show((0.23 + 0.095 * i, 0.02, 0.094, 0.25), pixels)
    if image is not None:
        show((0.015, 0.62, 0.19, 0.31), image)
    top = 0.93 if image is None else 0.58
    texts = [textwrap.fill(textwrap.shorten(text, 250, placeholder=" ..."), 32) for text in (asked, answer, *lines)]
    step = min(0.031, (top - 0.03) / sum(text.count("\n") + 1.7 for text in texts))  # small print where there is much
    for i, text in enumerate(texts):
        color = "black" if i < 2 else "#00684a" if text[0] == "+" else "#b3400a"
        figure.text(0.015, top, text, va="top", fontsize=450 * step, linespacing=1.25, parse_math=False, color=color)
        top -= step * (text.count("\n") + 1.7)
    write_picture(figure, path, dpi=100)


def check_statements(text: str, rotmats: Tensor) -> dict[str, Tensor]:
    """Each statement of a text, and each that it denies, with the poses (N, 24, 3, 3) that do as is said: (N,) bool."""
    holds = signed(captions.pose_holds(rotmats).float()).bool()  # (N, 2 S)
    return {said(i): holds[:, i] for i in captions.parse(text)}


def statement_lines(checked: dict[str, Tensor]) -> list[str]:
    """A line for each of `check_statements`, whose first pose is the mean: does that do as is said, + or -, and how
    many of the others, samples?"""
    return [f"{'+' if holds[0] else '-'} {name}: {holds[1:].sum()} of {len(holds) - 1} samples"
            for name, holds in checked.items()]
