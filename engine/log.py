"""The bookkeeping of stage two, so that its loop reads as the method: parts of a batch, updates, log, samples and bar.

A batch is one part, unless `--accumulate` or several processes split it: then each part, whole groups always, goes
through steps 1 to 6 by itself, and the gradients of all parts add up to those of the whole batch before the update.
Read next: engine/checkpoint.py, which keeps the state from which a stopped run goes on.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import rewards
from data import Example
from engine.checkpoint import TrainingState, append, read_log
from engine.distributed import add_gradients, is_first, own_parts, total, wait
from lab.table import read_metrics, table
from model import PosePolicy, Prompt, Rollout, Scores
from real.answers import as_read

SHOW_EVERY = 10  # steps between those of which samples.jsonl shows something


@dataclass
class Part:
    """What is known of a part of the batch after sampling: all that its updates need."""
    examples: Sequence[Example]
    prompt: Prompt
    rollout: Rollout
    words: dict[str, Tensor]  # rewards, name -> (B, G)
    poses: dict[str, Tensor]  # rewards, name -> (B, G, K)
    F: Tensor  # (B, G)
    Delta: Tensor  # (B, G, K, 24), or (B, G, K) where a pose has one advantage
    reference: Scores
    slope: Tensor | None = None  # (B, G, K, 144), of lab/pathwise.py
    old: tuple[Tensor, Tensor] = ()  # of the policy that sampled: of `hygrpo.detached`


class Steps:
    """The steps that are left of a run of stage two: iterating gives a `Step`, and logs it when its loop body is done.

    config: the RFTConfig. validate(policy): numbers for the log, asked for before the first step, at intervals and at
    the end. out: folder of log.jsonl and samples.jsonl."""

    def __init__(self, state: TrainingState, policy: PosePolicy, config, validate: Callable[[PosePolicy], dict],
                 out: Path | None):
        self.state, self.policy, self.config, self.validate = state, policy, config, validate
        self.log, self.samples_log = (out and out / name for name in ("log.jsonl", "samples.jsonl"))
        self.rows, self.shown = (read_log(file, state.step) for file in (self.log, self.samples_log))
        wait()  # all have read before the first one writes
        if not state.step and not self.rows:
            append(self.rows, {"step": 0, **validate(policy)}, self.log)
            wait()  # only the first process validates
        elif len(self.rows) <= state.step and is_first():  # a row for each step, and one before the first
            print(f"{self.log} lacks rows of the first {state.step} steps: curves and tables are of the others")

    def __iter__(self) -> Iterator["Step"]:
        config, latest, names = self.config, {}, (*rewards.REWARDS, "sigma", "pose_kl")
        for bar in self.state.steps(config.rft_steps, "HyGRPO"):
            step = Step(self)
            yield step
            row = {"step": (number := self.state.step + 1)} | step.row
            latest |= {name: f"{row[name]:.3f}" for name in names if name in row}
            bar.set_postfix(latest)
            if number % SHOW_EVERY == 0 or number == config.rft_steps:
                for sample in samples(number, step.parts[0]):
                    append(self.shown, sample, self.samples_log)
            if number % config.eval_every == 0 or number == config.rft_steps:
                row |= self.validate(self.policy)
                wait()
            append(self.rows, row, self.log)


class Step:
    """One step: the parts of its batch, and what is needed to make of them one update an epoch."""

    def __init__(self, steps: Steps):
        self.steps, self.parts, self.made, self.loss, self.V = steps, [], [], 0.0, None

    def split(self, batch: Sequence[Example]) -> Iterator[tuple[list[Example], np.ndarray]]:
        """The examples of each part of this process, with a seed each, on which alone what is sampled depends. Their
        true answers are as they read after they have been tokens: answers of the policy are compared with these."""
        self.B, seeds = len(batch), self.steps.state.rng.integers(2 ** 62, size=len(batch))
        batch = as_read(self.steps.policy, batch)
        for rows in own_parts(self.B, self.steps.config.accumulate):
            yield [batch[i] for i in rows], seeds[rows]

    def shares(self, part: Part) -> dict:
        """The part's share of the batch's answers and of its V poses, by which its two halves of the loss weigh."""
        if self.V is None:
            self.V = total(sum(int(part.rollout.has_pose.sum()) for part in self.parts), self.steps.policy.device)
        return {"text_share": len(part.examples) / self.B,
                "pose_share": part.rollout.has_pose.sum() / max(1, self.V)}

    def backward(self, loss: Tensor, metrics: dict[str, Tensor], part: Part, new: Scores) -> None:
        """Add the gradient of a part's loss. With a reward that is not finite the update is not made."""
        if broken(part.examples, part.rollout, part.words, part.poses):
            loss = loss * torch.nan
        loss.backward()
        self.loss += loss.item()
        self.made.append(numbers(part.words | part.poses | metrics, new, part.rollout))

    def update(self) -> None:
        """One update on the gradients of all parts and processes, clipped at norm 1."""
        state = self.steps.state
        add_gradients(state.parameters)
        grad_norm = state.update(total(self.loss, self.steps.policy.device), max_norm=1.0)
        self.row = {"task": self.parts[0].examples[0].task} | mean_of(self.made) | {"grad_norm": grad_norm}
        self.row |= {"skipped": state.skipped} if state.skipped else {}
        self.made, self.loss = [], 0.0  # the row that stays is that of the last epoch


