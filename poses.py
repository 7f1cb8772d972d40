"""Where poses come from: a table of made-up ones, and motion capture in AMASS's layout (Mahmood et al. 2019).

    made-up pose = action's ranges + noise, some limbs those of another action, clamped to what joints allow, mirrored
So everything runs with no motion capture at hand. Angles are those a coach would name (raise the arm, bend the knee);
`sample_poses` turns them into SMPL's rotations, `load_amass` reads those of a motion.

Read next: data.py, which makes pictures and examples of these poses and of captured ones.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import body

# All angles in degrees, (lowest, highest), of a left limb; a right limb is its mirror image.
# raise: from hanging 0 through level 90 to overhead 180. front: where to, 0 sideways, 90 forward, -90 backward.
# twist: the upper arm about itself, positive outward. elbow: bend.
ARMS = {  #         raise       front        twist       elbow
    "hang":       ((3, 20),   (-40, 60),   (-30, 20),  (5, 35)),
    "swing front": ((20, 50), (75, 100),   (-30, 10),  (15, 60)),
    "swing back": ((15, 45),  (-110, -80), (-20, 20),  (5, 40)),
    "pump front": ((25, 55),  (65, 95),    (-30, 0),   (80, 115)),
    "pump back":  ((35, 65),  (-110, -80), (-10, 20),  (70, 110)),
    "side":       ((75, 105), (-15, 15),   (0, 60),    (0, 25)),
    "forward":    ((75, 100), (75, 100),   (-40, 20),  (0, 25)),
    "up":         ((150, 178), (20, 100),  (-30, 30),  (0, 30)),
    "up and out": ((115, 150), (-10, 50),  (0, 50),    (0, 30)),
    "wave":       ((65, 115), (-10, 40),   (50, 90),   (60, 120)),
    "on hip":     ((35, 55),  (-30, 10),   (-90, -65), (85, 110)),
    "across":     ((25, 50),  (70, 105),   (-85, -60), (75, 110)),
    "at chest":   ((28, 55),  (50, 75),    (-60, -35), (98, 122)),
    "at belly":   ((25, 45),  (15, 45),    (-82, -60), (82, 108)),
    "at face":    ((55, 95),  (50, 80),    (-25, 10),  (120, 140)),
    "on head":    ((118, 142), (40, 80),   (-15, 30),  (98, 122)),
    "behind back": ((25, 45), (-105, -75), (-90, -60), (40, 95)),
    "cocked":     ((75, 110), (-50, -10),  (55, 90),   (65, 115)),
    "push":       ((55, 90),  (75, 100),   (-30, 10),  (20, 65)),
    "in lap":     ((15, 40),  (70, 100),   (-40, -5),  (25, 75)),
    "prop back":  ((12, 38),  (-110, -60), (-10, 30),  (0, 25)),
    "reach low":  ((50, 110), (75, 105),   (-30, 20),  (0, 30)),
    "prop front": ((60, 88),  (80, 100),   (-20, 20),  (0, 20)),
    "free":       ((0, 175),  (-80, 120),  (-80, 80),  (0, 140)),
}
# swing: the thigh forward, 90 is level. out: away from the other leg. turn: toes outward. knee: bend. toes: pointed.
LEGS = {  #         swing       out        turn        knee        toes
    "straight":   ((-4, 8),   (-3, 6),   (0, 20),    (0, 14),    (-5, 5)),
    "soft":       ((3, 30),   (-2, 10),  (0, 20),    (18, 55),   (-20, 5)),
    "crossing":   ((6, 22),   (-19, -11), (0, 15),   (0, 30),    (-10, 10)),
    "wide":       ((-5, 10),  (12, 28),  (0, 25),    (0, 18),    (-5, 5)),
    "step front": ((18, 40),  (0, 6),    (0, 10),    (0, 18),    (-15, 10)),
    "step back":  ((-28, -8), (0, 6),    (0, 15),    (5, 40),    (-15, 30)),
    "drive up":   ((50, 95),  (0, 10),   (-5, 15),   (70, 120),  (-10, 30)),
    "push off":   ((-28, -5), (0, 8),    (0, 15),    (15, 90),   (10, 40)),
    "seat":       ((75, 100), (0, 25),   (-5, 15),   (70, 105),  (-10, 10)),
    "long seat":  ((80, 95),  (0, 35),   (0, 20),    (0, 20),    (0, 35)),
    "crossed":    ((85, 105), (28, 42),  (45, 60),   (115, 140), (0, 20)),
    "deep":       ((95, 125), (5, 35),   (5, 30),    (110, 145), (-25, 0)),
    "half bent":  ((35, 70),  (3, 25),   (0, 25),    (50, 95),   (-25, 0)),
    "knee down":  ((-12, 15), (0, 15),   (-5, 10),   (84, 108),  (30, 50)),
    "knee up":    ((86, 108), (0, 20),   (-5, 15),   (80, 108),  (-15, 10)),
    "on heels":   ((50, 68),  (0, 20),   (-10, 10),  (136, 152), (35, 50)),
    "lunge":      ((60, 95),  (0, 15),   (0, 15),    (65, 100),  (-20, 5)),
    "trail":      ((-35, -12), (0, 10),  (0, 15),    (0, 50),    (-20, 20)),
    "kick front": ((55, 105), (-5, 15),  (0, 20),    (0, 30),    (0, 40)),
    "kick side":  ((0, 30),   (40, 65),  (10, 40),   (0, 30),    (0, 40)),
    "leg back":   ((-105, -50), (0, 15), (0, 30),    (0, 45),    (15, 45)),
    "tree":       ((40, 65),  (35, 50),  (35, 55),   (105, 130), (10, 35)),
    "curled":     ((80, 120), (0, 15),   (-5, 15),   (90, 135),  (0, 25)),
    "heels up":   ((-10, 20), (0, 12),   (-5, 15),   (40, 120),  (0, 40)),
    "free":       ((-25, 110), (-5, 50), (-20, 40),  (0, 130),   (-15, 40)),
}
# How the whole body lies before the trunk leans: turn about x (positive onto the face) and about z (onto the right).
BASES = {"upright": (0, 0), "back": (-90, 0), "front": (90, 0), "slope": (72, 0), "side": (0, 90), "inverted": (180, 0)}
# An action: how often, base, lean of the pelvis (positive forward; thighs keep their place in the world), bend of the
# spine, legs (left, right) and arms (left, right). Half of all poses are mirrored, so one side is enough.
ACTIONS = {  #       often  base       lean       bend       left leg      right leg     left arm      right arm
    "stand":        (6, "upright",   (-4, 4),   (-8, 10),  "straight",   "soft",       "hang",       "hang"),
    "stand at ease": (4, "upright",  (-4, 4),   (-8, 10),  "straight",   "straight",   "at belly",   "at belly"),
    "legs crossed": (3, "upright",   (-4, 4),   (-8, 10),  "crossing",   "straight",   "hang",       "across"),
    "stand wide":   (4, "upright",   (-4, 6),   (-8, 12),  "wide",       "wide",       "hang",       "on hip"),
    "walk":         (7, "upright",   (0, 8),    (-5, 10),  "step front", "step back",  "swing back", "swing front"),
    "run":          (6, "upright",   (5, 20),   (0, 15),   "drive up",   "push off",   "pump back",  "pump front"),
    "t-pose":       (3, "upright",   (-3, 3),   (-8, 5),   "straight",   "straight",   "side",       "side"),
    "hands up":     (4, "upright",   (-5, 3),   (-15, 8),  "straight",   "straight",   "up",         "up"),
    "cheer":        (3, "upright",   (-6, 4),   (-15, 8),  "wide",       "wide",       "up and out", "up and out"),
    "wave":         (4, "upright",   (-4, 4),   (-8, 8),   "straight",   "soft",       "wave",       "hang"),
    "point":        (3, "upright",   (-4, 6),   (-8, 10),  "soft",       "step back",  "forward",    "hang"),
    "point aside":  (2, "upright",   (-4, 4),   (-8, 8),   "straight",   "wide",       "side",       "on hip"),
    "hands on hips": (3, "upright",  (-4, 4),   (-10, 10), "wide",       "straight",   "on hip",     "on hip"),
    "arms crossed": (3, "upright",   (-4, 4),   (-5, 12),  "straight",   "soft",       "across",     "across"),
    "pray":         (2, "upright",   (-4, 4),   (-5, 15),  "straight",   "straight",   "at chest",   "at chest"),
    "hands behind": (3, "upright",   (-4, 6),   (-10, 15), "straight",   "straight",   "behind back", "behind back"),
    "phone":        (3, "upright",   (-4, 4),   (-5, 12),  "soft",       "straight",   "at face",    "hang"),
    "hands on head": (3, "upright",  (-6, 4),   (-12, 8),  "soft",       "straight",   "on head",    "on head"),
    "push":         (3, "upright",   (5, 25),   (0, 15),   "half bent",  "trail",      "push",       "push"),
    "box":          (3, "upright",   (0, 12),   (0, 20),   "step front", "half bent",  "forward",    "at face"),
    "throw":        (3, "upright",   (-8, 10),  (-15, 10), "soft",       "step back",  "forward",    "cocked"),
    "kick":         (4, "upright",   (-15, 5),  (-5, 20),  "kick front", "soft",       "swing back", "swing front"),
    "side kick":    (2, "upright",   (-5, 10),  (-5, 15),  "kick side",  "soft",       "side",       "at chest"),
    "knee raise":   (3, "upright",   (-6, 8),   (-5, 15),  "drive up",   "straight",   "in lap",     "pump back"),
    "tree":         (3, "upright",   (-3, 3),   (-8, 5),   "tree",       "straight",   "up",         "up"),
    "arabesque":    (3, "upright",   (30, 75),  (-30, 0),  "leg back",   "straight",   "forward",    "side"),
    "lunge":        (4, "upright",   (-3, 15),  (-8, 12),  "lunge",      "trail",      "on hip",     "side"),
    "warrior":      (2, "upright",   (-3, 8),   (-8, 8),   "lunge",      "trail",      "forward",    "swing back"),
    "half squat":   (4, "upright",   (10, 40),  (0, 25),   "half bent",  "half bent",  "forward",    "push"),
    "squat":        (5, "upright",   (5, 35),   (5, 35),   "deep",       "deep",       "forward",    "in lap"),
    "bend over":    (5, "upright",   (30, 65),  (30, 70),  "straight",   "straight",   "reach low",  "reach low"),
    "pick up":      (4, "upright",   (20, 60),  (20, 60),  "half bent",  "half bent",  "reach low",  "swing back"),
    "touch floor":  (3, "upright",   (15, 45),  (20, 55),  "deep",       "deep",       "reach low",  "reach low"),
    "lean back":    (2, "upright",   (-25, -8), (-30, -10), "half bent", "straight",   "up",         "up and out"),
    "sit":          (8, "upright",   (-15, 12), (-3, 20),  "seat",       "seat",       "in lap",     "in lap"),
    "sit on floor": (4, "upright",   (-25, 5),  (-5, 22),   "long seat",  "long seat",  "prop back",  "prop back"),
    "sit one knee": (2, "upright",   (-20, 0),  (5, 30),   "deep",       "long seat",  "in lap",     "prop back"),
    "cross-legged": (4, "upright",   (-15, 10), (0, 25),   "crossed",    "crossed",    "in lap",     "in lap"),
    "kneel":        (5, "upright",   (-6, 12),  (-8, 15),  "knee down",  "knee down",  "hang",       "at chest"),
    "kneel on one": (6, "upright",   (-5, 20),  (-5, 20),  "knee up",    "knee down",  "in lap",     "hang"),
    "sit on heels": (4, "upright",   (-8, 15),  (0, 20),   "on heels",   "on heels",   "in lap",     "in lap"),
    "all fours":    (4, "upright",   (60, 80),  (-10, 15), "knee down",  "knee down",  "prop front", "prop front"),
    "plank":        (2, "slope",     (-6, 6),   (-10, 8),  "straight",   "straight",   "prop front", "prop front"),
    "lie on back":  (5, "back",      (-4, 4),   (-5, 12),  "straight",   "straight",   "hang",       "hang"),
    "rest on back": (3, "back",      (-4, 4),   (-5, 15),  "half bent",  "half bent",  "on head",    "hang"),
    "lie on front": (4, "front",     (-4, 4),   (-20, 4),  "straight",   "heels up",   "on head",    "hang"),
    "lie flat":     (3, "front",     (-4, 4),   (-10, 4),  "straight",   "straight",   "up",         "hang"),
    "lie on side":  (6, "side",      (-8, 8),   (0, 25),   "half bent",  "straight",   "push",       "forward"),
    "curl up":      (4, "side",      (-8, 8),   (25, 60),  "curled",     "curled",     "at chest",   "in lap"),
    "handstand":    (3, "inverted",  (-6, 6),   (-10, 8),  "straight",   "wide",       "up",         "up"),
    "jump":         (3, "upright",   (-5, 15),  (-15, 10), "heels up",   "push off",   "up and out", "side"),
    "dance":        (5, "upright",   (-10, 12), (-20, 15), "free",       "straight",   "free",       "free"),
    "anything":     (4, "upright",   (-15, 40), (-25, 45), "free",       "free",       "free",       "free"),
}
# What joints allow, in the order of the columns above and of `sample_poses`; swing is here relative to the pelvis.
ARM_LIMITS = ((0, 180), (-115, 125), (-95, 95), (0, 145))
LEG_LIMITS = ((-35, 130), (-20, 65), (-40, 60), (0, 152), (-30, 50))
SPINE_LIMITS = ((-35, 80), (-40, 40), (-50, 50))  # bend forward, lean and turn to the left; over 3 joints
HEAD_LIMITS = ((-50, 55), (-35, 35), (-75, 75))  # the same, over the neck and the head
WRIST_LIMITS = ((-70, 70), (-25, 25), (-60, 60))  # about the forearm, about the vertical and z of the T-pose


def turn(axis: int, degrees: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) about x, y or z (axis 0, 1, 2) by `degrees` (...)."""
    vector = torch.zeros(*degrees.shape, 3)
    vector[..., axis] = torch.deg2rad(degrees)
    return body.axis_angle_to_matrix(vector)


