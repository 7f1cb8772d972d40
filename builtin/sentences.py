"""Sentences about a pose, in the place of captions that people wrote: some of the statements that hold, worded anew.

    "Someone is kneeling with the head bowed. The left knee is bent while both hands are low."
Which statements are said, in which of their phrases and how they are joined is drawn at random.
Read next: questions.py, which asks about a pose.
"""

from collections.abc import Sequence

import numpy as np

from captions import MIRRORED_STATEMENT, STATEMENTS

_WEIGHT = np.array([s.weight for s in STATEMENTS])


def describe(row: np.ndarray, rng: np.random.Generator) -> tuple[str, tuple[int, ...]]:
    """One to three sentences about a pose and the statements they make, 2 to 6 of those that hold. row: bool (S,), of
    `holds`. Raises ValueError when fewer than two hold, as of a pose that is not finite."""
    true = np.flatnonzero(row)
    if len(true) < 2:
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
    order = true[np.argsort(rng.standard_exponential(len(true)) / _WEIGHT[true])].tolist()
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