def broken(examples: Sequence[Example], rollout, words: dict[str, Tensor], poses: dict[str, Tensor]) -> list[str]:
    """The names of those rewards that are not finite where the example has them (and the answer has a pose)."""
    found = []
    for name, values in (words | poses).items():
        reward = rewards.REWARDS[name]
        has = torch.tensor([e.task in reward.tasks and reward.needs(e) for e in examples])  # (B,)
        has = has.to(values.device) if values.dim() == 2 else has.to(values.device)[:, None] & rollout.has_pose
        found += [] if values[has].isfinite().all() else [name]
    return found


def samples(step: int, part: Part) -> list[dict]:
    """The first two examples, each with its G sampled answers and their rewards (of poses the mean over K)."""
    rows, rollout = [], part.rollout
    for i, example in enumerate(part.examples[:2]):
        answers = []
        for g, answer in enumerate(rollout.answers[i]):
            given = {name: r[i, g].mean().item() for name, r in (part.words | part.poses).items()
                     if r.dim() == 2 or rollout.has_pose[i, g]}
            answers.append({"answer": answer} | {name: round(r, 4) for name, r in given.items() if r == r})
        rows.append({"step": step, "task": example.task, "prompt": example.prompt, "truth": example.answer,
                     "answers": answers})
    return rows


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Each number's mean over the rows that have it: the parts of a batch (those of this process)."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}


def rewards_table(rows: Sequence[dict]) -> str:
    """A line for each reward of a run's log, in the columns of lab/table.py: its mean over the first and over the
    last tenth of the steps that have it."""
    lines = []
    for name in rewards.REWARDS:
        given = [row[name] for row in rows if name in row]
        if given:
            tenth = max(1, len(given) // 10)
            first, last = np.mean(given[:tenth]), np.mean(given[-tenth:])
            lines.append(f"{f'reward {name}: first, last tenth of its steps':52s}{'-':>10s}{first:10.3f}{last:10.3f}")
    return "\n".join(lines)


def remarks(rows: Sequence[dict], config) -> list[str]:
    """What a log shows of that which puzzles most often, and what it means: a sentence each. config: the RFTConfig."""
    rows = [row for row in rows if "task" in row]
    of = lambda name, tasks: [row[name] for row in rows if name in row and row["task"] in tasks]
    mean = lambda name, tasks: float(np.mean(of(name, tasks) or [0.0]))
    tasks, told = {row["task"] for row in rows}, []
    clips = max(mean(f"{half}_clip_{side}", tasks) for half in ("text", "pose") for side in ("low", "high"))
    if config.inner_epochs == 1:
        told.append("Every ratio was 1 and no clip was active, as it must be with --inner_epochs 1. A loss near 0 is "
                    "normal then: its gradient teaches, and its value says nothing.")
    elif clips == 0:
        told.append(f"No clip was ever active: with --inner_epochs {config.inner_epochs} the ratios stayed inside, and "
                    "--clip_low and --clip_high did nothing.")
    elif clips > 0.2:
        told.append(f"A clip held {clips:.0%} of the ratios, which then teach nothing: take fewer --inner_epochs, or "
                    "smaller --rft_lr and --head_lr.")
    poses = mean("pose_flat_groups", ("text2pose", "image2pose", "image2text"))
    words = mean("text_flat_groups", ("image2text", "vqa"))  # where all answers are one sentence it is 1, and no fault
    if poses > 0.5 and config.pose_weight:
        told.append(f"In {poses:.0%} of the groups no pose was better than another, and poses learned nothing "
                    "there: a group needs more than one (--poses_per_answer), and a reward that tells them apart.")
    if words > 0.5:
        told.append(f"In {words:.0%} of the groups of words all answers were alike or equally good, and words "
                    "learned nothing there: take a larger --group_size, or a smaller --beta_text.")
    if still := not_risen(rows, rewards.weights(config.reward_weights, config.without)):
        told.append(f"Flat, from the first third of their steps to the last: {', '.join(still)}. One near its best can "
                    "rise no more; else try more steps, more of its weight, a smaller --beta_text or --beta_pose.")
    return told


def not_risen(rows: Sequence[dict], weights: dict[str, float]) -> list[str]:
    """The rewards with a weight that have not risen by two standard errors, of those with 15 steps or more."""
    still = []
    for name in (name for name, weight in weights.items() if weight):
        given = np.array([row[name] for row in rows if name in row])
        third = len(given) // 3
        if third >= 5:
            first, last = given[:third], given[-third:]
            if last.mean() - first.mean() <= 2 * np.sqrt((first.var(ddof=1) + last.var(ddof=1)) / third):
                still.append(f"{name} ({first.mean():.3f} to {last.mean():.3f})")
    return still


def print_results(out: Path, config) -> None:
    """The tables of a finished run, from its metrics.json and its log, and remarks on the latter. config: RFTConfig."""
    metrics, rows = read_metrics(out), read_log(out / "log.jsonl", config.rft_steps)
    print(table({"blind": metrics["floors"], "SFT": metrics["sft"], "RFT": metrics["rft"]}))
    print("\n".join([rewards_table(rows), *remarks(rows, config)]))


def numbers(tensors: dict[str, Tensor], new: Scores, rollout: Rollout) -> dict[str, float]:
    """The mean of each tensor; left out is what the step's task does not have (NaN, or of poses when none is given)."""
    given = lambda tensor: tensor[rollout.has_pose] if tensor.dim() == 3 else tensor  # rewards of poses are (B, G, K)
    row = {name: given(tensor).nanmean().item() for name, tensor in tensors.items()}
    if rollout.has_pose.any():
        row["sigma"] = new.pose.stddev[rollout.has_pose].mean().item()
    else:
        row = {name: value for name, value in row.items() if not name.startswith(("pose_", "loss_pose"))}
    return {name: value for name, value in row.items() if value == value}