def sample_poses(n: int, generator: np.random.Generator) -> Tensor:
    """Draw n made-up human poses (n, 24, 3, 3): an action of the table, its limbs now and then those of another.

    Angles are uniform in the table's ranges plus 3 degrees of noise, clamped to the joints' limits; half of the poses
    are mirrored. The heading is removed. Nothing keeps two limbs from meeting.
    """
    rng, rows = generator, list(ACTIONS.values())
    often = np.array([row[0] for row in rows]) / sum(row[0] for row in rows)
    action, other = rng.choice(len(rows), (2, n), p=often)

    def draw(ranges) -> np.ndarray:
        low, high = np.moveaxis(np.asarray(ranges, float), -1, 0)
        return rng.uniform(low, high) + 3 * rng.standard_normal(low.shape)

    def limbs(table: dict, column: int, swapped: np.ndarray) -> np.ndarray:
        """Angles (n, 2, columns of the table) of both arms or both legs."""
        names = list(table)
        of_action = np.array([[names.index(row[column]), names.index(row[column + 1])] for row in rows])
        # A swapped limb is that of another action two times in three, else any of the table.
        new = np.where(rng.random((n, 2)) < 2 / 3, of_action[other], rng.integers(len(names), size=(n, 2)))
        index = np.where(rng.random((n, 2)) < swapped[:, None], new, of_action[action])
        return draw(np.array(list(table.values()))[index])

    def clamp(angles: np.ndarray, limits: tuple) -> Tensor:
        low, high = np.array(limits, float).T
        return torch.from_numpy(np.clip(angles, low, high)).float()

    def wide(share: float, *limits: tuple) -> np.ndarray:
        """Mostly small angles about zero; a `share` of the poses goes through the whole range of the limits."""
        scale = np.where(rng.random((n, 1)) < share, 0.5, 0.12) * np.array([high for _, high in limits])
        return scale * rng.standard_normal((n, len(limits)))

    lean = draw(np.array([row[2] for row in rows])[action])  # (n,)
    free = np.array([1.0 if row[1] == "upright" else 0.2 for row in rows])[action]  # the ground holds the others
    legs = limbs(LEGS, 4, swapped=0.12 * free)
    legs[..., 0] += lean[:, None]  # the thighs keep their place in the world while the pelvis leans
    spine = wide(0.3, *SPINE_LIMITS)
    spine[:, 0] = draw(np.array([row[3] for row in rows])[action])
    arms, legs = clamp(limbs(ARMS, 6, swapped=0.35 * free), ARM_LIMITS), clamp(legs, LEG_LIMITS)
    spine, head = clamp(spine, SPINE_LIMITS) / 3, clamp(wide(0.4, *HEAD_LIMITS), HEAD_LIMITS) / 2
    wrists = clamp(0.4 * rng.standard_normal((n, 2, 3)) * [high for _, high in WRIST_LIMITS], WRIST_LIMITS)
    base = np.array([BASES[row[1]] for row in rows])[action] + 5 * rng.standard_normal((n, 2)) + lean[:, None] * [1, 0]

    rotmats = torch.eye(3).repeat(n, 24, 1, 1)
    base = torch.from_numpy(base).float()
    rotmats[:, 0] = turn(2, base[:, 1]) @ turn(0, base[:, 0])
    for joints, angles in (("spine1", "spine2", "spine3"), spine), (("neck", "head"), head):
        for name in joints:
            rotmats[:, body.JOINT[name]] = turn(1, angles[:, 2]) @ turn(2, -angles[:, 1]) @ turn(0, angles[:, 0])

    # Limbs are posed as left ones, (n, 2, 3, 3), and the second is then mirrored.
    swing, out, outward, knee, toes = legs.unbind(-1)
    rise, front, twist, elbow = arms.unbind(-1)
    collar = turn(2, 0.2 * (rise - 60).clamp_min(0))  # the collarbone takes a fifth of a high raise
    # An arm swung straight to its place, with no twist of its own, bends as it did hanging: hence front inside twist.
    upper_arm = turn(1, -front) @ turn(2, rise - 90) @ turn(0, -front - twist)
    limb_rotations = {
        "hip": turn(0, -swing) @ turn(2, out) @ turn(1, outward), "knee": turn(0, knee), "ankle": turn(0, toes),
        "collar": collar, "shoulder": collar.mT @ upper_arm, "elbow": turn(1, -elbow),
        "wrist": turn(0, wrists[..., 0]) @ turn(1, wrists[..., 1]) @ turn(2, wrists[..., 2]),
    }
    flip = torch.tensor([-1.0, 1.0, 1.0])
    for name, rotation in limb_rotations.items():
        rotmats[:, body.JOINT["left_" + name]] = rotation[:, 0]
        rotmats[:, body.JOINT["right_" + name]] = flip[:, None] * rotation[:, 1] * flip
    mirrored = torch.from_numpy(rng.random(n) < 0.5)[:, None, None, None]
    return body.remove_heading(torch.where(mirrored, body.mirror(rotmats), rotmats))


