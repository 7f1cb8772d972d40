"""TODO header."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from data import Example
from model import Prompt, Rollout, Scores

SHOW_EVERY = 10  # steps between those of which samples.jsonl shows something
SHOWN = ("statements", "semantic", "joint", "correct", "sigma", "pose_kl")  # on the progress bar


def samples(step: int, examples: Sequence[Example], prompt: Prompt, rollout: Rollout, scored: tuple) -> list[dict]:
    """The first two examples, each with its G sampled answers and their rewards (of poses the mean over K)."""
    rows, scored = [], scored[0] | scored[1]
    for i, example in enumerate(examples[:2]):
        answers = []
        for g, answer in enumerate(rollout.answers[i]):
            told = {name: r[i, g].mean().item() for name, r in scored.items() if r.dim() == 2 or rollout.has_pose[i, g]}
            answers.append({"answer": answer} | {name: round(r, 4) for name, r in told.items() if r == r})
        rows.append({"step": step, "task": example.task, "prompt": example.prompt, "truth": example.answer,
                     "answers": answers})
    return rows


def numbers(tensors: dict[str, Tensor], new: Scores, rollout: Rollout) -> dict[str, float]:
    """The mean of each tensor; left out is what the step's task does not have (NaN, or of poses when none is given)."""
    given = lambda tensor: tensor[rollout.has_pose] if tensor.dim() == 3 else tensor  # rewards of poses are (B, G, K)
    row = {name: given(tensor).nanmean().item() for name, tensor in tensors.items()}
    if rollout.has_pose.any():
        row["sigma"] = new.pose.stddev[rollout.has_pose].mean().item()
    else:
        row = {name: value for name, value in row.items() if not name.startswith(("pose_", "loss_pose"))}
    return {name: value for name, value in row.items() if value == value}


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Each number's mean over the rows that have it: the parts of a batch (those of this process)."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
