"""Stage two, reinforcement fine-tuning by HyGRPO: `python train_rft.py` runs the whole chain.

What is missing is made first (pictures, encoders, SFT policy, two retrieval models); then the loop below, whose body is
the algorithm in seven lines; then the policy before and after is compared on poses it never saw.

    python train_rft.py [--poses DIR] [--out runs] [--seed 0]
Departures from the paper: all four tasks take turns, a batch each, with the rewards that fit them; questions are also
rewarded for the exact answer; the pose head takes larger steps than the language model.
Read next: evaluate.py, which judges what came out.
"""

import copy
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import transformers

import evaluate
import hygrpo
import rewards
from body import matrix_to_rot6d
from builtin.retriever import Retriever, load_or_train_retrievers
from data import Split, draw_batch
from engine.checkpoint import TrainingState, append, check_folder, read_log, warm_up_and_decay, atomic_write
from engine.distributed import add_gradients, is_first, own_parts, processes, start, total
from engine.log import SHOW_EVERY, SHOWN, mean_of, numbers, samples
from engine.runtime import pick_device, run
from engine.saving import load_policy, save_policy
from lab import pictures
from lab.metrics import respond
from model import PosePolicy
from real.smpl import load_body
from train_sft import SFTConfig, WorldConfig, load_or_train_sft, load_world

MIX = {"text2pose": 0.37, "image2pose": 0.28, "image2text": 0.06, "vqa": 0.29}

# What experiments.py measured (three seeds): with one inner epoch all pose ratios are the same; with four, `per_joint`
# holds more statements than `joint`, and leaves better means and more diversity than `mean`. Four epochs hold .025 more
# statements than one, for 30 mm less diversity and twice the time. `batch` is as good as `std`; `none` learns less.
@dataclass
class RFTConfig:
    rft_steps: int = field(default=450, metadata={"help": "steps of HyGRPO"})
    prompts: int = field(default=24, metadata={"help": "prompts a step (B)"})
    group_size: int = field(default=3, metadata={"help": "answers a prompt (G)"})
    poses_per_answer: int = field(default=64, metadata={"help": "poses an answer (K); the paper has 1"})
    inner_epochs: int = field(default=1, metadata={"help": "updates on the same rollout"})
    rft_lr: float = field(default=3.5e-5, metadata={"help": "peak learning rate of language model and projector"})
    head_lr: float = field(default=2e-3, metadata={"help": "peak learning rate of the pose head"})
    beta_text: float = field(default=0.5, metadata={"help": "weight of the words' KL to the SFT policy"})
    beta_pose: float = field(default=0.075, metadata={"help": "weight of the pose's KL to the SFT policy"})
    clip_low: float = field(default=0.2, metadata={"help": "ratios below 1 - this are clipped"})
    clip_high: float = field(default=0.28, metadata={"help": "ratios above 1 + this are clipped"})
    pose_ratio: Literal["joint", "per_joint", "mean"] = field(
        default="per_joint", metadata={"help": "of which numbers of a pose a ratio is taken; the paper: joint"})
    normalize: Literal["std", "batch", "none"] = field(
        default="std", metadata={"help": "what advantages are divided by: spread of the group, of the batch, nothing"})
    sigma: Literal["learned", "frozen"] = field(
        default="learned", metadata={"help": "frozen: one for each number, never taught"})
    sigma_floor: float = field(default=0.02, metadata={"help": "what the head adds to each standard deviation"})
    pose_weight: float = field(default=1.0, metadata={"help": "weight of the pose's half of the loss; 0: words alone"})
    reward_weights: list[str] | None = field(default=None, metadata={
        "help": "weights that differ from the table in rewards.py, as statements=2 joint=1"})
    without: str | None = field(default=None, metadata={"help": "a reward to leave out"})
    retriever_steps: int = field(default=400, metadata={"help": "steps of each of the two retrieval models"})
    accumulate: int = field(default=1, metadata={"help": "parts in which a batch is run, to save memory"})
    eval_every: int = field(default=150, metadata={"help": "steps between evaluations on validation poses"})


