"""The data: how poses with pictures become examples with fresh words.

    example = (prompt, answer, image or none, pose),   one of four tasks: text2pose, image2pose, image2text, vqa
A `Split` holds poses, the statements that are true of them and rendered pictures (builtin/splits.py makes it);
`make_example` turns one of its rows into an `Example`, the one record of the project. real/formats.py makes examples of
the field's data sets; after this file nothing knows where an example came from.
Read next: train_sft.py, which teaches a policy to give the answers of these examples.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import captions
from builtin.questions import draw_question
from builtin.sentences import describe


# ---------------------------------------------------------------- poses with pictures

@dataclass
class Split:
    """Poses and what is known of them. The picture shows the pose under a heading and a camera of its own."""

    rotmats: Tensor  # (N, 24, 3, 3), heading removed
    holds: np.ndarray  # (N, S) bool, the statements true of rotmats, and so what words may say of the picture too
    image_rotmats: Tensor  # (N, 24, 3, 3), in the camera's frame, which may lean: only the root differs
    betas: Tensor  # (N, 10)
    images: np.ndarray | None  # (N, size, size, 3) uint8

    def base_rates(self) -> Tensor:
        """In what share of the pictures each statement holds: (S,), all that one can know without looking."""
        return torch.from_numpy(self.holds).double().mean(0)


# ---------------------------------------------------------------- examples

TASKS = ("text2pose", "image2pose", "image2text", "vqa")
INSTRUCTIONS = {
    "text2pose": ("Give the SMPL pose of this person: {}", "{} What is the SMPL pose of this person?",
                  "A person is described like this: {} Answer with the SMPL pose.", "Make the SMPL pose for: {}"),
    "image2pose": ("What is the SMPL pose of this person?", "Give the SMPL pose of the person in the image.",
                   "Look at the person and answer with the SMPL pose.",
                   "How is this person posed? Give the SMPL pose."),
    "image2text": ("Describe the pose of this person, then give the SMPL pose.",
                   "What is this person doing? Describe it and give the SMPL pose.",
                   "Put the pose of the person in the image into words, then give the SMPL pose."),
}


@dataclass
class Example:
    """One prompt with its true answer. `captions.POSE_TOKEN` in the answer stands for `rotmats`."""

    task: str  # one of TASKS
    prompt: str
    answer: str
    image: np.ndarray | None  # (H, W, 3) uint8
    rotmats: Tensor | None  # (24, 3, 3), in the camera's frame where there is an image
    betas: Tensor  # (10,)
    caption: str  # the description in prompt or answer, "" where there is none
    statements: tuple[int, ...]  # what the caption says of the pose, as captions.parse gives it
    holds: np.ndarray | None = None  # (S,) bool, which statements hold, whichever way the camera looks


def make_example(split: Split, task: str, index: int, rng: np.random.Generator) -> Example:
    """The pose `index` of the split as an example of `task`, with words drawn afresh."""
    if task not in TASKS:
        raise ValueError(f"no task {task!r}; choose from {', '.join(TASKS)}")
    if task != "text2pose" and split.images is None:
        raise ValueError(f"the task {task} needs pictures, and this split was made without")
    if task == "text2pose":
        image, rotmats = None, split.rotmats[index]
    else:
        image, rotmats = split.images[index], split.image_rotmats[index]
    holds, caption, statements = split.holds[index], "", ()
    if task == "vqa":
        prompt, answer = draw_question(holds, rng)
    else:
        prompt, answer = rng.choice(INSTRUCTIONS[task]), captions.POSE_ANSWER
        if task != "image2pose":
            caption, statements = describe(holds, rng)
            prompt = prompt.format(caption)
            answer = f"{caption} {answer}" if task == "image2text" else answer
    return Example(task, str(prompt), answer, image, rotmats, split.betas[index], caption, statements, holds)


def draw_batch(split: Split, tasks: dict[str, float], batch_size: int, rng: np.random.Generator) -> list[Example]:
    """Examples of random poses, all of one task, drawn with the given odds, e.g. {"text2pose": 2, "vqa": 1}.

    A batch is padded to its longest prompt and answer, and those of one task are of like length. Of real data a
    mixture.Mixture takes the place of the split.
    """
    if not isinstance(split, Split):
        return split.draw(tasks, batch_size, rng)
    odds = np.array(list(tasks.values())) / sum(tasks.values())
    task = str(rng.choice(list(tasks), p=odds))
    return [make_example(split, task, int(i), rng) for i in rng.integers(len(split.rotmats), size=batch_size)]


