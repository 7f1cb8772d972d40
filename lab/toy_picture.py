"""The picture that toy.py leaves: what the policy answers to four targets before and after, and its curves.

Read next: ../hygrpo.py, the functions that taught it."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#777777")  # told apart by the colour-blind too (Okabe & Ito)
RIGHT, WRONG = "#00684a", "#b3400a"


def draw(path: str, vocabulary: Sequence[str], runs: dict[str, tuple]) -> None:
    """runs: name -> the policy before and after, and a row a step with `words`, the share that is right, and
    `distance`. The answers drawn are those of the first."""
    targets = torch.tensor([[-0.7, 0.6], [0.75, 0.55], [-0.55, -0.65], [0.6, -0.7]])
    before, after, rows = next(iter(runs.values()))
    figure = Figure(figsize=(18, 5.9), layout="constrained")
    figure.get_layout_engine().set(rect=(0.005, 0.01, 0.99, 0.97))
    *planes, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.05])
    for axis, policy, title in zip(planes, (before, after), ("before", f"after {len(rows)} steps")):
        answers = policy.sample(targets, 1, 60)  # one answer to each, `tokens` (4, 1, 2), `pose` (4, 1, 60, 2)
        axis.axhline(0, color="#cccccc", lw=1)
        axis.axvline(0, color="#cccccc", lw=1)
        for i, color in enumerate(COLORS):
            x, y = targets[i].tolist()
            axis.scatter(*answers.pose[i, 0].T.numpy(), s=26, color=color, alpha=0.45, linewidths=0)
            axis.plot(x, y, "*", color=color, markersize=24, markeredgecolor="black")
            truth = ("right" if x > 0 else "left", "up" if y > 0 else "down")
            said = [vocabulary[token] for token in answers.tokens[i, 0].tolist()]
            for place, (word, true) in enumerate(zip(said, truth)):
                axis.annotate(word, (x, y), (-3 if place == 0 else 3, 26), textcoords="offset points", fontsize=15,
                              fontweight="bold", ha="left" if place else "right",
                              color=RIGHT if word == true else WRONG)
        axis.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
        axis.set_title(f"{title}: answers to four targets", fontsize=14)
    right.axis("off")
    inner = right.get_subplotspec().subgridspec(2, 1, hspace=0.08)
    for row, (name, title) in enumerate((("words", "share of words that are right"),
                                         ("distance", "distance of points to the target (log scale)"))):
        axis = figure.add_subplot(inner[row])
        for (label, (_, _, rows)), color, style in zip(runs.items(), COLORS, ("-", "--", "-.", ":")):
            width = min(5, len(rows))
            values = np.convolve([r[name] for r in rows], np.ones(width) / width, "valid")
            axis.plot(np.arange(width, len(rows) + 1), values, style, color=color, lw=2.6, label=label)
        axis.set_title(title, fontsize=14)
        axis.grid(alpha=0.3)
        if name == "distance":
            axis.set_yscale("log")
            axis.set_xlabel("step", fontsize=13)
            axis.legend(frameon=False, fontsize=12, loc="center", bbox_to_anchor=(0.65, 0.6), ncols=2)
    figure.savefig(path, dpi=80)