def train_rft(policy: PosePolicy, split: Split, retriever: Retriever, config: RFTConfig, seed: int,
              evaluate_now: Callable[[PosePolicy], dict], out: Path | None = None) -> list[dict]:
    """HyGRPO in place. Returns a row of numbers a step; those of evaluate_now(policy), called before the first step, at
    intervals and at the end, join the row of their step.

    out: folder for `log.jsonl` (the rows), `samples.jsonl`, and the state from which a run that was stopped goes on."""
    parts = own_parts(config.prompts, config.accumulate)
    if config.normalize == "batch" and processes() * len(parts) > 1:
        raise ValueError("--normalize batch looks at a whole batch at once: not with --accumulate or several processes")
    weights = rewards.weights(config.reward_weights, config.without)
    policy.pose_head.sigma_floor = config.sigma_floor
    if config.sigma == "frozen":
        freeze_sigma(policy, split, seed)
    reference = policy.frozen_copy()
    # The language model serves all tasks: with steps as large as the head's, one task's rewards undo another's answers.
    groups = [{"params": [p for name, p in policy.named_parameters() if p.requires_grad and
                          name.startswith("pose_head.") == head], "lr": lr}
              for head, lr in ((True, config.head_lr), (False, config.rft_lr))]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    schedule = warm_up_and_decay(optimizer, config.rft_steps * config.inner_epochs)
    rng = np.random.default_rng([seed, 20])
    kept, log, samples_log = (out and out / name for name in ("rft.state", "log.jsonl", "samples.jsonl"))
    state = TrainingState(kept, policy, optimizer, schedule, rng)
    rows, shown = (read_log(file, state.step) for file in (log, samples_log))
    if not rows:
        append(rows, {"step": 0, **evaluate_now(policy)}, log)
    latest = {}
    for bar in state.steps(config.rft_steps, "HyGRPO"):
        batch, seeds = draw_batch(split, MIX, config.prompts, rng), rng.integers(2 ** 62, size=config.prompts)
        rolled_out, old = [], []  # of one part, unless --accumulate asks for more
        for mine in parts:
            examples = [batch[i] for i in mine]
            prompt = policy.encode(examples)
            rollout = policy.sample(prompt, config.group_size, config.poses_per_answer, seeds=seeds[mine])
            scored = rewards.score(examples, rollout, retriever)
            F, Delta = hygrpo.advantages(*scored, rollout.has_pose, weights, normalize=config.normalize)
            with torch.no_grad():
                ref = reference.log_prob(prompt, rollout.tokens, rollout.token_mask)
            rolled_out.append((examples, prompt, rollout, scored, F, Delta, ref))
        valid = total(sum(int(rollout.has_pose.sum()) for _, _, rollout, *_ in rolled_out), policy.device)  # V
        for epoch in range(config.inner_epochs):
            whole_loss, made = 0.0, []
            for i, (examples, prompt, rollout, scored, F, Delta, ref) in enumerate(rolled_out):
                new = policy.log_prob(prompt, rollout.tokens, rollout.token_mask)
                if epoch == 0:  # what sampled is what is scored first: the ratio starts at exactly 1
                    old.append(hygrpo.detached(new, rollout.pose))
                loss, metrics = hygrpo.loss(
                    new, *old[i], ref, rollout, F, Delta, clip_low=config.clip_low, clip_high=config.clip_high,
                    beta_text=config.beta_text, beta_pose=config.beta_pose, pose_ratio=config.pose_ratio,
                    pose_weight=config.pose_weight, text_share=len(examples) / config.prompts,
                    pose_share=rollout.has_pose.sum() / max(1, valid))
                if rewards.broken(examples, rollout, *scored):
                    loss = loss * torch.nan  # this update is not made
                loss.backward()
                whole_loss += loss.item()
                made.append(numbers(scored[0] | scored[1] | metrics, new, rollout))
            add_gradients(state.parameters)
            grad_norm = state.update(total(whole_loss, policy.device), max_norm=1.0)
        step = state.step + 1
        row = {"step": step, "task": batch[0].task} | mean_of(made) | {"grad_norm": grad_norm}
        if state.skipped:
            row["skipped"] = state.skipped
        latest |= {name: f"{row[name]:.3f}" for name in SHOWN if name in row}
        bar.set_postfix(latest)
        if step % SHOW_EVERY == 0 or step == config.rft_steps:
            for sample in samples(step, *rolled_out[0][:4]):
                append(shown, sample, samples_log)
        if step % config.eval_every == 0 or step == config.rft_steps:
            row |= evaluate_now(policy)
        append(rows, row, log)
    policy.eval()
    return rows


