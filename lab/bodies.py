"""What the pictures of a run are made of: bodies on white, each filling its picture, and what was asked.

Read next: pictures.py, which puts them into rows."""

import textwrap

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from body import axis_angle_to_matrix
from builtin.renderer import PALETTE, part_colors, render
from data import Example
from real.smpl import body_vertices


def picture(body, rotmats: Tensor, betas: Tensor, size: int = 256, colors: Tensor | None = None,
            faces: Tensor | None = None, supersample: int = 3) -> np.ndarray:
    """Posed bodies (B, 24, 3, 3) on white, each filling its picture: uint8 (B, size, size, 3). colors (B, V, 3):
    default their clothes. faces (F, 3): those drawn, default all."""
    B = len(rotmats)
    vertices, _ = body_vertices(body, rotmats, betas)
    low, high = vertices[..., :2].amin(1), vertices[..., :2].amax(1)
    return render(vertices, body.faces_tensor if faces is None else faces,
                  part_colors(body, PALETTE.expand(B, -1, -1)) if colors is None else colors, size, (low + high) / 2,
                  1.1 * (high - low).amax(-1).clamp_min(1.2), light=torch.tensor([0.4, 0.6, 1.0]).expand(B, 3),
                  background=torch.ones(B, 3), supersample=supersample).numpy()


def turned(rotmats: Tensor, angle: float = 0.5) -> Tensor:
    """Poses (..., 24, 3, 3) turned about the vertical, radians: half from the side shows most without a camera."""
    rotmats = rotmats.clone()
    rotmats[..., 0, :, :] = axis_angle_to_matrix(torch.tensor([0.0, angle, 0.0])) @ rotmats[..., 0, :, :]
    return rotmats


def ask(axis: Axes, example: Example) -> None:
    """What was asked: the sentence, or the image."""
    axis.axis("off")
    if example.image is None:
        axis.text(0, 0.5, textwrap.fill(example.caption, 20), fontsize=15.5, va="center", transform=axis.transAxes)
    else:
        axis.imshow(example.image)
