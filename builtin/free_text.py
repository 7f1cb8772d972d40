"""What a user types, made a prompt of the kind that the built-in world trains on.

    "arms spread" -> "Give the SMPL pose of this person: The arms are spread."
    "sit down, don't bend your left arm" -> "Give the SMPL pose of this person: The person is sitting. The left arm is
                                            not bent."
    "juggle three balls" -> "A person is described like this: Juggle three balls. Answer with the SMPL pose."
Sent as a fragment, many would be answered without a pose. What cannot be made a sentence is quoted as it is.
Read next: ../predict.py, which sends these prompts.
"""

import os
import re

import numpy as np

from builtin.phrasing import plain, spelled_out
from captions import STATEMENTS, parse
from data import INSTRUCTIONS

_OWN = {"the", "both", "someone", "this"}  # with which the built-in sentences begin
_SUBJECTS = _OWN | set("a an that these somebody person each he she they his her their it there".split())
_PART = re.compile(r"(?:(?:left|right) )?(?:upper body|hand|arm|elbow|leg|knee|thigh|foot|feet|head|back)s?\b")
_STATES = {p.split()[3] for s in STATEMENTS for p in s.phrases if p.startswith("the person is ")}  # kneeling
_SENTENCE = {plain(p): p for s in reversed(STATEMENTS) for p in (*s.both[::-1], *s.phrases[::-1])}  # of what it says
_VERBS = {"is", "are", "has", "have"}
_NOT = r"\b(?:(?:do|does|did) )?not\b"


def _sentence(part: str) -> str:
    """The sentence of a part that says one thing of the table, or denies one, and no more; "" for any other part."""
    part, denials = re.subn(_NOT, "", spelled_out(part))
    phrase = _SENTENCE.get(plain(part), "") if denials < 2 else ""
    phrase = re.sub(r" (is|are) ", r" \1 not ", phrase, count=1) if denials else phrase
    return phrase and phrase[0].upper() + phrase[1:] + "."


def make_prompt(words: str, image: np.ndarray | None) -> str:
    """What is asked of the policy. Words about an image, and words that ask for an answer, stay as they are; others are
    made sentences in an instruction, those of the table where all that is said is in it. ValueError where there is
    nothing to ask."""
    words = " ".join(words.split())
    if os.path.isfile(words):
        raise ValueError(f"{words} is a file: a photo is given as --image {words}")
    if not words and image is None:
        raise ValueError('describe a pose, as in python predict.py "kneeling on the left knee", or give --image FILE')
    if image is not None or "?" in words or "smpl pose" in words.lower():
        return words or INSTRUCTIONS["image2pose"][0]
    first, _, then = re.sub(r"['’]\w+", "", words.lower()).partition(" ")
    has_verb = bool(_VERBS & {*spelled_out(words).split()})
    parts = [part for part in re.split(r"[,;.!]|\b(?:and|but|then|while|with)\b", words, flags=re.I) if part.strip()]
    read = " ".join(dict.fromkeys(map(_sentence, parts)))
    written = first in _OWN and has_verb and not re.search("[,;]", words)  # as the built-in world writes
    if not written and parts and all(map(_sentence, parts)) and parse(read) == parse(words):
        return INSTRUCTIONS["text2pose"][0].format(read)
    doing = then.partition(" ")[0] if first == "not" else first
    doing = doing.strip(",.!")
    if doing in _STATES or doing.endswith("ing") and re.search("[aeiouy]", doing[:-3]):  # waving, but not "bring"
        words, first = "The person is " + words[0].lower() + words[1:], "the"
    elif _PART.match(words.lower()):
        words, first = ("The " if has_verb else "The person has the ") + words[0].lower() + words[1:], "the"
    is_sentence = first in _SUBJECTS and (has_verb or words.startswith("The person "))
    sentence = words[0].upper() + words[1:] + "." * (words[-1] not in ".!")
    return INSTRUCTIONS["text2pose"][0 if is_sentence else 2].format(sentence)
