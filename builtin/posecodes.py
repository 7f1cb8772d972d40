"""What can be measured of a posed skeleton: the posecodes of PoseScript (Delmas et al. 2022), in degrees and cm.

    named_measurements(joints, rotations) -> {"posture: standing": 1, "left elbow [deg]": (12, 95), ...}
captions.py makes statements of these numbers by thresholds. Three frames, each of axes (left, up, forward), take the
heading away, so that nothing depends on it:
    world - up against gravity, left along the hip line on the ground (or, if that is vertical, square to the front)
    chest - fixed to the ribs: where the hands are around the trunk, where the head looks
    body  - world, or the pelvis' own frame while lying or upside down, when "above the head" means beyond the head
A pose has no height of its own: the lowest joint is the ground. SMPL calls the joint at the base of the toes "foot";
here it is `toe`, and a foot is where its ankle is.
Read next: captions.py.
"""

from math import nan
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from body import JOINT


class Posture(NamedTuple):
    """What the whole body does: bool (...), unless another shape is said."""
    standing: Tensor
    squatting: Tensor
    sitting: Tensor
    upside_down: Tensor
    lying: Tensor
    knee_down: Tensor  # bool (..., 2), left and right: the person kneels on it
    foot_height: Tensor  # (..., 2) cm above the ground


def _two(points: Tensor, name: str) -> Tensor:
    return points[..., [JOINT["left_" + name], JOINT["right_" + name]], :]  # (..., 2, 3)


def _degrees(y: Tensor, x: Tensor) -> Tensor:
    return torch.rad2deg(torch.atan2(y, x))


def _bend(first: Tensor, middle: Tensor, last: Tensor) -> Tensor:
    """How far a hinge is bent: 0 degrees where the three joints (..., 3) lie on a line."""
    u, v = middle - first, last - middle
    return _degrees(torch.linalg.cross(u, v).norm(dim=-1), (u * v).sum(-1))


def measure(joints: Tensor, global_rotmats: Tensor) -> Tensor:
    """Measurements (..., M), in the order and units of captions.MEASURES; arguments as for `named_measurements`."""
    named = named_measurements(joints, global_rotmats)
    return torch.cat([value if "left" in name else value[..., None] for name, value in named.items()], -1)


def named_measurements(joints: Tensor, global_rotmats: Tensor) -> dict[str, Tensor]:
    """Name with its unit -> values (...,), or (..., 2) = (left, right) for a name with "left". NaN where the words mean
    nothing; a comparison with NaN is false. joints: (..., 24, 3), metres; global_rotmats: (..., 24, 3, 3)."""
    pelvis, spine, head = (global_rotmats[..., JOINT[name], :, :] for name in ("pelvis", "spine3", "head"))
    up = joints.new_tensor([0.0, 1.0, 0.0]).expand_as(pelvis[..., 0])
    left = normalize((1 - up) * (pelvis[..., 0] + 1e-4 * torch.linalg.cross(up, pelvis[..., 2])), dim=-1)
    axes = torch.stack([left, up, torch.linalg.cross(left, up)], -1)  # (..., 3, 3)
    cm = 100 * (joints - joints.amin(-2, keepdim=True))  # so y is the height above the lowest joint, the ground
    world = cm @ axes  # (..., 24, 3)
    posture = _posture(world)
    lying_down = (posture.lying | posture.upside_down)[..., None, None]
    body = torch.where(lying_down, cm @ pelvis, world)
    return (_of_posture(posture, pelvis) | _of_trunk_and_head(posture, world, pelvis, spine, head)
            | _of_arms(posture, cm, body, pelvis, spine, head) | _of_legs(posture, world, body))


def _posture(world: Tensor) -> Posture:
    """From heights above the ground and directions against gravity; world: (..., 24, 3), cm."""
    hip, knee, ankle, toe = (_two(world, name) for name in ("hip", "knee", "ankle", "foot"))  # (..., 2, 3)
    thigh, shank, trunk = knee - hip, ankle - knee, world[..., JOINT["neck"], :] - world[..., 0, :]
    knee_bend = _bend(hip, knee, ankle)  # (..., 2)
    foot_height = torch.minimum(ankle[..., 1] - 6, toe[..., 1])  # the ankle of a flat foot is 6 cm above its toes
    pelvis_height, head_height = world[..., 0, 1], world[..., JOINT["head"], 1]
    tilt = _degrees(trunk[..., [0, 2]].norm(dim=-1), trunk[..., 1])  # 0 upright, 90 level, 180 upside down
    upside_down = (trunk[..., 1] < -25) & (ankle[..., 1].mean(-1) > pelvis_height + 10)
    # A knee to kneel on is near the ground, bent, below the hip, with the shank level and pointing back.
    knee_down = (knee[..., 1] < 25) & (knee_bend > 60) & (thigh[..., 1] < -5) & (shank[..., 1].abs() < 25)
    knee_down = knee_down & (shank[..., 2] < -20) & ((pelvis_height > 25) & (tilt < 120) & ~upside_down)[..., None]
    kneeling = knee_down.any(-1)
    lying = (tilt > 65) & (pelvis_height < 45) & (head_height < 55) & ~kneeling & ~upside_down
    on_feet = ~kneeling & ~lying & ~upside_down  # or on the seat
    # Sitting: the thighs forward and either falling, but for a chair (a deep squat hangs back some, too), or the shanks
    # level, on the ground.
    thighs_forward = ((_degrees(thigh[..., [0, 2]].norm(dim=-1), -thigh[..., 1]) > 50) & (thigh[..., 2] > 10)).all(-1)
    falling = ankle[..., 2].mean(-1) - world[..., 2].mean(-1) > 3 + 0.4 * (knee_bend.mean(-1) - 95).clamp_min(0)
    sitting = thighs_forward & (falling | (shank[..., 1] > -28).all(-1))
    sitting = sitting & on_feet & (tilt < 70)
    squatting = on_feet & ~sitting & (knee_bend > 75).all(-1) & (pelvis_height < 60)
    standing = on_feet & ~sitting & ~squatting & (pelvis_height > 60) & (foot_height.amin(-1) < 15)
    return Posture(standing, squatting, sitting, upside_down, lying, knee_down, foot_height)


