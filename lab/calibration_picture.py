"""The picture of `python -m real.protocols --protocol calibration --plot FILE`: does sigma tell the truth?

Read next: ../real/protocols.py, which measures what is drawn here."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lab.curves import BLUE, finish


def draw(path: Path, pit: np.ndarray) -> None:
    """A histogram of PIT values (flat if all is well), and how many truths lie in central intervals of each share."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(pit.flatten(), 20, range=(0, 1), density=True, color=BLUE)
    left.axhline(1, color="black", linestyle="--")
    left.set(xlabel="PIT: share of the Gaussian below the truth")
    left.set_ylabel("density", fontsize=13)
    shares = np.linspace(0, 1, 21)
    right.plot(shares, [(np.abs(pit - 0.5) <= share / 2).mean() for share in shares], "o-", color=BLUE)
    right.plot([0, 1], [0, 1], "--", color="black")
    right.set(xlabel="central interval, share of the Gaussian")
    right.set_ylabel("share of truths inside", fontsize=13)
    finish(figure, path)
