"""Stage one, supervised fine-tuning: imitate true answers and true poses.

    loss = - mean_t log pi(a_t | q, a_<t)  +  w  mean_d sg[sigma_d]^(2 b) (-log N(p_d; mu_d, sigma_d))
           + v  mean_j ||J_j(mu) - J_j(p)||                                    where there is an image
The second term is the beta-NLL of Seitzer et al. (2022): weighing each number by its own variance (without gradient)
keeps hard numbers from being explained away by a large sigma; with b = 1 the mean learns as by squared error. The third
is the error of the joints that kinematics make of the mean pose. Matrices of `tiny` are taught by Muon
(engine/muon.py). `log_prob` scores answers as in stage two. Before it the two image encoders of `tiny`, which has no
pre-trained ones, are made and frozen (builtin/tiny_encoders.py). Another VLM brings its own tower, and can get LoRA.

    python train_sft.py [--sft_steps 950] [--poses DIR] [--out runs]
    python train_sft.py --vlm HuggingFaceTB/SmolVLM-256M-Instruct --lora_rank 16 --picture 224 --sft_batch 8
Read next: evaluate.py, which measures a policy.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Independent

from body import forward_kinematics, matrix_to_rot6d, rot6d_to_matrix
from builtin.tiny_encoders import ENCODERS, train_encoders  # weights and rates: for notes_of
from data import Example, Split, draw_batch
from engine.checkpoint import TrainingState, warm_up_and_decay
from engine.muon import MuonAdamW
from engine.distributed import add_gradients, is_first, own_parts, processes, start, total, wait
from engine.lock import hold
from engine.runtime import pick_device, run
from engine.saving import load_policy, save_policy
from engine.settings import Count, CountOrNone, Number, read_settings
from engine.start_from import check_run, notes_of
from engine.true_answers import check_true_answers
from engine.world import WorldConfig, build_policy, check_world, keep_features, load_world
from hygrpo import gaussian_log_prob_terms
from model import PosePolicy
from real.mixture import Mixture

BETA_NLL, POSE_WEIGHT, JOINT_WEIGHT = 1.0, 20.0, 6.0
MUON_LR = 0.02
MIX = {"text2pose": 0.35, "image2pose": 0.20, "image2text": 0.10, "vqa": 0.35}


@dataclass
class SFTConfig:
    vlm: str = field(default="tiny", metadata={"help": "tiny, or a VLM: its name on the Hugging Face hub, or a folder"})
    lora_rank: CountOrNone = field(default=0, metadata={"help": "rank of LoRA, often 16; 0: train the VLM itself"})
    lora_alpha: Number = field(default=32.0, metadata={"help": "LoRA is scaled by this over its rank"})
    lora_targets: list[str] | None = field(default=None, metadata={
        "help": "names of layers to adapt, as q_proj v_proj; default: all linear ones of the language model"})
    vlm_lr: Number = field(default=2e-4, metadata={"help": "peak learning rate of LoRA, or of a VLM that is not tiny"})
    pose_encoder: str | None = field(default=None, metadata={
        "help": "backbone of transformers (name or folder), kept frozen; default: a small CNN, trained first"})
    covariance: Literal["diag", "lowrank", "full"] = field(
        default="diag", metadata={"help": "of the Gaussian pose head: no correlations, some, all"})
    encoder_steps: Count = field(default=2200, metadata={
        "help": "steps of both image encoders: 64 pictures each, 16 of them for the vision tower"})
    sft_steps: Count = field(default=950, metadata={"help": "steps of supervised fine-tuning"})
    sft_batch: Count = field(default=48, metadata={"help": "examples a step"})
    sft_lr: Number = field(default=2.5e-3, metadata={"help": "peak learning rate at a hidden size of 128"})
    sft_accumulate: Count = field(default=1, metadata={"help": "parts in which a batch is run, to save memory"})


# ---------------------------------------------------------------- supervised fine-tuning

def sft_loss(policy: PosePolicy, examples: Sequence[Example],
             counts: tuple[int, int] | None = None) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of the answers plus beta-NLL of the poses in them plus, of images, joint errors of the mean pose.

    counts: of the tokens and of the poses by which the sums are divided, those of the whole batch where `examples` are
    a part of it, so that the losses of the parts add up; default: those of `examples`."""
    prompt = policy.encode(examples)  # 2. encode: (B, P)
    tokens, mask = policy.tokenize_answers(examples)  # (B, 1, T)
    scores = policy.log_prob(prompt, tokens, mask)  # 3. score the true answers: (B, 1, T), a Gaussian each: (B, 1)
    token_count, pose_count = counts or count_answers(policy, tokens, mask)
    text = -(scores.log_prob * mask).sum() / token_count
    has_pose = (tokens == policy.pose_id).any(-1)[:, 0]  # (B,)
    rotmats = [torch.eye(3).expand(24, 3, 3) if e.rotmats is None else e.rotmats for e in examples]  # eye: not used
    true = matrix_to_rot6d(torch.stack(rotmats)).flatten(1).to(policy.device)  # (B, 144)
    terms = gaussian_log_prob_terms(scores.pose, true[:, None])[:, 0]  # (B, 144)
    # With correlations, the spread of a number given those before it: by the marginal one sigma would grow without end.
    spread = scores.pose.stddev if isinstance(scores.pose, Independent) else scores.pose.scale_tril.diagonal(0, -2, -1)
    weight = spread.detach()[:, 0] ** (2 * BETA_NLL)
    pose = -(weight * terms).mean(-1).masked_fill(~has_pose, 0.0).sum() / max(1, pose_count)
    # An image shows one pose: the mean is drawn to its joints, in which the errors along a limb add up. A sentence fits
    # many poses, and the mean of those is no pose that it describes.
    shown = has_pose & torch.tensor([e.image is not None for e in examples], device=policy.device)  # (B,)
    mean, true = (rot6d_to_matrix(x[shown].unflatten(-1, (24, 6))) for x in (scores.pose.mean[:, 0], true))
    error = (forward_kinematics(mean)[0] - forward_kinematics(true)[0]).norm(dim=-1).mean(-1)  # (shown,) metres
    joints = error.sum() / max(1, pose_count)
    metrics = {"text": text}  # and what else these examples have
    metrics |= {"pose": pose, "sigma": scores.pose.stddev[has_pose].mean()} if has_pose.any() else {}
    metrics |= {"joints": joints} if shown.any() else {}
    return text + POSE_WEIGHT * pose + JOINT_WEIGHT * joints, {k: v.item() for k, v in metrics.items()}  # 4. the loss


