"""A pose in words: statements that can be measured, their sentences, and the checker.

    statement s holds of a pose  <=>  low_s <= m_s(pose) < high_s
Every statement is one row of a table: a measurement m_s of the posed skeleton, two thresholds, some phrasings, as
    left knee [deg]   60 <= m < 110   "the left knee is bent", "the left leg is bent"
So a sentence is written from a pose (builtin/sentences.py), read back into statements (`parse`) and checked against
another pose (`pose_holds`) by one and the same table, builtin/statement_table.py; builtin/posecodes.py measures.
Nothing depends on the heading; gravity counts where everyday words mean it, and the ground is the lowest joint. What a
text denies, found by builtin/phrasing.py, is S + s: a statement that must not hold (builtin/denials.py).
Read next: body.py, the skeleton that is measured.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from body import forward_kinematics
from builtin.phrasing import clauses, plain, swap_sides
from builtin.posecodes import measure, named_measurements
from builtin.statement_table import TABLE

POSE_TOKEN = "<POSE>"
POSE_ANSWER = f"The SMPL pose of this person is {POSE_TOKEN}."

_AT_REST = named_measurements(*forward_kinematics(torch.eye(3).expand(24, 3, 3)))
MEASURES = tuple(side for name in _AT_REST for side in dict.fromkeys((name, swap_sides(name))))


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
        for measure_name, text in dict.fromkeys(((name, words), (swap_sides(name), swap_sides(words)))):
            phrases = tuple(text.split("|"))
            yield Statement(phrases[0], measure_name, *bounds, measure_name.split(":")[0], phrases, both)


STATEMENTS = tuple(_statements())
S = len(STATEMENTS)
MIRRORED_STATEMENT = tuple([s.key for s in STATEMENTS].index(swap_sides(s.key)) for s in STATEMENTS)
_COLUMN = [MEASURES.index(s.measure) for s in STATEMENTS]
_LOW, _HIGH = torch.tensor([s.low for s in STATEMENTS]), torch.tensor([s.high for s in STATEMENTS])


def holds(joints: Tensor, global_rotmats: Tensor) -> Tensor:
    """Which statements hold: bool (..., S). joints: (..., 24, 3), metres; global_rotmats: (..., 24, 3, 3)."""
    values = measure(joints, global_rotmats)[..., _COLUMN]
    return (_LOW.to(values) <= values) & (values < _HIGH.to(values))


def pose_holds(rotmats: Tensor) -> Tensor:
    """Which statements hold of a pose (..., 24, 3, 3) on the neutral skeleton: bool (..., S)."""
    return holds(*forward_kinematics(rotmats))


# ---------------------------------------------------------------- words

READING = {plain(phrase): (i,) for i, s in enumerate(STATEMENTS) for phrase in s.phrases}
READING |= {plain(phrase): (MIRRORED_STATEMENT[i], i) for i, s in enumerate(STATEMENTS) for phrase in s.both}
_PATTERN = re.compile(rf"\b(?:{'|'.join(sorted(READING, key=len, reverse=True))})\b")


def parse(text: str) -> tuple[int, ...]:
    """What a text says, in its order, each once: i for statement i, S + i where it denies that one; () where it says
    nothing that can be measured. The longest phrase wins."""
    def read(words: str) -> list[int]:
        return [i for phrase in _PATTERN.findall(plain(words)) for i in READING[phrase]]

    made = []
    for before, denied in clauses(text):
        asserted = read(before)
        made += asserted + [S + i for i in (read(f"{before} {denied}") if denied else ()) if i not in asserted]
    return tuple(dict.fromkeys(made))