# ---------------------------------------------------------------- poses from motion capture

SPLITS = ("train", "val", "test")


def amass_poses(path: str | Path) -> tuple[np.ndarray, int]:
    """The axis-angles (T, 156 or 165) of an AMASS file, as they are, and the step that leaves about 12 a second (1 in a
    file with `frame_idx`, which was thinned before). Every fault of the file raises a ValueError that names it."""
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("poses", "mocap_framerate", "frame_idx") if key in file}
    except Exception as error:  # zipfile, zlib, numpy and the system each raise their own
        raise ValueError(f"{path} cannot be read as an npz file: {error}") from error
    poses = arrays.get("poses")
    if poses is None:
        raise ValueError(f"{path} has no array `poses`; is it an AMASS motion file?")
    if poses.ndim != 2 or poses.shape[1] not in (156, 165) or not len(poses) or poses.dtype.kind != "f":
        raise ValueError(f"{path}: `poses` must be floats (T, 156) or (T, 165), found {poses.dtype} {poses.shape}")
    if not np.isfinite(poses).all():
        raise ValueError(f"{path}: `poses` holds NaN or infinity in {(~np.isfinite(poses)).any(1).sum()} frames")
    if np.abs(poses).max() > 100:
        raise ValueError(f"{path}: `poses` holds {np.abs(poses).max():.3g}, which no angle in radians is")
    rate = arrays.get("mocap_framerate", np.array(12.0))
    if rate.size != 1 or rate.dtype.kind not in "fiu" or not 0 < rate.item() < np.inf:
        raise ValueError(f"{path}: `mocap_framerate` must be one number above 0, found {rate.dtype} {rate.shape}")
    return poses, 1 if "frame_idx" in arrays else max(1, round(rate.item() / 12))


