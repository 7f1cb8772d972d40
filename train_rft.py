"""Stage two, reinforcement fine-tuning by HyGRPO: `python train_rft.py` runs the whole chain.

The loop of `train_rft` is the algorithm in seven numbered steps; their formula opens hygrpo.py. In `chain`, what
is missing is made first (pictures, encoders, SFT policy, two retrieval models), then the loop runs, then the
policy before and after is compared on poses it never saw.

    python train_rft.py [--poses DIR] [--out runs] [--seed 0]
    python train_rft.py --start_from runs --out runs_mine --reward_weights statements=2 joint=1
Departures from the paper: all four tasks take turns, a batch each, with the rewards that fit them; questions are also
rewarded for the exact answer; the pose head takes larger steps than the language model.
Read next: model.py, for `sample` and `log_prob`.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

import evaluate
import hygrpo
import rewards
from builtin.retriever import RETRIEVERS, Retriever, load_or_train_retrievers, retrieval_files  # rates: for notes_of
from data import Split, draw_batch
from engine.checkpoint import TrainingState, atomic_write, warm_up_and_decay
from engine.distributed import is_first, own_parts, processes, start, wait
from engine.lock import hold
from engine.log import Part, Steps, print_results
from engine.runtime import pick_device, run, versions
from engine.saving import load_policy, save_policy
from engine.settings import Count, CountOrNone, Floor, Limit, Number, check_settings, read_settings
from engine.start_from import check_run, find_same, notes_of, take
from engine.world import WorldConfig, check_world, load_world
from lab import pathwise, pictures, summed
from lab.curves import curves
from lab.floors import floors
from lab.frozen_sigma import freeze_sigma
from lab.validation import validate
from model import ANSWER_TOKENS, PosePolicy
from real.mixture import Mixture
from real.smpl import load_body
from train_sft import SFTConfig, load_or_train_sft

# A step for one task moves what another needs: with image2pose at .28 the mean pose erred by 16 mm more during the run.
MIX = {"text2pose": 0.36, "image2pose": 0.41, "image2text": 0.06, "vqa": 0.17}


# docs/claims.md tries most of these. Rates are for a hidden size of 128, as of tiny; at 4,096 a 32nd (PoseHead.rate).
@dataclass
class RFTConfig:
    rft_steps: Count = field(default=450, metadata={"help": "steps of HyGRPO"})
    prompts: Count = field(default=24, metadata={"help": "prompts a step (B), of tasks that are answered in words"})
    group_size: Count = field(default=3, metadata={"help": "answers a prompt (G), likewise"})
    pose_prompts: Count = field(default=48, metadata={"help": "B of tasks that are answered by a pose alone"})
    pose_answers: Count = field(default=1, metadata={"help": "G likewise: all would be the same sentence"})
    poses_per_answer: Count = field(default=64, metadata={"help": "K, poses an answer; 1 needs --pose_answers above 1"})
    inner_epochs: Count = field(default=1, metadata={"help": "updates on the same rollout; with 1 every ratio is 1"})
    rft_lr: Number = field(default=3e-4, metadata={"help": "peak learning rate of language model and projector"})
    head_lr: Number = field(default=1e-3, metadata={"help": "peak learning rate of the pose head"})
    beta_text: Number = field(default=2.0, metadata={"help": "weight of the words' KL to the SFT policy"})
    beta_pose: Number = field(default=0.1, metadata={"help": "weight of the pose's KL to the SFT policy"})
    clip_low: Limit = field(default=0.2, metadata={"help": "clips ratios below 1 - this; inert with one inner epoch"})
    clip_high: Limit = field(default=0.28, metadata={"help": "clips ratios above 1 + this; inert with one inner epoch"})
    pose_ratio: Literal["joint", "per_joint", "mean"] = field(
        default="per_joint", metadata={"help": "numbers a ratio is of; with one inner epoch inert but for --credit"})
    credit: Literal["joint", "pose"] = field(default="joint", metadata={
        "help": "what a joint is compared by: its part of a reward (inert unless per_joint), or all, as in the paper"})
    normalize: Literal["std", "batch", "none"] = field(
        default="std", metadata={"help": "what advantages are divided by: spread of the group, of the batch, nothing"})
    baseline: Literal["leave_one_out", "mean"] = field(
        default="leave_one_out", metadata={"help": "what a reward is compared with: mean of the others, mean of all"})
    focal_gamma: Number = field(default=1.0, metadata={
        "help": "power of 1 - mean of the group that multiplies the advantage of statements; inert with --compare sum"})
    compare: Literal["each", "sum"] = field(default="each", metadata={
        "help": "what advantages are taken of: each reward by itself (GDPO), or their weighed sum (GRPO)"})
    pose_gradient: Literal["score", "pathwise"] = field(default="score", metadata={
        "help": "pathwise: poses follow the slope of each reward that has one, and the score function of the others"})
    aggregation: Literal["grpo", "bnpo", "dr_grpo"] = field(default="grpo", metadata={"help": "see hygrpo.aggregate"})
    sigma: Literal["learned", "frozen"] = field(default="learned", metadata={"help": "frozen: one a number, untaught"})
    sigma_floor: Floor = field(default=0.02, metadata={"help": "what the head adds to each standard deviation"})
    pose_weight: Number = field(default=1.0, metadata={"help": "weight of the pose's half of the loss; 0: words alone"})
    reward_weights: list[str] | None = field(default=None, metadata={
        "help": "weights that differ from the table in rewards.py, as statements=2 joint=1"})
    without: str | None = field(default=None, metadata={"help": "a reward to leave out"})
    retriever_steps: CountOrNone = field(default=160, metadata={"help": "steps of each of the two retrieval models"})
    accumulate: Count = field(default=1, metadata={"help": "parts in which a batch is run, to save memory"})
    start_from: str | None = field(default=None, metadata={
        "help": "folder of a run from which to take what the settings of this one leave as it is"})
    eval_every: Count = field(default=150, metadata={"help": "steps between evaluations on validation poses"})


def train_rft(policy: PosePolicy, split: Split | Mixture, retriever: Retriever, config: RFTConfig, seed: int,
              validate: Callable[[PosePolicy], dict], out: Path | None = None) -> list[dict]:
    """HyGRPO in place. Returns a row of numbers a step, with those of validate(policy) before the first step, at
    intervals and at the end. out: folder for rows, samples, and the state from which a stopped run goes on."""
    weights, base_rates, followed = check(config), split.base_rates(), pathwise.followed(config)
    compare = {"each": partial(hygrpo.advantages, focal={"statements": config.focal_gamma}),
               "sum": summed.advantages}[config.compare]
    how = {"normalize": config.normalize, "baseline": config.baseline}
    of_joints = (config.credit, config.pose_ratio) == ("joint", "per_joint")  # else a pose has one advantage
    policy.pose_head.sigma_floor = config.sigma_floor
    if config.sigma == "frozen":
        freeze_sigma(policy, split, seed)
    reference = policy.frozen_copy()  # the SFT policy, with sigma as these lines may have changed it; never taught
    # The language model serves all tasks: with steps as large as the head's, one task's rewards undo another's answers.
    groups = [{"params": [p for name, p in policy.named_parameters() if p.requires_grad and
                          name.startswith("pose_head.") == head], "lr": lr * policy.pose_head.rate}
              for head, lr in ((True, config.head_lr), (False, config.rft_lr))]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    schedule = warm_up_and_decay(optimizer, config.rft_steps * config.inner_epochs)
    rng = np.random.default_rng([seed, 20])
    state = TrainingState(out and out / "rft.state", policy, optimizer, schedule, rng)
    steps = Steps(state, policy, config, validate, out)  # the bookkeeping: see engine/log.py
    for step in steps:
        batch = draw_batch(split, MIX, max(config.prompts, config.pose_prompts), rng)  # examples, all of one task
        B, G, K = sizes(batch[0].task, config)
        for examples, seeds in step.split(batch[:B]):  # all of them at once, unless the batch is split
            prompt = policy.encode(examples)  # 1. Encode the prompts: tokens (B, P), frozen features.
            # 2. Sample answers, tokens (B, G, T), and poses, (B, G, K, 144).
            rollout = policy.sample(prompt, G, K, seeds=seeds)
            # 3. Reward them: names -> (B, G) of words, (B, G, K) of poses, (B, G, K, 24) of what each joint decides.
            words, poses, by_joint = rewards.score(examples, rollout, retriever, base_rates)
            # 4. Compare within each group: F (B, G) and Delta (B, G, K, 24), or (B, G, K): one for a pose.
            parts = (by_joint if of_joints else {}) | pathwise.without(followed, poses)
            F, Delta = compare(words, poses, rollout.has_pose, weights, parts, **how)
            slope = pathwise.slope(followed, examples, rollout, retriever, base_rates, poses, weights, **how)
            # 5. Reference: log-probabilities (B, G, T) and Gaussians (B, G) of the SFT policy.
            with torch.no_grad():
                ref = reference.log_prob(prompt, rollout.tokens, rollout.token_mask)
            step.parts.append(Part(examples, prompt, rollout, words, poses, F, Delta, ref, slope))
        for epoch in range(config.inner_epochs):
            for part in step.parts:
                # 6. Score under the policy, with gradient. "Old" is the policy that sampled, which in the first epoch
                #    is this one: its numbers are taken from this very pass, so that the ratio is exactly 1.
                new = policy.log_prob(part.prompt, part.rollout.tokens, part.rollout.token_mask)
                if epoch == 0:
                    part.old = hygrpo.detached(new, part.rollout.pose)
                # 7. Loss, a number, and update.
                loss, metrics = hygrpo.loss(
                    new, *part.old, part.reference, part.rollout, part.F, part.Delta, **step.shares(part),
                    clip_low=config.clip_low, clip_high=config.clip_high, beta_text=config.beta_text,
                    beta_pose=config.beta_pose, pose_ratio=config.pose_ratio, pose_weight=config.pose_weight,
                    aggregation=config.aggregation, max_tokens=ANSWER_TOKENS, slope=part.slope)
                step.backward(loss, metrics, part, new)
            step.update()
    policy.eval()
    return steps.rows


def sizes(task: str, config: RFTConfig) -> tuple[int, int, int]:
    """How many prompts, answers a prompt and poses an answer a step has: B, G, K.

    Where the answer is one fixed sentence with a pose in it, the answers of a prompt are all the same and F says
    nothing: what they would cost is spent on more prompts. A question has no reward for poses."""
    if task in ("text2pose", "image2pose"):
        return config.pose_prompts, config.pose_answers, config.poses_per_answer
    return config.prompts, config.group_size, config.poses_per_answer if task == "image2text" else 1


def check(config: RFTConfig) -> dict[str, float]:
    """The weight of each reward. ValueError, before work is spent, for settings that cannot be followed."""
    check_settings(config)
    own_parts(min(config.prompts, config.pose_prompts), config.accumulate)  # or it says what is wrong, as below
    if (config.normalize == "batch" or config.aggregation == "bnpo") and processes() * config.accumulate > 1:
        raise ValueError("--normalize batch and --aggregation bnpo look at a whole batch at once: 1 part, 1 process")
    if config.pose_weight and config.pose_answers * config.poses_per_answer == 1:
        raise ValueError("one pose a prompt has none to be compared with: raise --pose_answers or --poses_per_answer")
    pathwise.followed(config)
    return rewards.weights(config.reward_weights, config.without)


# ---------------------------------------------------------------- the chain

def main() -> None:
    """Check what was asked, then run the chain, alone in its folder."""
    world, sft_config, config = read_settings(__doc__, WorldConfig, SFTConfig, RFTConfig)
    out = Path(world.out)
    start(world.device)
    notes = notes_of(world, sft_config, config, check(config))
    check_run(out, notes)
    if (out / "metrics.json").exists():
        if is_first():
            print_results(out, config)
            print(f"This run was finished before: {out}/metrics.json. To run anew, name another folder with --out.")
        return
    check_world(world, sft_config)
    if world.poses:
        retrieval_files(world.poses, np.random.default_rng())  # or it says that they are too few
    same = find_same(config.start_from, out, notes) if config.start_from else []
    with hold(out):
        chain(world, sft_config, config, notes, same)


def chain(world: WorldConfig, sft_config: SFTConfig, config: RFTConfig, notes: dict, same: list[str]) -> None:
    """Pictures, encoders, SFT policy, retrieval models, RFT policy, table: each made where --out does not hold it."""
    started, out, device = time.time(), Path(world.out), pick_device(world.device)
    splits = load_world(world, sft_config)
    if is_first():
        check_run(out, notes, write=True)
        take(config.start_from, out, same)
    wait()
    policy = load_or_train_sft(world, sft_config, splits)
    retrievers = load_or_train_retrievers(policy, world, config.retriever_steps)
    drawn, body = load_body(world.body), load_body(world.body).to(device)  # pictures are made on the CPU
    sft = policy.frozen_copy()
    judge, validation = retrievers["judge"], lambda policy: validate(policy, splits["val"], judge, body, world.seed)
    if not (out / "rft").exists():
        rows = train_rft(policy, splits.get("data", splits["train"]), retrievers["reward"], config, world.seed,
                         validation if is_first() else lambda policy: {}, out)
        if is_first():
            curves(out / "curves.png", rows)
            pictures.progression(out / "progression.png", rows, splits["val"], drawn, world.seed)
            save_policy(policy, out / "rft")
            (out / "rft.state").unlink(missing_ok=True)
    if not is_first():
        return
    policy = load_policy(out / "rft").to(device)
    policy.frozen_features = sft.frozen_features
    before, after = (evaluate.evaluate(x, splits["test"], judge, body, world.eval_poses, world.seed)
                     for x in (sft, policy))
    blind = floors(sft, splits["train"], splits["test"], judge, body, world.eval_poses, world.seed)
    pictures.before_after(out / "before_after.png", splits["test"], {"SFT": sft, "RFT": policy}, drawn, world.seed)
    atomic_write(out / "metrics.json", json.dumps({"floors": blind, "sft": before, "rft": after, "seed": world.seed,
                                                   "device": str(device), "versions": versions()}, indent=1) + "\n")
    print_results(out, config)
    print(f"{time.time() - started:.0f} s on {device}. In {out}: curves.png, progression.png, before_after.png, "
          "metrics.json")


if __name__ == "__main__":
    run(main)
