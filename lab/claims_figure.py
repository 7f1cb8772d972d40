"""The picture of `python -m lab.experiments --figure FILE`, from the results of its arms.

Read next: experiments.py, which runs them."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lab.claims import value
from lab.curves import BLUE, GREEN, ORANGE, finish, plot_smoothed
from train_rft import RFTConfig


def draw(path: Path, results: dict[str, list[dict]]) -> None:
    """Rewards over steps with and without the pose's half of the loss; the trade-off over KL; what K and G bring."""
    figure = Figure(figsize=(19, 4.8), layout="constrained")
    axes = figure.subplots(1, 4)
    for axis, name, title in zip(axes, ("statements", "joint"), ("reward: statements held", "reward: joints (1/m)")):
        for arm, color in (("hygrpo", BLUE), ("GRPO on words", ORANGE)):
            for seed, result in enumerate(results.get(arm, [])):
                if result["curves"][name]:  # a very short run may not have drawn this task
                    plot_smoothed(axis, result["curves"][name], 8, color=color, alpha=0.8, label=None if seed else arm)
        axis.set(title=title, xlabel="HyGRPO step")
        if axis.lines:
            axis.legend(frameon=False, fontsize=12)
    mean = lambda arm, measure: np.mean([value(r, measure) for r in results[arm]])
    betas = {f"KL {beta}": beta for beta in (0.0, 0.02, 0.2, 0.6)} | {"hygrpo": RFTConfig.beta_pose}
    arms = sorted((arm for arm in betas if arm in results), key=betas.get)
    x, measures = [mean(arm, "diversity, mm") for arm in arms], ("statements", "judge R@5", "reward model's R@5")
    for measure, color in zip(measures, (BLUE, ORANGE, GREEN)):
        axes[2].plot(x, [mean(arm, measure) for arm in arms], "o-", color=color, label=measure)
    note = {"textcoords": "offset points", "fontsize": 12}
    for arm, place in zip(arms, x):
        axes[2].annotate(f"{betas[arm]:g}", (place, max(mean(arm, measure) for measure in measures)), (0, 9),
                         ha="center", **note)
    axes[2].set(title="KL weight: quality against diversity", xlabel="diversity of samples (mm)")
    axes[2].legend(frameon=False, loc="lower left", fontsize=12)
    held = {1: "K = 1", 8: "K = 8", 64: "G = 3"}
    Ks = [K for K, arm in held.items() if arm in results]
    axes[3].semilogx(Ks, [mean(held[K], "statements") for K in Ks], "o-", base=2, color=BLUE)
    for arm in ("hygrpo", "G = 2", "G = 3", "G = 6"):
        if arm in results:
            axes[3].plot(64, mean(arm, "statements"), "o", color=BLUE)
            axes[3].annotate({"hygrpo": "G = 1"}.get(arm, arm), (64, mean(arm, "statements")), (8, -4), **note)
    axes[3].set(title="statements held, line: G = 3", xlabel="poses an answer (K)", xticks=Ks, xticklabels=Ks)
    axes[2].margins(y=0.1)
    axes[3].margins(0.2)
    finish(figure, path)
