"""Sentences that no table of phrasings wrote: does the policy do what they mean?

    python -m lab.paraphrases --model runs/sft runs/rft [--json FILE]
paraphrases.json holds sentences by hand, each with the statements that it means; captions.py reads none of them. Some
put a statement in other words ("Both palms pressed together."), some name a scene ("A sunbather on the beach who faces
the sky."). They are asked as predict.py asks; beside them stand the test captions of evaluate.py, which the table
wrote. Floors: the one training pose in which most of the same sentences' meaning holds, and each policy's poses held
against the other sentences.
Read next: pretrained.py, which makes a model that has read sentences before.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import captions
from body import remove_heading
from builtin.free_text import make_prompt
from data import Example, Split, load_splits
from engine.checkpoint import atomic_write
from engine.runtime import pick_device, run
from engine.saving import load_policy
from engine.settings import Count, OutputFile, SeedNumber, read_settings
from lab.metrics import bootstrap, compare, eval_examples, respond, right_form
from model import PosePolicy

FILE = Path(__file__).with_name("paraphrases.json")
KEYS = {statement.key: i for i, statement in enumerate(captions.STATEMENTS)}
Meaning = list[list[int]]  # statements that must all hold; of the statements of one list any will do


def read_paraphrases(path: Path = FILE) -> dict[str, dict[str, Meaning]]:
    """Groups of sentences, each with what it means. In the file "A|B" is a statement that A or B fulfils.
    ValueError for a statement that the table does not have."""
    groups = json.loads(path.read_text())
    try:
        return {name: {sentence: [[KEYS[key] for key in either.split("|")] for either in meant]
                       for sentence, meant in sentences.items()} for name, sentences in groups.items()}
    except KeyError as error:
        raise ValueError(f"{path}: there is no statement {error} in builtin/statement_table.py") from None


def fulfilled(meanings: Sequence[Meaning], holds: Tensor) -> np.ndarray:
    """The share of each meaning's statements that hold in each pose; holds: (P, S) bool. Returns (N, P)."""
    return np.stack([torch.stack([holds[:, either].any(1) for either in meant]).double().mean(0).numpy()
                     for meant in meanings])


def held(meanings: Sequence[Meaning], rotmats: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The share of what each sentence means that holds in its own poses (N, K, 24, 3, 3), and the mean share in the
    poses of the other sentences: (N,) each."""
    N, K = rotmats.shape[:2]
    share = fulfilled(meanings, captions.pose_holds(rotmats.flatten(0, 1)).cpu()).reshape(N, N, K).mean(-1)
    own = share.diagonal()
    return own, (share.sum(1) - own) / max(1, N - 1)


def one_pose(meanings: Sequence[Meaning], train: Split) -> np.ndarray:
    """The best that one pose for all sentences gives, (N,): a training pose, chosen on these very sentences."""
    share = fulfilled(meanings, torch.from_numpy(train.holds))
    return share[:, share.mean(0).argmax()]


def as_example(sentence: str) -> Example:
    """A sentence as predict.py asks it."""
    return Example("text2pose", make_prompt(sentence, None), captions.POSE_ANSWER, None, None, torch.zeros(10), sentence,
                   ())


def answer(policy: PosePolicy, examples: Sequence[Example], meanings: Sequence[Meaning], samples: int,
           seed: int) -> dict[str, np.ndarray]:
    """What holds in poses sampled for each example, what in those of the others, and whether the answer has its form:
    (N,) each."""
    out = respond(policy, examples, samples, seed)
    own, others = held(meanings, remove_heading(out["samples"]))
    return {"held": own, "shuffled": others, "form": right_form(examples, out["answers"])["format_rate"]}


# ---------------------------------------------------------------- the command

@dataclass
class ParaphrasesConfig:
    model: list[str] = field(default_factory=lambda: ["runs/sft", "runs/rft"], metadata={
        "help": "folders of policies; all are compared with the first"})
    samples: Count = field(default=64, metadata={"help": "poses drawn for each sentence"})
    poses: str | None = field(default=None, metadata={"help": "folder of AMASS npz files; default: the built-in poses"})
    eval_poses: Count = field(default=500, metadata={"help": "test poses, whose captions are asked beside"})
    seed: SeedNumber = field(default=0, metadata={"help": "seed of the data and of the samples"})
    json: OutputFile | None = field(default=None, metadata={"help": "file to write the figures to"})
    device: str | None = field(default=None, metadata={"help": "cuda, mps or cpu; default: the best there is"})


def questions(config: ParaphrasesConfig) -> tuple[dict[str, tuple[list[Example], list[Meaning]]], Split]:
    """Groups of examples with their meanings, the test captions last, and the training poses."""
    groups = {name: ([as_example(sentence) for sentence in sentences], list(sentences.values()))
              for name, sentences in read_paraphrases().items()}
    groups = {"all paraphrases": tuple(sum(parts, []) for parts in zip(*groups.values()))} | groups
    splits = load_splits(config.poses, {"train": 8000, "test": config.eval_poses}, config.seed, images=False)
    asked = eval_examples(splits["test"], "text2pose", config.eval_poses, config.seed)
    return groups | {"test captions": (asked, [[[i] for i in e.statements] for e in asked])}, splits["train"]


def main() -> None:
    config, = read_settings(__doc__, ParaphrasesConfig)
    device = pick_device(config.device)
    policies = {name: load_policy(name).to(device).eval() for name in config.model}
    groups, train = questions(config)
    report = {}
    for group, (examples, meanings) in groups.items():
        floor = one_pose(meanings, train)
        rows = {"one pose for all": {"held": float(floor.mean()), "interval": bootstrap(floor, config.seed)}}
        each = {name: answer(policy, examples, meanings, config.samples, config.seed)
                for name, policy in policies.items()}
        for name, numbers in each.items():
            rows[name] = {key: float(values.mean()) for key, values in numbers.items()}
            rows[name] |= {"interval": bootstrap(numbers["held"], config.seed),
                           "against_first": compare(numbers["held"], each[config.model[0]]["held"], config.seed),
                           "each": {e.caption: round(float(x), 4) for e, x in zip(examples, numbers["held"])}}
        report[group] = {"sentences": len(examples), "rows": rows}
        print(f"{group} ({len(examples)})", *(line(name, row) for name, row in rows.items()), sep="\n  ")
    if config.json:
        atomic_write(Path(config.json), json.dumps(report, indent=1) + "\n")


def line(name: str, row: dict) -> str:
    text = f"{name:32s} held {row['held']:.3f} [{row['interval'][0]:.3f}, {row['interval'][1]:.3f}]"
    if "form" in row:
        low, high = row["against_first"]["interval"]
        text += (f"   another sentence's poses {row['shuffled']:.3f}   right form {row['form']:.2f}   against the first "
                 f"{row['against_first']['difference']:+.3f} [{low:+.3f}, {high:+.3f}]")
    return text


if __name__ == "__main__":
    run(main)
