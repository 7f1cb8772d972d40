"""TODO header."""

from math import nan

import torch
from torch.nn.functional import normalize
from torch import Tensor

from body import JOINT



def _two(points: Tensor, name: str) -> Tensor:
    return points[..., [JOINT["left_" + name], JOINT["right_" + name]], :]  # (..., 2, 3)


def _degrees(y: Tensor, x: Tensor) -> Tensor:
    return torch.rad2deg(torch.atan2(y, x))


def _bend(first: Tensor, middle: Tensor, last: Tensor) -> Tensor:
    """How far a hinge is bent: 0 degrees where the three joints (..., 3) lie on a line."""
    u, v = middle - first, last - middle
    return _degrees(torch.linalg.cross(u, v).norm(dim=-1), (u * v).sum(-1))


def named_measurements(joints: Tensor, rotmats: Tensor) -> dict[str, Tensor]:
    """Name with its unit -> values (...,), or (..., 2) = (left, right) for a name with "left". NaN where the words mean
    nothing; a comparison with NaN is false. Three frames, each of axes (left, up, forward), take the heading away:
    world - up against gravity, left along the hip line on the ground (or, if that is vertical, square to the front);
    chest - fixed to the ribs: where the hands are around the trunk, where the head looks;
    body  - world, or the pelvis' own frame while lying or upside down, when "above the head" means beyond the head.
    """
    sign = joints.new_tensor([1.0, -1.0])  # "how far to the left" times this is (to the left, to the right)
    pelvis, spine, head = (rotmats[..., JOINT[name], :, :] for name in ("pelvis", "spine3", "head"))
    up = joints.new_tensor([0.0, 1.0, 0.0]).expand_as(pelvis[..., 0])
    left = normalize((1 - up) * (pelvis[..., 0] + 1e-4 * torch.linalg.cross(up, pelvis[..., 2])), dim=-1)
    axes = torch.stack([left, up, torch.linalg.cross(left, up)], -1)  # (..., 3, 3)
    cm = 100 * (joints - joints.amin(-2, keepdim=True))  # so y is the height above the lowest joint
    world, chest = cm @ axes, (cm - cm[..., [JOINT["spine3"]], :]) @ spine  # (..., 24, 3)

    # The posture, from heights above the ground and directions against gravity.
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
    kneeling, both = knee_down.any(-1), knee_down.all(-1, keepdim=True)
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
    left_up, belly_up = pelvis[..., 1, 0], pelvis[..., 1, 2]  # how much the left side, the belly, points up
    on_side = lying & (left_up.abs() > belly_up.abs())

    recumbent = lying | upside_down
    body = torch.where(recumbent[..., None, None], cm @ pelvis, world)
    hand, shoulder, elbow, wrist = (_two(body, name) for name in ("hand", "shoulder", "elbow", "wrist"))
    leg, foot, chest_hand = _two(body, "knee") - _two(body, "hip"), _two(body, "ankle"), _two(chest, "hand")
    elbow_bend, palm = _bend(shoulder, elbow, wrist), _two(cm, "hand")
    # A hand on the hip holds the rim of the pelvis, with a bent elbow: a hanging hand only passes by.
    rim = cm[..., [0], :] + cm.new_tensor([[14, 4, 3], [-14, 4, 3]]) @ pelvis.mT  # (..., 2, 3)
    face = cm[..., [JOINT["head"]], :] + cm.new_tensor([[0, 10, 6]]) @ head.mT  # (..., 1, 3)
    hands, feet = hand[..., 0, :] - hand[..., 1, :], foot[..., 0, :] - foot[..., 1, :]  # (..., 3), from right to left
    lean, twist, look = _degrees(trunk[..., 0], trunk[..., 1:].norm(dim=-1)), pelvis.mT @ spine, spine.mT @ head
    return {
        "posture: standing": standing.to(cm), "posture: squatting": squatting.to(cm),
        "posture: sitting": sitting.to(cm), "posture: upside down": upside_down.to(cm),
        "posture: kneeling on both": both[..., 0].to(cm), "posture: kneeling on left": (knee_down & ~both).to(cm),
        "posture: lying, belly up": belly_up.where(lying & ~on_side, nan),
        "posture: lying, left down": (left_up[..., None] * -sign).where(on_side[..., None], nan),
        "trunk forward [deg]": _degrees(trunk[..., 2], trunk[..., 1].clamp_min(0)).where(~recumbent, nan),
        "trunk to the left [deg]": (lean[..., None] * sign).where(~recumbent[..., None], nan),
        "twist to the left [deg]": _degrees(twist[..., 0, 2], twist[..., 2, 2])[..., None] * sign,
        "head turn to the left [deg]": _degrees(look[..., 0, 2], look[..., 2, 2])[..., None] * sign,
        "head up [deg]": _degrees(look[..., 1, 2], look[..., [0, 2], 2].norm(dim=-1)),
        "head tilt to the left [deg]": _degrees(look[..., 0, 1], look[..., 1, 1])[..., None] * sign,
        "left elbow [deg]": elbow_bend, "left knee [deg]": knee_bend,
        "left hand height [cm]": hand[..., 1] - shoulder[..., 1],  # above the shoulder
        "left hand forward [cm]": chest_hand[..., 2], "left hand outward [cm]": chest_hand[..., 0] * sign,
        "left hand over right [cm]": hands[..., 1, None] * sign, "hand to hand [cm]": hands.norm(dim=-1),
        "left hand: to hip [cm]": (palm - rim).norm(dim=-1).where(elbow_bend > 50, nan),
        "left hand: to face [cm]": (palm - face).norm(dim=-1),
        "left hand: to knee [cm]": (palm - _two(cm, "knee")).norm(dim=-1),
        "left hand: to ground [cm]": palm[..., 1].where(~lying[..., None], nan),
        "left thigh forward [deg]": _degrees(leg[..., 2], -leg[..., 1]).where(~(sitting | squatting)[..., None], nan),
        "left thigh outward [deg]": _degrees(leg[..., 0] * sign, leg[..., 1:].norm(dim=-1)),
        "left foot to ground [cm]": foot_height.where(~recumbent[..., None], nan),
        "left foot ahead [cm]": feet[..., 2, None] * sign, "foot to foot [cm]": feet.norm(dim=-1),
        "ankles uncrossed by [cm]": feet[..., 0],
    }


def measure(joints: Tensor, global_rotmats: Tensor) -> Tensor:
    """Measurements (..., M), in the order and units of MEASURES; arguments as for `holds`."""
    named = named_measurements(joints, global_rotmats)
    return torch.cat([value if "left" in name else value[..., None] for name, value in named.items()], -1)
