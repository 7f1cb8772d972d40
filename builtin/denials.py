"""What must not hold: the denials of statements, which stand behind them wherever statements are counted.

    parse("The person is not kneeling.") = (S + i,),  signed(holds)[S + i] = 1 if neither i nor a kind of it holds
Read next: phrasing.py, which finds what a text denies.
"""

import re

import torch
from torch import Tensor

from builtin.phrasing import plain
from captions import STATEMENTS, S


def said(i: int) -> str:
    """The canonical phrase of what `parse` gives, of a denial "the person is not kneeling"."""
    return STATEMENTS[i].key if i < S else re.sub(r" (is|are) ", r" \1 not ", STATEMENTS[i - S].key, count=1)


# KINDS[j, i]: is j a kind of i? "Sharply bent" is one of "bent", by its words.
_WORDS = [[set(plain(phrase).split()) for phrase in s.phrases] for s in STATEMENTS]
KINDS = torch.tensor([[float(s.topic == t.topic and any(kind >= words for kind in kinds for words in general))
                       for t, general in zip(STATEMENTS, _WORDS)] for s, kinds in zip(STATEMENTS, _WORDS)])  # (S, S)


def signed(holds: Tensor) -> Tensor:
    """Whether each statement holds, 0 or 1, or how often, (..., S), then the same of its denial: (..., 2 S). With a
    statement each kind of it is denied, of which one can hold: who does not kneel, kneels on neither knee."""
    return torch.cat([holds, 1 - holds @ KINDS.to(holds)], -1)
