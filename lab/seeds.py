"""Several seeds of the main job in one table: mean and spread of SFT, of SFT continued for as long, and of RFT.

    python train_rft.py --seed 0 --out runs_0          # and 1, and 2
    python -m lab.continued_sft --run runs_0           # of each
    python -m lab.seeds --runs runs_0 runs_1 runs_2 --json assets/seeds.json
Beside them stand the floors (lab/floors.py). Below the table: in how many seeds RFT is better than SFT continued.
Read next: figures.py, which puts the table into the pages; experiments.py, which tries many settings.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engine.checkpoint import atomic_write
from engine.runtime import run
from engine.settings import OutputFile, read_settings
from lab.table import ROWS, read_metrics

COLUMNS = {"blind": "floors", "SFT": "sft", "SFT continued": "continued", "RFT": "rft"}  # as in metrics.json
COMPARED = {"statements held, sampled pose": 1, "R@5 under the judge": 1, "MPJPE of sampled poses, mm": -1}


@dataclass
class SeedsConfig:
    runs: list[str] = field(metadata={"help": "folders of finished runs, each of a seed of its own"})
    json: OutputFile | None = field(default=None, metadata={"help": "file to write the numbers to"})


def read(folder: Path) -> dict:
    """What a run measured, its control too. FileNotFoundError, in one sentence, for what is not there."""
    results = {}
    for name, command in (("metrics", "train_rft.py --out"), ("continued", "-m lab.continued_sft --run")):
        if not (folder / f"{name}.json").is_file():
            raise FileNotFoundError(f"{folder} holds no {name}.json; python {command} {folder} makes it")
        try:
            results |= read_metrics(folder) if name == "metrics" else json.loads((folder / f"{name}.json").read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{folder}/{name}.json cannot be read: python {command} {folder} makes it anew") from error
    return results


def collect(results: list[dict]) -> dict[str, dict[str, list[float | None]]]:
    """Row -> column -> a number a seed, None where a floor has no such row."""
    def value(result: dict, keys: tuple) -> float | None:
        return result[keys[0]] if len(keys) == 1 else result[keys[0]].get(keys[1])
    return {title: {column: [value(result[name], keys) for result in results] for column, name in COLUMNS.items()}
            for title, keys in ROWS}


def table(rows: dict[str, dict[str, list[float | None]]]) -> str:
    """Mean ± standard deviation over seeds (with n - 1), as Markdown."""
    lines = [f"| | {' | '.join(COLUMNS)} |", "| --- |" + " --- |" * len(COLUMNS)]
    for title, columns in rows.items():
        cells, largest = [], max(x for values in columns.values() for x in values if x is not None)
        for values in columns.values():
            digits = 1 if largest > 2 else 3
            spread = np.std(values, ddof=1) if len(values) > 1 and values[0] is not None else 0.0
            cells.append("-" if values[0] is None else f"{np.mean(values):.{digits}f} ± {spread:.{digits}f}")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def better_in(rows: dict[str, dict[str, list[float]]]) -> dict[str, int]:
    """In how many seeds RFT is better than SFT continued."""
    found = {}
    for title, columns in rows.items():
        for name, sign in COMPARED.items():
            if title.endswith(name):
                found[name] = sum(sign * (a - b) > 0 for a, b in zip(columns["RFT"], columns["SFT continued"]))
    return found


def report(folders: list[str]) -> str:
    """Print the table of runs; its numbers as JSON. ValueError where two runs are of one seed."""
    results = [read(Path(folder)) for folder in folders]
    rows, seeds = collect(results), [result["seed"] for result in results]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--runs: their seeds are {', '.join(map(str, seeds))}; give runs of different seeds")
    print(table(rows))
    for name, count in better_in(rows).items():
        print(f"RFT better than SFT continued in {count} of {len(seeds)} seeds: {name}")
    return json.dumps({"seeds": seeds, "steps_continued": [r["steps"] for r in results], "rows": rows}, indent=1) + "\n"


def main() -> None:
    config, = read_settings(__doc__, SeedsConfig)
    numbers = report(config.runs)
    if config.json:
        atomic_write(Path(config.json), numbers)


if __name__ == "__main__":
    run(main)
