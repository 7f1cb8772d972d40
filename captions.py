"""A pose in words: statements that can be measured, their sentences, their questions, and the checker.

    statement s holds of a pose  <=>  low_s <= m_s(pose) < high_s
Every statement is one row of a table: a measurement m_s of the posed skeleton, two thresholds, some phrasings. So a
sentence is written from a pose (`describe`), read back into statements (`parse`) and checked against another pose
(`check`) by one and the same table. Nothing depends on the heading; gravity counts where everyday words mean it.

Read next: data.py, which makes training examples of these words.
"""

import re
from collections.abc import Iterator, Sequence
from math import inf, nan
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from body import JOINT, forward_kinematics

POSE_TOKEN = "<POSE>"
POSE_ANSWER = f"The SMPL pose of this person is {POSE_TOKEN}."


# ---------------------------------------------------------------- measurements

def _two(points: Tensor, name: str) -> Tensor:
    return points[..., [JOINT["left_" + name], JOINT["right_" + name]], :]  # (..., 2, 3)


def _degrees(y: Tensor, x: Tensor) -> Tensor:
    return torch.rad2deg(torch.atan2(y, x))


def _bend(first: Tensor, middle: Tensor, last: Tensor) -> Tensor:
    """How far a hinge is bent: 0 degrees where the three joints (..., 3) lie on a line."""
    u, v = middle - first, last - middle
    return _degrees(torch.linalg.cross(u, v).norm(dim=-1), (u * v).sum(-1))


def _named_measurements(joints: Tensor, rotmats: Tensor) -> dict[str, Tensor]:
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
    named = _named_measurements(joints, global_rotmats)
    return torch.cat([value if "left" in name else value[..., None] for name, value in named.items()], -1)


def swap_sides(text: str) -> str:
    """The text with left and right exchanged: what it says of the mirrored pose. A right angle stays one."""
    other = {case(word): case(twin) for word, twin in (("left", "right"), ("right", "left"))
             for case in (str.lower, str.title, str.upper)}
    return re.sub(r"\b(?!right[ -]angle)(left|right)(?=\b|wards?\b|most\b|hand)", lambda match: other.get(
        match[0], match[0]), text, flags=re.IGNORECASE)


_REST = _named_measurements(*forward_kinematics(torch.eye(3).expand(24, 3, 3)))
MEASURES = tuple(side for name in _REST for side in dict.fromkeys((name, swap_sides(name))))