def amass_rotmats(poses: np.ndarray) -> Tensor:
    """Poses (T, 24, 3, 3), turned from AMASS's z-up world into ours, of its axis-angles: the root, 21 body joints, then
    fingers or face, which SMPL does not have: its joints 22 and 23 stay at the identity."""
    rotmats = torch.eye(3).repeat(len(poses), 24, 1, 1)
    axis_angle = torch.from_numpy(poses[:, :66].astype(np.float32)).unflatten(1, (22, 3))
    rotmats[:, :22] = body.axis_angle_to_matrix(axis_angle)
    rotmats[:, 0] = turn(0, torch.tensor(-90.0)) @ rotmats[:, 0]
    return rotmats


def read_amass(path: str | Path) -> Tensor:
    """Poses (T, 24, 3, 3) of an AMASS file in our frame, about 12 a second; see `amass_poses`, `amass_rotmats`."""
    poses, step = amass_poses(path)
    return amass_rotmats(poses[::step])


def amass_files(folder: str | Path, split: str) -> list[Path]:
    """The npz files of `split` ("train", "val", "test"), sorted: those under folder/split where these three folders
    exist (so that the data's own split of subjects is kept), else every tenth file is test and every tenth val."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of motion capture files")
    if all((folder / name).is_dir() for name in SPLITS):
        files = sorted((folder / split).rglob("*.npz"))
    else:
        files = [path for i, path in enumerate(sorted(folder.rglob("*.npz")))
                 if split == {0: "test", 1: "val"}.get(i % 10, "train")]
    if not files:
        raise ValueError(f"{folder}: no npz files for the {split} split")
    return files


def load_amass(folder: str | Path, split: str) -> Tensor:
    """All poses (N, 24, 3, 3) of a split of an AMASS folder, with the heading removed; see `amass_files`."""
    return body.remove_heading(torch.cat([read_amass(path) for path in amass_files(folder, split)]))
