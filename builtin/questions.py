"""Questions about a pose whose answer is one statement: "Which hand is higher?", "The left hand is higher ...".

    answer(question, pose) = the statement of the question's topic that holds of the pose, else a fixed sentence
So an answer can be checked word for word, which the reward `correct` does.
Read next: poses.py, where the poses come from.
"""

import numpy as np

from captions import STATEMENTS, swap_sides

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


def draw_question(row: np.ndarray, rng: np.random.Generator) -> tuple[str, str]:
    """A random question about a pose and its answer, which depends on nothing else. row: bool (S,), of `holds`, or
    (T, S) where one of T is true and nobody knows which: of the questions that have one answer in all of them."""
    while True:
        question, answers, otherwise = _ANSWERS[rng.integers(len(_ANSWERS))]
        told = {next((answer for i, answer in answers.items() if way[i]), otherwise) for way in np.atleast_2d(row)}
        if len(told) == 1:
            return question, told.pop()
