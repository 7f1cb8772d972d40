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
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import captions
from body import remove_heading
from builtin.free_text import make_prompt
from builtin.splits import load_splits
from data import Example, Split
from engine.checkpoint import atomic_write
from engine.runtime import pick_device, run
from engine.saving import load_policy
from engine.settings import Count, OutputFile, OutputPicture, SeedNumber, read_settings
from lab.metrics import bootstrap, compare, eval_examples, respond, right_form
from lab.pictures import grid
from model import PosePolicy
from real.smpl import load_body

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
    prompt = make_prompt(sentence, None)
    return Example("text2pose", prompt, captions.POSE_ANSWER, None, None, torch.zeros(10), sentence, ())


def answer(policy: PosePolicy, examples: Sequence[Example], meanings: Sequence[Meaning], samples: int,
           seed: int) -> dict[str, np.ndarray]:
    """What holds in poses sampled for each example, what in those of the others, and whether the answer has its form:
    (N,) each."""
    out = respond(policy, examples, samples, seed)
    own, others = held(meanings, remove_heading(out["samples"]))
    return {"held": own, "shuffled": others, "form": right_form(examples, out["answers"])["format_rate"]}


def picture(path: Path, policies: dict[str, PosePolicy], body, seed: int, count: int = 6) -> None:
    """`count` sentences, evenly spaced in the file, each with a pose sampled by each policy; below it what the sentence
    means, with all alternatives."""
    sentences = [said for group in read_paraphrases().values() for said in group.items()]
    every = len(sentences) // count
    examples = [replace(as_example(sentence), statements=tuple(sum(meant, [])))
                for sentence, meant in sentences[every - 1::every][:count]]
    grid(path, examples, {name: respond(policy, examples, 1, seed)["samples"][:, 0].cpu()
                          for name, policy in policies.items()}, body, blocks=2)


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
    picture: OutputPicture | None = field(default=None, metadata={"help": "file to draw some answers to"})
    device: str | None = field(default=None, metadata={"help": "cuda, mps or cpu; default: the best there is"})


def asked(config: ParaphrasesConfig) -> tuple[dict[str, tuple[list[Example], list[Meaning], dict]], Split]:
    """Paraphrases and test captions: examples, their meanings, and which of them each row of the table is the mean of.
    Beside them the training poses."""
    groups, ends = read_paraphrases(), [0]
    for sentences in groups.values():
        ends.append(ends[-1] + len(sentences))
    own = {sentence: meant for sentences in groups.values() for sentence, meant in sentences.items()}
    splits = load_splits(config.poses, {"train": 8000, "test": config.eval_poses}, config.seed, images=False)
    captions_of = eval_examples(splits["test"], "text2pose", config.eval_poses, config.seed)
    return {
        "paraphrases": (list(map(as_example, own)), list(own.values()),
                        {"all paraphrases": slice(None)} | dict(zip(groups, map(slice, ends, ends[1:])))),
        "test captions": (captions_of, [[[i] for i in e.statements] for e in captions_of],
                          {"test captions": slice(None)})}, splits["train"]


def main() -> None:
    config, = read_settings(__doc__, ParaphrasesConfig)
    policies = {name: load_policy(name).to(pick_device(config.device)) for name in config.model}
    kinds, train = asked(config)
    report = {"table": {}, "held": {}}
    for kind, (examples, meanings, groups) in kinds.items():
        each = {"one pose for all": {"held": one_pose(meanings, train)}}
        each |= {name: answer(policy, examples, meanings, config.samples, config.seed)
                 for name, policy in policies.items()}
        for group, rows in groups.items():
            first = each[config.model[0]]["held"][rows]
            table = report["table"][group] = {
                name: summary({key: values[rows] for key, values in numbers.items()}, first, config.seed)
                for name, numbers in each.items()}
            print(f"{group}, {len(examples[rows])}", *(line(name, row) for name, row in table.items()), sep="\n  ")
        if kind == "paraphrases":
            report["held"] = {e.caption: {name: round(float(numbers["held"][i]), 4) for name, numbers in each.items()}
                              for i, e in enumerate(examples)}
    if config.picture:
        picture(Path(config.picture), policies, load_body(), config.seed)
    if config.json:
        atomic_write(Path(config.json), json.dumps(report, indent=1) + "\n")


def summary(numbers: dict[str, np.ndarray], first: np.ndarray, seed: int) -> dict:
    """Means of what `answer` gives (N,), with intervals over the sentences, and against what `first` (N,) holds."""
    row = {key: float(values.mean()) for key, values in numbers.items()} | {
        "sentences": len(first), "interval": bootstrap(numbers["held"], seed),
        "against_first": compare(numbers["held"], first, seed)}
    if "shuffled" in numbers:
        row["own_minus_others"] = compare(numbers["held"], numbers["shuffled"], seed)
    return row


def line(name: str, row: dict) -> str:
    """A row of the table, as text."""
    low, high = row["against_first"]["interval"]
    text = (f"{name:32s} held {row['held']:.3f} [{row['interval'][0]:.3f}, {row['interval'][1]:.3f}]   against the "
            f"first {row['against_first']['difference']:+.3f} [{low:+.3f}, {high:+.3f}]")
    if "own_minus_others" not in row:
        return text
    low, high = row["own_minus_others"]["interval"]
    return (f"{text}   another sentence's poses {row['shuffled']:.3f}, own minus others "
            f"{row['own_minus_others']['difference']:+.3f} [{low:+.3f}, {high:+.3f}]   right form {row['form']:.2f}")


if __name__ == "__main__":
    run(main)