# Measure, low, high, weight (odds of being picked: how much it tells), phrasings (the canonical one first). A row about
# the left makes one about the right. A measure's name up to its colon is its topic: one description has one of each.
TABLE = (
    ("posture: standing", .5, inf, 1, "the person is standing|the person is standing up"),
    ("posture: squatting", .5, inf, 9, "the person is squatting|the person is crouching"),
    ("posture: sitting", .5, inf, 9, "the person is sitting|the person is sitting down|the person is seated"),
    ("posture: upside down", .5, inf, 9, "the person is upside down"),
    ("posture: kneeling on both", .5, inf, 9, "the person is kneeling|the person is kneeling on both knees"),
    ("posture: kneeling on left", .5, inf, 9, "the person is kneeling on the left knee"),
    ("posture: lying, belly up", 0, inf, 9, "the person is lying on their back|the person is lying face up"),
    ("posture: lying, belly up", -inf, 0, 9, "the person is lying on their belly|the person is lying face down"),
    ("posture: lying, left down", 0, inf, 9, "the person is lying on their left side"),
    ("trunk forward [deg]", -inf, -8, 4, "the person is leaning back|the person is leaning backward"),
    ("trunk forward [deg]", -8, 10, .4, "the back is upright|the upper body is upright"),
    ("trunk forward [deg]", 10, 25, 1, "the person is leaning slightly forward"),
    ("trunk forward [deg]", 25, 60, 3, "the person is leaning forward|the upper body is leaning forward"),
    ("trunk forward [deg]", 60, inf, 6, "the person is bent over|the person is bent far forward"),
    ("trunk to the left [deg]", 10, inf, 3, "the person is leaning to the left"),
    ("twist to the left [deg]", 12, inf, 2, "the upper body is twisted to the left|the person is twisting to the left"),
    ("head turn to the left [deg]", 20, inf, 2, "the head is turned to the left|the person is looking to the left"),
    ("head up [deg]", 15, inf, 2, "the person is looking up|the head is tilted back"),
    ("head up [deg]", -inf, -20, 2, "the person is looking down|the head is bowed|the head is lowered"),
    ("head tilt to the left [deg]", 12, inf, 2, "the head is tilted to the left"),
    ("left elbow [deg]", -inf, 25, 1, "the left elbow is straight|the left arm is straight"),
    ("left elbow [deg]", 25, 60, .6, "the left elbow is slightly bent|the left arm is slightly bent"),
    ("left elbow [deg]", 60, 110, 1, "the left elbow is bent|the left arm is bent"),
    ("left elbow [deg]", 110, inf, 3, "the left elbow is sharply bent|the left arm is folded"),
    ("left hand height [cm]", 35, inf, 4,
     "the left hand is above the head|the left hand is raised above the head|the left arm is raised above the head"),
    ("left hand height [cm]", 10, 35, 3, "the left hand is at head height"),
    ("left hand height [cm]", -15, 10, 2, "the left hand is at shoulder height"),
    ("left hand height [cm]", -45, -15, .7, "the left hand is at belly height"),
    ("left hand height [cm]", -inf, -45, .7, "the left hand is low|the left arm is hanging down"),
    ("left hand over right [cm]", 20, inf, 1.5, "the left hand is higher than the right hand"),
    ("left hand forward [cm]", 35, inf, 2, "the left hand is in front of the body|the left arm is reaching forward"),
    ("left hand forward [cm]", -inf, -12, 3, "the left hand is behind the body|the left arm is reaching back"),
    ("left hand outward [cm]", 45, inf, 2, "the left arm is out to the side|the left hand is out to the side"),
    ("left hand outward [cm]", -inf, -4, 3, "the left arm is across the body|the left hand is across the body"),
    ("left hand: to hip [cm]", -inf, 18, 5, "the left hand is on the left hip|the left hand is on the hip"),
    ("left hand: to face [cm]", -inf, 22, 5, "the left hand is near the head|the left hand is near the face"),
    ("left hand: to knee [cm]", -inf, 20, 5, "the left hand is near the left knee|the left hand is near the knee"),
    ("left hand: to ground [cm]", -inf, 10, 5, "the left hand is on the ground|the left hand is on the floor"),
    ("hand to hand [cm]", -inf, 20, 4, "the hands are together|the hands are close together"),
    ("hand to hand [cm]", 100, inf, 1.5, "the hands are far apart|the arms are spread"),
    ("left knee [deg]", -inf, 25, .5, "the left knee is straight|the left leg is straight"),
    ("left knee [deg]", 25, 60, .6, "the left knee is slightly bent|the left leg is slightly bent"),
    ("left knee [deg]", 60, 110, 2, "the left knee is bent|the left leg is bent"),
    ("left knee [deg]", 110, inf, 4, "the left knee is sharply bent|the left leg is folded"),
    ("left thigh forward [deg]", 40, 75, 2, "the left thigh is forward|the left leg is forward"),
    ("left thigh forward [deg]", 75, 180, 4, "the left thigh is raised|the left knee is raised"),
    ("left thigh forward [deg]", -180, -15, 3, "the left leg is stretched back|the left leg is behind the body"),
    ("left thigh outward [deg]", 25, inf, 3, "the left leg is out to the side"),
    ("left foot to ground [cm]", 15, inf, 3, "the left foot is off the ground|the left foot is lifted"),
    ("left foot ahead [cm]", 20, inf, 1.5, "the left foot is in front of the right foot"),
    ("foot to foot [cm]", -inf, 16, 1.5, "the feet are together|the feet are close together"),
    ("foot to foot [cm]", 50, inf, 1.5, "the feet are far apart|the feet are wide apart"),
    ("ankles uncrossed by [cm]", -inf, -5, 4, "the legs are crossed|the feet are crossed"),
)


class Statement(NamedTuple):
    """One thing that can be said of a pose; it holds where low <= measure < high."""
    key: str  # its canonical phrase
    measure: str
    low: float
    high: float
    weight: float
    topic: str
    phrases: tuple[str, ...]
    both: tuple[str, ...]  # phrases that say it of left and right at once; may be empty


