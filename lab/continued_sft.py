"""The control that the paper lacks: is RFT better than imitating for as long? SFT of a finished run is continued.

    python -m lab.continued_sft [--run runs] [--steps 1000]
From the run's SFT policy, with the same data, losses and rates, a warm-up and a decay anew; then the table of
evaluate.py, with what the run itself measured beside it. Writes RUN/continued.json.
Read next: experiments.py, where claim 7 compares the same on 150 test poses, and with fewer steps of HyGRPO.
"""

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch

import evaluate
import train_sft as stage_one
from builtin.retriever import Retriever
from engine.checkpoint import atomic_write, constants, read_note
from engine.lock import hold
from engine.runtime import own_seed, pick_device, run
from engine.saving import load_policy
from engine.settings import Count, read_settings
from engine.world import WorldConfig, keep_features, load_world
from lab.table import read_metrics, table
from real.smpl import load_body
from train_sft import SFTConfig, train_sft


@dataclass
class ContinuedConfig:
    run: str = field(default="runs", metadata={"help": "folder of a run that train_rft.py finished"})
    steps: Count = field(default=1000, metadata={
        "help": "steps of SFT; the default takes as long on 2 CPU cores as HyGRPO does with its defaults"})
    device: str | None = field(default=None, metadata={"help": "cuda, mps or cpu; default: the best there is"})


def main() -> None:
    config, = read_settings(__doc__, ContinuedConfig)
    folder, device = Path(config.run), pick_device(config.device)
    if not all((folder / name).is_file() for name in ("metrics.json", "sft_config.json")):
        raise FileNotFoundError(f"{folder} holds no finished run; python train_rft.py --out {folder} makes one")
    made = read_metrics(folder)  # or it says what is wrong, before the work
    noted = read_note(folder / "sft_config.json")
    for name, value in constants(vars(stage_one)).items():
        if noted.get(name, value) != value:
            raise ValueError(f"{folder} was made with {name} = {noted[name]}, which now is {value} in the code: it is "
                             "continued with its own losses and rates alone, so set it back")
    world, sft_config = (kind(**{f.name: noted[f.name] for f in fields(kind) if f.name in noted})
                         for kind in (WorldConfig, SFTConfig))
    world, sft_config = replace(world, out=str(folder)), replace(sft_config, sft_steps=config.steps)
    with hold(folder):
        continue_sft(folder, made, world, sft_config, device)


def continue_sft(folder: Path, made: dict, world: WorldConfig, sft_config: SFTConfig, device: torch.device) -> None:
    """Train the SFT policy of the run in `folder` on, print the table beside what it made, write continued.json."""
    judge, body = Retriever.from_pretrained(folder / "judge").to(device), load_body(world.body).to(device)
    splits, policy = load_world(world, sft_config), load_policy(folder / "sft").to(device)
    keep_features(policy, splits)
    train_sft(policy, splits.get("data", splits["train"]), sft_config, own_seed(world.seed, 14))
    result = evaluate.evaluate(policy, splits["test"], judge, body, world.eval_poses, world.seed)
    print(table({"blind": made["floors"], "SFT": made["sft"], "continued": result, "RFT": made["rft"]}))
    atomic_write(folder / "continued.json",
                 json.dumps({"continued": result, "steps": sft_config.sft_steps}, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
