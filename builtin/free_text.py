"""What a user types, made a prompt of the kind that the built-in world trains on.

    "arms spread" -> "Give the SMPL pose of this person: The person has the arms spread."
    "kneeling, left hand low" -> "Give the SMPL pose of this person: The person is kneeling. The left hand is low."
Sent as a fragment, many would be answered without a pose.
Read next: ../predict.py, which sends these prompts.
"""

import re

import numpy as np

from captions import READING, STATEMENTS, plain
from data import INSTRUCTIONS

_SUBJECTS = "the a an this that these someone somebody person both each he she they his her their it there".split()
_STATES = {p.split()[3] for s in STATEMENTS for p in s.phrases if p.startswith("the person is ")}  # kneeling


def make_prompt(words: str, image: np.ndarray | None) -> str:
    """What is asked of the policy. Words about an image, and words that ask for an answer, stay as they are; others are
    made a sentence in an instruction. ValueError where there is nothing to ask."""
    words = " ".join(words.split())
    if not words and image is None:
        raise ValueError('describe a pose, as in python predict.py "kneeling on the left knee", or give --image FILE')
    if image is not None or "?" in words or "smpl pose" in words.lower():
        return words or INSTRUCTIONS["image2pose"][0]
    parts = [READING.get(plain(part)) for part in re.split("[,;]", words)]
    if len(parts) > 1 and all(parts):  # each fragment says a statement and nothing else, no "not" for instance
        words = " ".join(f"{STATEMENTS[i].key.capitalize()}." for i in dict.fromkeys(sum(parts, ())))
    first = words.split()[0].strip(",.!").lower()
    if first not in _SUBJECTS:
        is_state = first in _STATES or first.endswith("ing")
        words = ("The person is " if is_state else "The person has the ") + words[0].lower() + words[1:]
    return INSTRUCTIONS["text2pose"][0].format(words[0].upper() + words[1:] + "." * (words[-1] not in ".!"))
