"""Stage one, supervised fine-tuning: imitate true answers and true poses.

    loss = - mean_t log pi(a_t | q, a_<t)  +  w  mean_d sg[sigma_d]^(2 b) (-log N(p_d; mu_d, sigma_d))
The second term is the beta-NLL of Seitzer et al. (2022): weighing each number by its own variance (without gradient)
keeps hard numbers from being explained away by a large sigma; with b = 1 the mean learns as by squared error. Before it
the two image encoders of `tiny`, which has no pre-trained ones, are made: the pose-aware encoder by regressing poses,
the VLM's vision tower and projector by naming the statements of a picture (what CLIP and LLaVA's alignment stage are to
the paper). From then on both are frozen. Any other VLM brings its own; it is given LoRA (real/lora.py).

    python train_sft.py [--sft_steps 950] [--poses DIR] [--out runs]
    python train_sft.py --vlm HuggingFaceTB/SmolVLM-256M-Instruct --lora_rank 16 --picture 224 --sft_batch 8
Read next: train_rft.py.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.distributions import Independent

from body import matrix_to_rot6d
from builtin.tiny import PoseEncoder, build_tiny
from builtin.tiny_encoders import train_encoders
from data import Example, Split, corpus, draw_batch, load_splits
from engine.checkpoint import TrainingState, check_folder, warm_up_and_decay
from engine.distributed import add_gradients, is_first, own_parts, processes, start, total, wait
from engine.runtime import half_precision, pick_device, run
from engine.saving import load_policy, save_policy
from hygrpo import gaussian_log_prob_terms
from model import PosePolicy
from real.formats import read_data
from real.mixture import Mixture
from real.pose_encoders import BackbonePoseEncoder
from real.hub import check_common_path, fetch, load_vlm
from real.lora import add_adapter
from real.smpl import load_body

BETA_NLL = 1.0
POSE_WEIGHT = 20.0
MIX = {"text2pose": 0.25, "image2pose": 0.25, "image2text": 0.05, "vqa": 0.45}


@dataclass
class WorldConfig:
    poses: str | None = field(default=None, metadata={"help": "folder of AMASS npz files; default: the built-in poses"})
    data: list[str] | None = field(default=None, metadata={
        "help": "real data to train on, each KIND:PATHS=WEIGHT, see formats.py; default: the poses, with pictures"})
    skip_bad: bool = field(default=False, metadata={"help": "leave out what is wrong in --data instead of stopping"})
    body: str | None = field(default=None, metadata={"help": "SMPL: .pkl, .npz or a folder; default: built in"})
    out: str = field(default="runs", metadata={"help": "folder for all that is made"})
    seed: int = field(default=0, metadata={"help": "seed of data, initialisation, batches and samples"})
    device: str | None = field(default=None, metadata={"help": "cuda, mps or cpu; default: the best there is"})
    train_poses: int = field(default=8_000, metadata={"help": "poses to train on, each with a picture"})
    eval_poses: int = field(default=500, metadata={"help": "poses of the test split (at most; as many for validation)"})
    picture: int = field(default=64, metadata={"help": "pixels a side; 64 for tiny, 224 or more for another VLM"})


@dataclass
class SFTConfig:
    vlm: str = field(default="tiny", metadata={"help": "tiny, or a VLM: its name on the Hugging Face hub, or a folder"})
    lora_rank: int = field(default=0, metadata={"help": "rank of LoRA (16 is common); 0: train the VLM's own weights"})
    lora_alpha: float = field(default=32.0, metadata={"help": "LoRA is scaled by this over its rank"})
    lora_targets: list[str] | None = field(default=None, metadata={
        "help": "names of layers to adapt, as q_proj v_proj; default: all linear ones of the language model"})
    vlm_lr: float = field(default=2e-4, metadata={"help": "peak learning rate of LoRA, or of a VLM that is not tiny"})
    pose_encoder: str | None = field(default=None, metadata={
        "help": "backbone of transformers (name or folder), kept frozen; default: a small CNN, trained first"})
    covariance: str = field(default="diag", metadata={"help": "of the Gaussian pose head: diag, lowrank or full"})
    encoder_steps: int = field(default=1000, metadata={"help": "steps of both image encoders, 64 pictures each"})
    sft_steps: int = field(default=950, metadata={"help": "steps of supervised fine-tuning"})
    sft_batch: int = field(default=48, metadata={"help": "examples a step"})
    sft_lr: float = field(default=2.5e-3, metadata={"help": "peak learning rate"})
    sft_accumulate: int = field(default=1, metadata={"help": "parts in which a batch is run, to save memory"})


# ---------------------------------------------------------------- the two image encoders of `tiny`

# ---------------------------------------------------------------- supervised fine-tuning

def sft_loss(policy: PosePolicy, examples: Sequence[Example],
             counts: tuple[int, int] | None = None) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of the answers plus beta-NLL of the poses, where the answer holds one.

    counts: of the tokens and of the poses by which the sums are divided, those of the whole batch where `examples` are
    a part of it, so that the losses of the parts add up; default: those of `examples`."""
    prompt = policy.encode(examples)
    tokens, mask = policy.tokenize_answers(examples)  # (B, 1, T)
    scores = policy.log_prob(prompt, tokens, mask)
    token_count, pose_count = counts or count_answers(policy, tokens, mask)
    text = -(scores.log_prob * mask).sum() / token_count
    has_pose = (tokens == policy.pose_id).any(-1)[:, 0]  # (B,)
    rotmats = [torch.eye(3).expand(24, 3, 3) if e.rotmats is None else e.rotmats for e in examples]  # eye: not used
    true = matrix_to_rot6d(torch.stack(rotmats)).flatten(1).to(policy.device)  # (B, 144)
    terms = gaussian_log_prob_terms(scores.pose, true[:, None])[:, 0]  # (B, 144)
    # The spread that each term has: with correlations, of a number given those before it. By the marginal one, which is
    # larger, sigma would grow without end.
    spread = scores.pose.stddev if isinstance(scores.pose, Independent) else scores.pose.scale_tril.diagonal(0, -2, -1)
    weight = spread.detach()[:, 0] ** (2 * BETA_NLL)
    pose = -(weight * terms).mean(-1).masked_fill(~has_pose, 0.0).sum() / max(1, pose_count)
    sigma = scores.pose.stddev[has_pose].mean().item() if has_pose.any() else float("nan")
    return text + POSE_WEIGHT * pose, {"text": text.item(), "pose": pose.item(), "sigma": sigma}


