"""The answers to the exercises on toy.py (docs/exercises.md): each flag with five seeds.

    python -m lab.exercises [--json assets/exercises.json]
Read next: toy.py, whose `train` is called with the flags of each exercise.
"""

import json
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import toy
from engine.checkpoint import atomic_write
from engine.runtime import run
from engine.settings import Count, OutputFile, read_settings

FLAGS = {"": {}, "--beta 0": {"beta": 0.0}, "--poses 1": {"poses": 1},
         "--epochs 8 --ratio joint": {"epochs": 8, "ratio": "joint"}, "--no_words": {"no_words": True},
         "--no_poses": {"no_poses": True}}
DEFAULTS = {"poses": 16, "beta": 0.1, "epochs": 1, "ratio": "mean", "no_words": False, "no_poses": False}
EITHER = "likelier word"  # how often, where either side is asked for, the policy says the word that it says more often
SHOWN = ("words fit", "distance", "entropy", "sigma", "KL words", "KL points", "clipped", EITHER)


def measure(flags: dict, seed: int, steps: int) -> dict[str, float]:
    """Numbers of one run: means over its last tenth, but `clipped` over all steps."""
    with redirect_stdout(StringIO()):
        _, policy, rows = toy.train(SimpleNamespace(**DEFAULTS | {"steps": steps, "seed": seed} | flags))
    mean = lambda name, rows: torch.stack([row[name].detach() for row in rows]).mean().item()
    numbers = {name: mean(name, rows if name == "clipped" else rows[-max(1, steps // 10):]) for name in rows[0]}
    either = toy.PROMPTS[toy.PROMPTS // 2 == 2]
    odds = policy.log_prob(either, torch.arange(toy.W).expand(len(either), toy.W)[..., None]).log_prob.exp()
    return numbers | {EITHER: odds.max(1).values.mean().item()}


def table(arms: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: of each arm every number, mean ± standard deviation over seeds."""
    lines = [f"| | {' | '.join(SHOWN)} |", "| --- |" + " --- |" * len(SHOWN)]
    for flags, runs in arms.items():
        cells = [(np.mean(x), np.std(x, ddof=1)) for name in SHOWN for x in [[numbers[name] for numbers in runs]]]
        lines.append(f"| `python toy.py{' ' * bool(flags)}{flags}` | "
                     + " | ".join(f"{mean:.2f} ± {spread:.2f}" for mean, spread in cells) + " |")
    return "\n".join(lines)


@dataclass
class ExercisesConfig:
    steps: Count = field(default=200, metadata={"help": "steps of HyGRPO, as toy.py's --steps"})
    json: OutputFile | None = field(default=None, metadata={"help": "file to write the numbers to"})


def main() -> None:
    config, = read_settings(__doc__, ExercisesConfig)
    arms = {name: [measure(flags, seed, config.steps) for seed in range(5)] for name, flags in FLAGS.items()}
    print(table(arms))
    if config.json:
        atomic_write(Path(config.json), json.dumps(arms, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
