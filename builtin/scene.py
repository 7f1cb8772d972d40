"""Pictures of the built-in world: a posed body in clothes, light, background and a crop that are drawn at random.

The crop is a square around the body, as a person detector would cut it out of a photo. The camera looks at the body's
middle along -z; that it looks down a little is in the pose (splits.py turns the root), so the picture is of the pose as
the camera sees it, and the body leans in it by that much. Words about it do not: they are against gravity.
Read next: splits.py, which draws many of these pictures.
"""

import numpy as np
import torch
from torch import Tensor

from builtin import renderer
from real.smpl import body_vertices


def photograph(body: torch.nn.Module, rotmats: Tensor, betas: Tensor, size: int,
               rng: np.random.Generator) -> np.ndarray:
    """Pictures (B, size, size, 3) uint8 of poses (B, 24, 3, 3) and shapes (B, 10). body: from `smpl.load_body`."""
    B = len(rotmats)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (B, *shape))).float()

    vertices, _ = body_vertices(body, rotmats, betas)
    palette = (renderer.PALETTE + draw(-.1, .1, 7, 3)) * draw(.8, 1.15, 7, 1)
    palette[:, renderer.PARTS.index("skin")] *= draw(.4, 1.1, 1)
    light = torch.stack([draw(-1, 1), draw(0, 1.2), draw(.5, 1)], -1)  # from the camera's side, never from below

    # Background: a smooth gradient of pale colours, and grain.
    pale = draw(.6, .95, 1, 1, 1) + draw(-.15, .15, 3, 3, 3)
    smooth = torch.nn.functional.interpolate(pale, size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    background = (smooth + draw(-.03, .03, size, size, 3)).clamp(0, 1)

    # The crop: a square around the body as the camera sees it, a little larger and off its centre.
    distance = draw(3, 8)
    low, high = vertices[..., :2].amin(1), vertices[..., :2].amax(1)
    center = (low + high) / 2 + draw(-.05, .05, 2) * (high - low)
    nearer = (distance[:, None] / (distance[:, None] - vertices[..., 2]))[..., None]  # perspective
    reach = ((vertices[..., :2] - center[:, None]) * nearer).abs().amax((1, 2))
    pictures = renderer.render(vertices, body.faces_tensor, renderer.part_colors(body, palette), size, center,
                               2 * reach * draw(1.02, 1.3), distance, light=light, background=background)
    return pictures.numpy()
