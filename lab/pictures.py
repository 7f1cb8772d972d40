"""Pictures of a run: before and after, the way there, where the Gaussian is wide, and the method itself.

    python -m lab.pictures [--run runs] [--out assets]
Of a run that train_rft.py finished. Bodies are drawn by builtin/renderer.py, everything else by matplotlib. Nothing of
the method depends on this file. A pose has no place in the world: its pelvis is the origin. Where it comes from a
sentence, up is up, and the grey line touches the lowest point of the body; captions.py takes the lowest joint as the
ground. A pose from an image is in the camera's frame and leans as the camera does, so there is no line.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import captions
from body import forward_kinematics, remove_heading, rot6d_to_matrix
from builtin.splits import load_splits
from data import Example, Split
from engine.checkpoint import read_note
from engine.runtime import pick_device, run
from engine.saving import load_policy
from engine.settings import OutputFolder, read_settings
from lab.bodies import ask, picture, turned
from lab.curves import curves
from lab.method_figure import method
from lab.metrics import eval_examples, mpjpe, respond
from lab.uncertainty import uncertainty
from model import PosePolicy
from real.smpl import load_body

HOLDS, FAILS = "#00684a", "#b3400a"


def show(axis: Axes, body, rotmats: Tensor, example: Example, is_true: bool) -> None:
    """One pose (24, 3, 3) of an example, cut to the body. Below it each statement of the sentence, + where it holds and
    - where not, or the error of a pose that is not the true one."""
    from_text = example.image is None
    rotmats = remove_heading(rotmats) if from_text else rotmats
    pixels = picture(body, (turned(rotmats) if from_text else rotmats)[None], example.betas[None] * (not from_text),
                     320)[0]
    rows, columns = ((pixels < 255).any(-1).any(axis).nonzero()[0] for axis in (1, 0))
    axis.imshow(pixels[rows[0]:rows[-1] + 1, max(0, columns[0] - 8):columns[-1] + 9])
    axis.set_anchor("S")
    if from_text:
        axis.axhline(rows[-1] - rows[0] + 0.5, color="#aaaaaa", lw=2)
    holds, lines = captions.pose_holds(rotmats), []
    if not from_text and not is_true:
        error = mpjpe(*(forward_kinematics(x)[0] for x in (rotmats, example.rotmats)))
        lines = [(f"{error:.0f} mm a joint", "black")]
    for i in example.statements if from_text else ():
        key = captions.STATEMENTS[i].key.replace("the person is ", "").replace("the ", "").replace(" is ", " ")
        lines += [(f"+ {key}", HOLDS) if holds[i] else (f"- {key}", FAILS)]
    for i, (text, color) in enumerate(lines):
        axis.annotate(text, (0.5, 0), (0, -6 - 17 * i), "axes fraction", textcoords="offset points", ha="center",
                      va="top", fontsize=min(13.5, 350 / len(text)), color=color)


def grid(path: Path, examples: Sequence[Example], columns: dict[str, Tensor], body, blocks: int = 1) -> None:
    """A row an example, in `blocks` beside each other: what was asked, and the pose of each column (name ->
    (n, 24, 3, 3))."""
    wide, tall = 1 + len(columns), -(-len(examples) // blocks)
    figure = Figure(figsize=(2.9 * wide * blocks, 4.2 * tall))
    axes = figure.subplots(tall, wide * blocks, squeeze=False)
    figure.subplots_adjust(0.01, 0.12, 0.99, 0.95, wspace=0.06, hspace=0.55)
    for axis in axes.flat:
        axis.axis("off")
    for axis, name in zip(axes[0], ["asked", *columns] * blocks):
        place = axis.get_subplotspec().get_position(figure)  # whatever its picture leaves of it
        figure.text(place.x0 + place.width / 2, place.y1 + 0.012, name, ha="center", fontsize=18, fontweight="bold")
    for i, example in enumerate(examples):
        row = axes[i % tall][i // tall * wide:]
        ask(row[0], example)
        for axis, (name, poses) in zip(row[1:], columns.items()):
            show(axis, body, poses[i], example, name == "true pose")
    figure.savefig(path, dpi=68)


def true_poses(examples: Sequence[Example]) -> dict[str, Tensor]:
    return {"true pose": torch.stack([e.rotmats for e in examples])}


def before_after(path: Path, split: Split, policies: dict[str, PosePolicy], body, seed: int = 0) -> None:
    """Three sentences on the left, as many images on the right, each with a pose sampled by each policy."""
    examples = eval_examples(split, "text2pose", 3, seed)
    examples += eval_examples(split, "image2pose", 6, seed)[3:]  # of other poses
    grid(path, examples, true_poses(examples) | {
        f"{name}, sampled": respond(policy, examples, 1, seed)["samples"][:, 0].cpu()
        for name, policy in policies.items()}, body, blocks=2)


# ---------------------------------------------------------------- over the steps

def progression(path: Path, rows: list[dict], split: Split, body, seed: int = 0) -> None:
    """The poses that fixed prompts of the validation split were answered with over the steps (the paper's figure 5),
    always from the same noise, so that what moves is the Gaussian. rows: of a log, those with `val_poses`."""
    examples = followed_examples(split, seed)
    columns = true_poses(examples)
    rows = [row for row in rows if "val_poses" in row]
    if not rows:  # the log was lost, which was told
        return
    for i in np.linspace(0, len(rows) - 1, 5).round().astype(int):  # a picture of a long run would hold too many
        columns[f"step {rows[i]['step']}"] = rot6d_to_matrix(torch.tensor(rows[i]["val_poses"]).unflatten(-1, (24, 6)))
    grid(path, examples, columns, body)


def followed_examples(split: Split, seed: int) -> list[Example]:
    """Two sentences and two images, of different poses."""
    return eval_examples(split, "text2pose", 2, seed) + eval_examples(split, "image2pose", 4, seed)[2:]


# ---------------------------------------------------------------- the command

@dataclass
class PicturesConfig:
    run: str = field(default="runs", metadata={"help": "folder of a run that train_rft.py finished"})
    out: OutputFolder = field(default="assets", metadata={"help": "folder for the pictures and uncertainty.json"})


def draw(folder: Path, out: Path) -> None:
    """All pictures of a finished run. FileNotFoundError, in one sentence, where it is not finished."""
    if missing := [name for name in ("metrics.json", "sft_config.json") if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder} holds no finished run (no {missing[0]}): python train_rft.py --out {folder}")
    settings = read_note(folder / "sft_config.json")
    seed, count, body = settings["seed"], settings["eval_poses"], load_body(settings["body"])
    splits = load_splits(settings["poses"], {"val": count, "test": count}, seed, body_model=body,
                         size=settings["picture"])
    policies = {name: load_policy(folder / name.lower()).to(pick_device()) for name in ("SFT", "RFT")}
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    out.mkdir(parents=True, exist_ok=True)
    method(out / "method.png", policies["RFT"], splits["test"], body, seed)
    before_after(out / "before_after.png", splits["test"], policies, body, seed=seed)
    curves(out / "curves.png", rows)
    progression(out / "progression.png", rows, splits["val"], body, seed)
    numbers = uncertainty(out / "uncertainty.png", policies["RFT"], splits["test"], body, seed=seed)
    (out / "uncertainty.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(f"In {out}: method.png, before_after.png, curves.png, progression.png, uncertainty.png, uncertainty.json")


def main() -> None:
    config, = read_settings(__doc__, PicturesConfig)
    draw(Path(config.run), Path(config.out))


if __name__ == "__main__":
    run(main)