def _both(phrase: str) -> tuple[str, ...]:
    """'the left foot is lifted' -> ('both feet are lifted',); () where the two sides cannot be said at once."""
    if not phrase.startswith("the left ") or "right" in phrase:
        return ()
    plural = re.sub(r"the left (\w+)|the (hip|knee|side)$", r"the \1\2s", phrase).replace("foots", "feet")
    return (plural.replace("the ", "both ", 1).replace(" is ", " are ", 1),)


def _statements() -> Iterator[Statement]:
    for name, *bounds, words in TABLE:
        both = sum(map(_both, words.split("|")), ())
        for measured, said in dict.fromkeys(((name, words), (swap_sides(name), swap_sides(words)))):
            phrases = tuple(said.split("|"))
            yield Statement(phrases[0], measured, *bounds, measured.split(":")[0], phrases, both)


STATEMENTS = tuple(_statements())
MIRRORED_STATEMENT = tuple([s.key for s in STATEMENTS].index(swap_sides(s.key)) for s in STATEMENTS)
_COLUMN = [MEASURES.index(s.measure) for s in STATEMENTS]
_LOW, _HIGH = torch.tensor([s.low for s in STATEMENTS]), torch.tensor([s.high for s in STATEMENTS])
_WEIGHT = np.array([s.weight for s in STATEMENTS])


def holds(joints: Tensor, global_rotmats: Tensor) -> Tensor:
    """Which statements hold: bool (..., S). joints: (..., 24, 3), metres; global_rotmats: (..., 24, 3, 3)."""
    values = measure(joints, global_rotmats)[..., _COLUMN]
    return (_LOW.to(values) <= values) & (values < _HIGH.to(values))


def pose_holds(rotmats: Tensor) -> Tensor:
    """Which statements hold of a pose (..., 24, 3, 3) on the neutral skeleton: bool (..., S)."""
    return holds(*forward_kinematics(rotmats))


def check(statements: Sequence[int], rotmats: Tensor) -> float:
    """The share of the statements that hold of one pose (24, 3, 3). Raises ValueError when there are none."""
    if len(statements) == 0:
        raise ValueError("there is no statement to check: the text says nothing that can be measured")
    return pose_holds(rotmats)[list(statements)].double().mean().item()


# ---------------------------------------------------------------- words

def describe(row: np.ndarray, rng: np.random.Generator) -> tuple[str, tuple[int, ...]]:
    """One to three sentences about a pose and the statements they make, 2 to 6 of those that hold. row: bool (S,), of
    `holds`. Raises ValueError when fewer than two hold, as of a pose that is not finite."""
    held = np.flatnonzero(row)
    if len(held) < 2:
        raise ValueError("fewer than two statements hold of this pose: check that its joints are finite")
    draws = iter(rng.random(40).tolist())

    def pick(options: Sequence):
        return options[int(next(draws) * len(options))]
    def listed(parts: list[str]) -> str:
        return " and ".join(filter(None, (", ".join(parts[:-1]), "".join(parts[-1:]))))

    def short(phrase: str) -> str:  # "the head is bowed" -> "their head bowed", after "with" or "has"
        phrase = phrase.replace(" are ", " is ", 1).replace(" is ", " ", 1)
        return phrase.replace("the ", pick(("the ", "their ")), 1) if phrase.startswith("the ") else phrase

    # Sorting exponential variables of rate `weight` draws without replacement, the heavy ones first.
    order = held[np.argsort(rng.standard_exponential(len(held)) / _WEIGHT[held])].tolist()
    wanted, made, topics, person, limbs = pick((2, 3, 4, 4, 5, 6)), [], set(), [], []
    for i in order:
        statement, twin = STATEMENTS[i], MIRRORED_STATEMENT[i]
        if statement.topic in topics or len(made) >= wanted:
            continue
        # What holds of both sides is said of both or of one: never of one and then of the other.
        both = statement.both and row[twin] and len(made) < 5 and next(draws) < 0.8
        made += (i, twin) if both else (i,)
        topics |= {statement.topic, STATEMENTS[twin].topic} if row[twin] else {statement.topic}
        phrase = pick(statement.both if both else statement.phrases)
        (person if phrase.startswith("the person") else limbs).append(phrase)
    # "Someone is kneeling with the head bowed", or "Someone has the head bowed", then the rest in clauses of their own.
    count = pick((0, 1, 2, 3)) if person else pick((0, 0, 1, 2, 3))
    aside, rest, sentences = listed([short(phrase) for phrase in limbs[:count]]), limbs[count:], []
    if person or aside:
        actions = listed([phrase.removeprefix("the person is ") for phrase in person])
        words = ["is", actions, "with", aside] if person and aside else ["is", actions] if person else ["has", aside]
        sentences = [" ".join([pick(("the person", "someone", "this person")), *words])]
    while rest:
        count = len(rest) if len(sentences) == 2 else pick((1, 2, 2, 3))
        sentences.append(" while ".join(rest[:2]) if count == 2 and next(draws) < 0.3 else listed(rest[:count]))
        rest = rest[count:]
    return " ".join(sentence[0].upper() + sentence[1:] + "." for sentence in sentences), tuple(made)


