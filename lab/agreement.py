"""Do rewards pull the same way? The cosine between the gradients of each pair of them, for claim 12.

Each reward is taken alone, with weight 1 and without KL, as HyGRPO would follow it from the SFT policy; the pose head
and the rest of what is trained, the language model, are looked at apart. The gradient is a mean over the tasks that
have the reward, with the odds of stage two. Noise makes every cosine smaller. So the batches are dealt out to two
halves, and a cosine is always taken between one half and the other: what a reward has with itself, on the diagonal, is
the most that another could have with it. 1: the same direction; 0: nothing to do with each other; below 0: a conflict.
Read next: experiments.py, which prints the tables.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import hygrpo
import rewards
from builtin.retriever import Retriever
from data import Split, draw_batch
from model import ANSWER_TOKENS, PosePolicy
from real.answers import as_read
from train_rft import MIX, RFTConfig, sizes


def agreement(policy: PosePolicy, split: Split, retriever: Retriever, config: RFTConfig, seed: int,
              batches: int) -> dict[str, dict]:
    """Of `pose head` and `language model` a dict name -> name -> cosine, None where a reward moves nothing there.

    config: how large batches are, and how rewards are compared. batches: of each task in each of the two halves."""
    parts, halves = {"pose head": [], "language model": []}, [{}, {}]
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            parts["pose head" if name.startswith("pose_head.") else "language model"].append(parameter)
    parameters, rng = [p for part in parts.values() for p in part], np.random.default_rng([seed, 24])
    policy.train()
    for half in halves:
        for task, odds in MIX.items():
            for _ in range(batches):
                for name, gradient in of_batch(policy, split, retriever, config, task, parameters, rng).items():
                    half[name] = half.get(name, 0.0) + odds / batches * gradient
    policy.eval()
    head = sum(p.numel() for p in parts["pose head"])
    names = [name for name in rewards.REWARDS if name in halves[0]]
    places = {"pose head": slice(head), "language model": slice(head, None)}
    return {part: {a: {b: cosine(*(half[name][place] for half, name in zip(halves * 2, (a, b, b, a)))) for b in names}
                   for a in names} for part, place in places.items()}


def cosine(a: Tensor, b: Tensor, b_first: Tensor, a_second: Tensor) -> float | None:
    """The mean of the cosines of a with b and of b with a, each of them once from the first half of the batches."""
    pairs = [(x @ y / (x.norm() * y.norm())).item() for x, y in ((a, b), (b_first, a_second))]
    return float(np.mean(pairs)) if np.isfinite(pairs).all() else None


def of_batch(policy: PosePolicy, split: Split, retriever: Retriever, config: RFTConfig, task: str,
             parameters: Sequence[Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
    """The gradient of each reward that a task has, of one batch: name -> one long row, uphill."""
    B, G, K = sizes(task, config)
    examples = as_read(policy, draw_batch(split, {task: 1.0}, B, rng))
    prompt = policy.encode(examples)
    rollout = policy.sample(prompt, G, K, seeds=rng.integers(2 ** 62, size=B))
    words, poses, by_joint = rewards.score(examples, rollout, retriever, split.base_rates())
    new, found = policy.log_prob(prompt, rollout.tokens, rollout.token_mask), {}
    old = hygrpo.detached(new, rollout.pose)
    for name in (name for name, reward in rewards.REWARDS.items() if task in reward.tasks):
        alone = {other: float(other == name) for other in rewards.REWARDS}
        F, Delta = hygrpo.advantages(words, poses, rollout.has_pose, alone, by_joint)
        loss, _ = hygrpo.loss(new, *old, new, rollout, F, Delta, clip_low=config.clip_low, clip_high=config.clip_high,
                              beta_text=0.0, beta_pose=0.0, max_tokens=ANSWER_TOKENS)
        found[name] = -torch.cat([g.flatten() for g in torch.autograd.grad(
            loss, parameters, retain_graph=True, materialize_grads=True)])
    return found


def table(found: Sequence[dict[str, dict]]) -> str:
    """Markdown of one `agreement` a seed: a table for each part of the policy, mean ± standard deviation."""
    lines = []
    for part, rows in found[0].items():
        lines += [f"Cosine of the gradients of two rewards, on the {part}:", "", f"| | {' | '.join(rows)} |",
                  "| --- |" + " --- |" * len(rows)]
        for i, a in enumerate(rows):
            cells = []
            for b in list(rows)[:i + 1]:
                values = [x for one in found if (x := one[part][a][b]) is not None]
                spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
                cells.append(f"{np.mean(values):.2f} ± {spread:.2f}" if values else "-")
            lines.append(f"| {a} | {' | '.join(cells + [''] * (len(rows) - i - 1))} |")
        lines.append("")
    return "\n".join(lines[:-1])
