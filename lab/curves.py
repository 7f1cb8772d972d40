"""Curves of a run: rewards, distances, spread and evaluations over its steps. Colours and fonts that plots share.

`python -m lab.pictures` draws them of a finished run, train_rft.py at its end."""

import warnings
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rewards import REWARDS

# The colour-blind, too, tell them apart (Okabe & Ito).
COLORS = BLUE, ORANGE, GREEN, *_ = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#444444"


def plot_smoothed(axis: Axes, points: Sequence[tuple[int, float]], width: int, **style) -> None:
    """Points (step, value), each value the mean of the last `width`."""
    x, y = np.array(points, dtype=float).T
    width = min(width, len(y))
    axis.plot(x[width - 1:], np.convolve(y, np.ones(width) / width, "valid"), **style)


def finish(figure: Figure, path: Path) -> None:
    """Legible fonts, a light grid, and write the figure."""
    for axis in figure.axes:
        axis.title.set_fontsize(14)
        axis.xaxis.label.set_fontsize(13)
        axis.tick_params(labelsize=12)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=80)


def write_picture(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure that holds words of a user or a policy, which may be any: Matplotlib need not warn that a letter
    which its font lacks becomes a box, or that some are not joined."""
    with warnings.catch_warnings():
        for message in ("Glyph .* missing from font", "Matplotlib currently does not support"):
            warnings.filterwarnings("ignore", message)
        figure.savefig(path, dpi=dpi)


def curves(path: Path, rows: list[dict]) -> None:
    """Rewards, distances, spread and evaluations over the steps of a run, from the rows of its log."""
    panels = {
        "rewards of the poses": [name for name, reward in REWARDS.items() if reward.of == "poses"],
        "rewards of the words": [name for name, reward in REWARDS.items() if reward.of == "words"],
        "nothing to compare (of words: 1 if G = 1)": ("text_flat_groups", "pose_flat_groups"),
        "KL to the SFT policy (nats a pose)": ("pose_kl",), "text KL (nats a token)": ("text_kl",),
        "sigma (of 6D numbers)": ("sigma",),
        "validation: share held, judge's R@5": ("val_statements_sampled", "val_judge_r5"),
        "validation: MPJPE (mm)": ("val_mpjpe_mean", "val_mpjpe_sampled"),
        "validation: diversity (mm)": ("val_diversity_mm",)}
    figure = Figure(figsize=(14, 10), layout="constrained")
    for axis, (title, names) in zip(figure.subplots(3, 3).flat, panels.items()):
        for name, color in zip(names, cycle(COLORS)):
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points and name.startswith("val_"):
                plot_smoothed(axis, points, 1, color=color, marker="o", label=name.removeprefix("val_"))
            elif points:
                plot_smoothed(axis, points, 1, color=color, alpha=0.25)
                plot_smoothed(axis, points, 15, color=color, label=name)
        axis.set(title=title, xlabel="HyGRPO step")
        if axis.lines:
            axis.legend(fontsize=12, edgecolor="none", framealpha=0.6, ncols=1 + (len(names) > 3))
    finish(figure, path)