def _plain(text: str) -> str:
    """Lower case without the small words, so that 'right hand above head' is read like the whole clause."""
    small = "the|a|an|is|are|both|their|his|her|person|they|someone|this|to"
    return " ".join(re.findall(rf"\b(?!(?:{small})\b)[a-z]+|[.,;:!?]", text.lower()))


_READING = {_plain(phrase): (i,) for i, s in enumerate(STATEMENTS) for phrase in s.phrases}
_READING |= {_plain(phrase): (MIRRORED_STATEMENT[i], i) for i, s in enumerate(STATEMENTS) for phrase in s.both}
_PATTERN = re.compile(rf"\b(?:{'|'.join(sorted(_READING, key=len, reverse=True))})\b")


def parse(text: str) -> tuple[int, ...]:
    """The statements that a text makes, in its order, each once; () where it makes none. The longest phrase wins."""
    return tuple(dict.fromkeys(i for phrase in _PATTERN.findall(_plain(text)) for i in _READING[phrase]))


# ---------------------------------------------------------------- questions

# Such as a small picture can answer, and no one answer fits most of the time. A question; the topic whose statements
# answer it, in their canonical phrase, or one phrase for a "yes"; the answer where none holds, "" where one always
# does. A row about the left makes one about the right too.
QUESTIONS = (
    ("Is the person standing, sitting, squatting, kneeling or lying?", "posture", "The person is doing none of these."),
    ("Is the person upright or leaning?", "trunk forward [deg]", "The person is neither upright nor leaning."),
    ("How bent is the left elbow?", "left elbow [deg]", ""),
    ("How high is the left hand?", "left hand height [cm]", ""),
    ("Is the left hand in front of the body?", "the left hand is in front of the body", "No, it is not in front."),
    ("Which hand is higher?", "left hand over right [cm]", "The hands are at about the same height."),
    ("How bent is the left knee?", "left knee [deg]", ""),
    ("Which foot is in front?", "left foot ahead [cm]", "Neither foot is in front."),
    ("How far apart are the feet?", "foot to foot [cm]", "The feet are a step apart."),
)


def _answers() -> list[tuple[str, dict[int, str], str]]:
    """(question, {statement: answer where it holds}, answer where none does) for each question of the table."""
    made = {}
    for row in QUESTIONS:
        for question, about, otherwise in dict.fromkeys((row, tuple(map(swap_sides, row)))):
            answers, _ = made.setdefault(question, ({}, otherwise))  # one question may ask about both sides
            answers |= {i: s.key.capitalize() + "." for i, s in enumerate(STATEMENTS) if s.topic == about}
            answers |= {i: f"Yes, {s.key}." for i, s in enumerate(STATEMENTS) if s.key == about}
    return [(question, *answers) for question, answers in made.items()]


_ANSWERS = _answers()


def questions(row: np.ndarray, rng: np.random.Generator) -> tuple[str, str]:
    """A random question about a pose and its answer, which depends on nothing else. row: bool (S,), of `holds`."""
    question, answers, otherwise = _ANSWERS[rng.integers(len(_ANSWERS))]
    return question, next((answer for i, answer in answers.items() if row[i]), otherwise)