def count_answers(policy: PosePolicy, tokens: Tensor, mask: Tensor) -> tuple[int, int]:
    """How many tokens, and how many poses, answers (B, 1, T) hold."""
    return int(mask.sum()), int((tokens == policy.pose_id).any(-1).sum())


def train_sft(policy: PosePolicy, split: Split | Mixture, config: SFTConfig, seed: int,
              kept: Path | None = None) -> None:
    """Teach the policy in place on fresh words for the poses of `split`. kept: file to go on from when it is there."""
    rng = np.random.default_rng([seed, 10])
    parameters = [p for p in policy.parameters() if p.requires_grad]
    groups = [{"params": parameters}]
    if config.vlm != "tiny":  # what others trained takes smaller steps than what is new
        new = {id(p) for module in (policy.pose_head, policy.pose_projector) for p in module.parameters()}
        groups = [{"params": [p for p in parameters if id(p) in new]},
                  {"params": [p for p in parameters if id(p) not in new], "lr": config.vlm_lr}]
    optimizer = torch.optim.AdamW(groups, lr=config.sft_lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = warm_up_and_decay(optimizer, config.sft_steps)
    policy.train()
    parts = own_parts(config.sft_batch, config.sft_accumulate)
    state = TrainingState(kept, policy, optimizer, schedule, rng)
    for bar in state.steps(config.sft_steps, "SFT"):
        batch, whole_loss = draw_batch(split, MIX, config.sft_batch, rng), 0.0
        is_split = processes() * len(parts) > 1
        counts = count_answers(policy, *policy.tokenize_answers(batch)) if is_split else None
        for rows in parts:
            loss, metrics = sft_loss(policy, [batch[i] for i in rows], counts)
            loss.backward()
            whole_loss += loss.item()
        add_gradients(parameters)
        state.update(total(whole_loss, policy.device), max_norm=1.0)
        if state.step % 10 == 0:
            bar.set_postfix({name: f"{value:.3f}" for name, value in metrics.items()})
    policy.eval()


# ---------------------------------------------------------------- the stage as a whole

def build_policy(world: WorldConfig, config: SFTConfig, splits: dict[str, Split | Mixture]) -> PosePolicy:
    """The policy before SFT: `tiny` made from nothing, or the VLM that was asked for."""
    device = pick_device(world.device)
    torch.manual_seed(world.seed)
    if config.vlm == "tiny":
        texts = corpus(splits["train"], 1000, rng := np.random.default_rng([world.seed, 11]))
        if "data" in splits:  # its words, too, shall not be spelled letter by letter
            drawn = [example for _ in range(50) for example in splits["data"].draw(MIX, 20, rng)]
            texts += [text for example in drawn for text in (example.prompt, example.answer)]
        vlm, processor, pose_encoder = build_tiny(texts)
    else:
        # What is trained itself needs the precision; the rest is as good in half of it.
        vlm, processor = load_vlm(config.vlm, half_precision(device) if config.lora_rank else torch.float32)
        check_common_path(PosePolicy(vlm.to(device), processor, PoseEncoder(tokens=0)))
        if config.lora_rank:
            vlm = add_adapter(vlm, config.lora_rank, config.lora_alpha, config.lora_targets)
        pose_encoder = PoseEncoder()
    if config.pose_encoder:
        pose_encoder = BackbonePoseEncoder(config.pose_encoder)
    return PosePolicy(vlm, processor, pose_encoder, config.covariance, image_size=world.picture).to(device)


def load_or_train_sft(world: WorldConfig, config: SFTConfig, splits: dict[str, Split | Mixture]) -> PosePolicy:
    """The SFT policy in `world.out`/sft, trained first where it is missing, with its encoders in `world.out`/encoders.

    It is read from there even when it was just written: a run that goes on later is the same run."""
    out, device, features = Path(world.out), pick_device(world.device), {}
    settings = asdict(world) | asdict(config)
    if is_first():
        noted = {name: value for name, value in settings.items() if name not in ("out", "device", "skip_bad")}
        check_folder(out, "sft_config.json", noted)
    if not (out / "sft").exists():
        if is_first() and not (out / "encoders").exists():
            policy, is_tiny = build_policy(world, config, splits), config.vlm == "tiny"
            if is_tiny or not config.pose_encoder:
                train_encoders(policy, splits["train"], config.encoder_steps, world.seed, towers=is_tiny,
                               kept=out / "encoders.state")
            save_policy(policy, out / "encoders")
        wait()
        policy = load_policy(out / "encoders").to(device)
        keep_features(policy, splits)
        train_sft(policy, splits.get("data", splits["train"]), config, world.seed, kept=out / "sft.state")
        if is_first():
            if "data" in splits and splits["data"].faults.count:
                print(f"{splits['data'].faults.count} rows of --data were left out in all")
            save_policy(policy, out / "sft")
            for name in ("encoders.state", "sft.state"):
                (out / name).unlink(missing_ok=True)
        wait()
        features = policy.frozen_features
    policy = load_policy(out / "sft").to(device)
    policy.frozen_features = features
    keep_features(policy, splits)
    return policy


def keep_features(policy: PosePolicy, splits: dict[str, Split | Mixture]) -> None:
    """Encode all pictures that are to be trained on, where many go at once: every batch would leave some to do."""
    if splits and "data" not in splits and policy.images_at_once > 1:
        policy.image_features(splits["train"].images)


def load_world(world: WorldConfig, config: SFTConfig) -> dict[str, Split | Mixture]:
    """The three splits that a configuration asks for and, with --data, what the policy is to be trained on as `data`.
    The image encoders are still made from the train split, and val and test still judge.

    ValueError, before minutes of drawing pictures, for models that are not there and for faults in --data."""
    counts = {"train": world.train_poses, "val": world.eval_poses, "test": world.eval_poses}
    if config.vlm == "tiny" and (config.lora_rank or world.picture != 64):
        raise ValueError("tiny is trained whole, on pictures of 64 pixels: --lora_rank and --picture need --vlm")
    if not (Path(world.out) / "encoders").exists():  # later all is read from there
        for name in (config.vlm, config.pose_encoder):
            if name not in ("tiny", None):
                fetch(transformers.AutoConfig, name)
    real = {}
    if world.data:
        real = {"data": read_data(world.data, image_size=world.picture, skip_bad=world.skip_bad)}
    body = load_body(world.body)
    return load_splits(world.poses, counts, world.seed, body_model=body, size=world.picture) | real


def main() -> None:
    parser = transformers.HfArgumentParser((WorldConfig, SFTConfig), description=__doc__.splitlines()[0])
    world, config = parser.parse_args_into_dataclasses()
    started = time.time()
    start()
    load_or_train_sft(world, config, load_world(world, config))
    if is_first():
        print(f"SFT policy in {world.out}/sft, {time.time() - started:.0f} s; next: train_rft.py --out {world.out}")


if __name__ == "__main__":
    run(main)