def count_answers(policy: PosePolicy, tokens: Tensor, mask: Tensor) -> tuple[int, int]:
    """How many tokens, and how many poses, answers (B, 1, T) hold."""
    return int(mask.sum()), int((tokens == policy.pose_id).any(-1).sum())


def train_sft(policy: PosePolicy, split: Split | Mixture, config: SFTConfig, seed: int,
              state_file: Path | None = None) -> None:
    """Teach the policy in place on fresh words for the poses of `split`. state_file: of a run that was stopped."""
    rng = np.random.default_rng([seed, 10])
    parameters, matrices = [p for p in policy.parameters() if p.requires_grad], []
    groups = [{"params": parameters}]
    if config.vlm != "tiny":  # what others trained takes smaller steps than what is new
        new = {id(p) for module in (policy.pose_head, policy.pose_projector) for p in module.parameters()}
        groups = [{"params": [p for p in parameters if id(p) in new], "lr": config.sft_lr * policy.pose_head.rate},
                  {"params": [p for p in parameters if id(p) not in new], "lr": config.vlm_lr}]
    else:
        inside = policy.vlm.get_decoder().layers, policy.pose_projector, policy.pose_head.trunk
        matrices = [p for module in inside for p in module.parameters() if p.dim() == 2]
    optimizer = MuonAdamW(groups, matrices, muon_lr=MUON_LR, muon_decay=0.1, lr=config.sft_lr, betas=(0.9, 0.98),
                          weight_decay=0.01)
    schedule = warm_up_and_decay(optimizer, config.sft_steps)
    policy.train()
    parts = own_parts(config.sft_batch, config.sft_accumulate)  # rows of a batch; one part, unless they are asked for
    state = TrainingState(state_file, policy, optimizer, schedule, rng)
    for bar in state.steps(config.sft_steps, "SFT"):
        batch, batch_loss = draw_batch(split, MIX, config.sft_batch, rng), 0.0  # 1. draw: B examples of one task
        counts = count_answers(policy, *policy.tokenize_answers(batch)) if processes() * len(parts) > 1 else None
        for rows in parts:
            loss, metrics = sft_loss(policy, [batch[i] for i in rows], counts)  # 2. to 4.
            loss.backward()
            batch_loss += loss.item()
        add_gradients(parameters)
        state.update(whole := total(batch_loss, policy.device), max_norm=1.0)  # 5. update
        if state.step % 10 == 0:  # of a batch in parts, `metrics` are those of the last part
            bar.set_postfix({name: f"{x:.3f}" for name, x in ({"loss": whole} if counts else metrics).items()})
    policy.eval()


# ---------------------------------------------------------------- the stage as a whole

def load_or_train_sft(world: WorldConfig, config: SFTConfig, splits: dict[str, Split | Mixture]) -> PosePolicy:
    """The SFT policy in `world.out`/sft, trained first where it is missing, with its encoders in `world.out`/encoders.

    It is read from there even when it was just written: a run that goes on later is the same run."""
    out, device, features = Path(world.out), pick_device(world.device), {}
    if not (out / "sft").exists():
        if is_first() and not (out / "encoders").exists():
            policy, is_tiny = build_policy(world, config, splits, MIX), config.vlm == "tiny"
            check_true_answers(policy, splits["train"])
            if is_tiny or not config.pose_encoder:
                train_encoders(policy, splits["train"], config.encoder_steps, world.seed, towers=is_tiny,
                               state_file=out / "encoders.state")
            save_policy(policy, out / "encoders")
        wait()
        policy = load_policy(out / "encoders").to(device)
        keep_features(policy, splits)
        train_sft(policy, splits.get("data", splits["train"]), config, world.seed, out / "sft.state")
        if is_first():
            if "data" in splits and splits["data"].left_out:
                print(f"{splits['data'].left_out} rows of --data were left out since this start")
            save_policy(policy, out / "sft")
            for name in ("encoders.state", "sft.state"):
                (out / name).unlink(missing_ok=True)
        wait()
        features = policy.frozen_features
    policy = load_policy(out / "sft").to(device)
    policy.frozen_features = features
    keep_features(policy, splits)
    return policy


def main() -> None:
    world, config = read_settings(__doc__, WorldConfig, SFTConfig)
    started, out, notes = time.time(), Path(world.out), notes_of(world, config)
    start(world.device)
    check_world(world, config)
    check_run(out, notes)
    with hold(out):
        splits = load_world(world, config)
        check_run(out, notes, write=is_first())
        load_or_train_sft(world, config, splits)
    if is_first():
        print(f"SFT policy in {world.out}/sft, {time.time() - started:.0f} s; next: train_rft.py, with these settings")


if __name__ == "__main__":
    run(main)