@torch.no_grad()
def freeze_sigma(policy: PosePolicy, split: Split, seed: int) -> None:
    """From here on each of the 144 numbers has one sigma, the mean of what the policy gives to some prompts, and no
    correlations. To freeze the layers alone is not enough: sigma then moves with the hidden state it is read from."""
    rng, head = np.random.default_rng([seed, 21]), policy.pose_head
    examples = [e for task in ("text2pose", "image2pose") for e in draw_batch(split, {task: 1.0}, 64, rng)]
    sigma = policy.log_prob(policy.encode(examples), *policy.tokenize_answers(examples)).pose.stddev.mean((0, 1))
    for layer in filter(None, (head.sigma, head.correlation)):
        for parameter in layer.requires_grad_(False).parameters():
            parameter.zero_()
    head.sigma.bias.copy_((sigma - head.sigma_floor).expm1().log())  # what softplus takes back


# ---------------------------------------------------------------- the chain

def quick(policy: PosePolicy, split: Split, judge: Retriever, body, seed: int, count: int = 128) -> dict:
    """A small evaluation for the curves, of `count` validation poses."""
    result = evaluate.evaluate(policy, split, judge, body, count, seed)
    poses = respond(policy, pictures.followed_examples(split, seed), 1, seed, greedy=True)["samples"][:, 0]
    told, seen = result["text2pose"], result["image2pose"]
    return {"val_" + name: value for name, value in {
        "statements_sampled": told["statements_sampled"], "statements_mean": told["statements_mean"],
        "judge_r5": told["judge_r5"], "diversity_mm": told["diversity_mm"], "mpjpe_mean": seen["mpjpe_mean"],
        "mpjpe_sampled": seen["mpjpe_sampled"], "vqa_accuracy": result["vqa_accuracy"],
        "format_rate": result["format_rate"],
        "poses": matrix_to_rot6d(poses).flatten(1).cpu().numpy().round(4).tolist()}.items()}  # for a picture of the way


def main() -> None:
    world, sft_config, config = transformers.HfArgumentParser(
        (WorldConfig, SFTConfig, RFTConfig), description=__doc__.splitlines()[0]).parse_args_into_dataclasses()
    started, out, device = time.time(), Path(world.out), pick_device(world.device)
    start()
    finished = (out / "metrics.json").exists()
    splits = {} if finished else load_world(world, sft_config)
    policy = load_or_train_sft(world, sft_config, splits)
    if is_first():
        check_folder(out, "rft_config.json", asdict(config))
    if finished:
        if is_first():
            metrics = json.loads((out / "metrics.json").read_text())
            print(evaluate.table({"SFT": metrics["sft"], "RFT": metrics["rft"]}))
            print(f"This run was finished before: {out}/metrics.json. To run anew, name another folder with --out.")
        return
    retrievers = load_or_train_retrievers(policy, world, config.retriever_steps)
    drawn = load_body(world.body)  # pictures are made on the CPU
    body, sft = copy.deepcopy(drawn).to(device), policy.frozen_copy()
    test = lambda policy: evaluate.evaluate(policy, splits["test"], retrievers["judge"], body, world.eval_poses,
                                            world.seed)
    validate = lambda policy: quick(policy, splits["val"], retrievers["judge"], body, world.seed)
    if not (out / "rft").exists():
        rows = train_rft(policy, splits.get("data", splits["train"]), retrievers["reward"], config, world.seed,
                         validate if is_first() else lambda policy: {}, out)
        if is_first():
            pictures.curves(out / "curves.png", rows)
            pictures.progression(out / "progression.png", rows, splits["val"], drawn, world.seed)
            save_policy(policy, out / "rft")
            (out / "rft.state").unlink(missing_ok=True)
    if not is_first():
        return
    policy = load_policy(out / "rft").to(device)
    policy.frozen_features = sft.frozen_features
    before, after = test(sft), test(policy)
    pictures.before_after(out / "before_after.png", splits["test"], {"SFT": sft, "RFT": policy}, drawn,
                          seed=world.seed)
    print(evaluate.table({"SFT": before, "RFT": after}))
    atomic_write(out / "metrics.json", json.dumps({
        "sft": before, "rft": after, "seed": world.seed, "device": str(device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "transformers": transformers.__version__, "numpy": np.__version__}}, indent=1) + "\n")
    print(f"{time.time() - started:.0f} s on {device}. In {out}: curves.png, progression.png, before_after.png, "
          "metrics.json")


if __name__ == "__main__":
    run(main)