def _sides(like: Tensor) -> Tensor:
    return like.new_tensor([1.0, -1.0])  # "how far to the left" times this is (to the left, to the right)


def _of_posture(posture: Posture, pelvis: Tensor) -> dict[str, Tensor]:
    left_up, belly_up = pelvis[..., 1, 0], pelvis[..., 1, 2]  # how much the left side, the belly, points up
    on_side = posture.lying & (left_up.abs() > belly_up.abs())
    both = posture.knee_down.all(-1, keepdim=True)
    return {
        "posture: standing": posture.standing.to(pelvis), "posture: squatting": posture.squatting.to(pelvis),
        "posture: sitting": posture.sitting.to(pelvis), "posture: upside down": posture.upside_down.to(pelvis),
        "posture: kneeling on both": both[..., 0].to(pelvis),
        "posture: kneeling on left": (posture.knee_down & ~both).to(pelvis),
        "posture: lying, belly up": belly_up.where(posture.lying & ~on_side, nan),
        "posture: lying, left down": (left_up[..., None] * -_sides(pelvis)).where(on_side[..., None], nan),
    }


def _of_trunk_and_head(posture: Posture, world: Tensor, pelvis: Tensor, spine: Tensor,
                       head: Tensor) -> dict[str, Tensor]:
    upright, sides = ~(posture.lying | posture.upside_down), _sides(world)
    trunk = world[..., JOINT["neck"], :] - world[..., 0, :]
    lean, twist, look = _degrees(trunk[..., 0], trunk[..., 1:].norm(dim=-1)), pelvis.mT @ spine, spine.mT @ head
    return {
        "trunk forward [deg]": _degrees(trunk[..., 2], trunk[..., 1].clamp_min(0)).where(upright, nan),
        "trunk to the left [deg]": (lean[..., None] * sides).where(upright[..., None], nan),
        "twist to the left [deg]": _degrees(twist[..., 0, 2], twist[..., 2, 2])[..., None] * sides,
        "head turn to the left [deg]": _degrees(look[..., 0, 2], look[..., 2, 2])[..., None] * sides,
        "head up [deg]": _degrees(look[..., 1, 2], look[..., [0, 2], 2].norm(dim=-1)),
        "head tilt to the left [deg]": _degrees(look[..., 0, 1], look[..., 1, 1])[..., None] * sides,
    }


def _of_arms(posture: Posture, cm: Tensor, body: Tensor, pelvis: Tensor, spine: Tensor,
             head: Tensor) -> dict[str, Tensor]:
    hand, shoulder, elbow, wrist = (_two(body, name) for name in ("hand", "shoulder", "elbow", "wrist"))
    chest_hand = _two((cm - cm[..., [JOINT["spine3"]], :]) @ spine, "hand")
    elbow_bend, palm = _bend(shoulder, elbow, wrist), _two(cm, "hand")
    # A hand on the hip holds the rim of the pelvis, with a bent elbow: a hanging hand only passes by.
    rim = cm[..., [0], :] + cm.new_tensor([[14, 4, 3], [-14, 4, 3]]) @ pelvis.mT  # (..., 2, 3)
    face = cm[..., [JOINT["head"]], :] + cm.new_tensor([[0, 10, 6]]) @ head.mT  # (..., 1, 3)
    apart, sides = hand[..., 0, :] - hand[..., 1, :], _sides(cm)  # (..., 3), from the right hand to the left
    return {
        "left elbow [deg]": elbow_bend,
        "left hand height [cm]": hand[..., 1] - shoulder[..., 1],  # above the shoulder
        "left hand forward [cm]": chest_hand[..., 2], "left hand outward [cm]": chest_hand[..., 0] * sides,
        "left hand over right [cm]": apart[..., 1, None] * sides, "hand to hand [cm]": apart.norm(dim=-1),
        "left hand: to hip [cm]": (palm - rim).norm(dim=-1).where(elbow_bend > 50, nan),
        "left hand: to face [cm]": (palm - face).norm(dim=-1),
        "left hand: to knee [cm]": (palm - _two(cm, "knee")).norm(dim=-1),
        "left hand: to ground [cm]": palm[..., 1].where(~posture.lying[..., None], nan),
    }


def _of_legs(posture: Posture, world: Tensor, body: Tensor) -> dict[str, Tensor]:
    hip, knee, ankle = (_two(body, name) for name in ("hip", "knee", "ankle"))
    thigh, sides = knee - hip, _sides(body)
    apart = ankle[..., 0, :] - ankle[..., 1, :]  # (..., 3), from the right foot to the left
    folded, off_ground = posture.sitting | posture.squatting, posture.lying | posture.upside_down
    return {
        "left knee [deg]": _bend(*(_two(world, name) for name in ("hip", "knee", "ankle"))),
        "left thigh forward [deg]": _degrees(thigh[..., 2], -thigh[..., 1]).where(~folded[..., None], nan),
        "left thigh outward [deg]": _degrees(thigh[..., 0] * sides, thigh[..., 1:].norm(dim=-1)),
        "left foot to ground [cm]": posture.foot_height.where(~off_ground[..., None], nan),
        "left foot ahead [cm]": apart[..., 2, None] * sides, "foot to foot [cm]": apart.norm(dim=-1),
        "ankles uncrossed by [cm]": apart[..., 0],
    }
