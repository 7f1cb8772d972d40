"""What a run starts from: its world (poses, pictures, examples) and a policy that nothing has been taught yet.

Made-up poses or motion capture, drawn; real data beside them; `tiny` made from nothing, or a VLM of the hub.
`config` below is the SFTConfig of train_sft.py, which is where a reader goes next.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers

from builtin.splits import load_splits
from builtin.tiny import PoseEncoder, build_tiny, corpus
from data import TASKS, Split
from engine.distributed import own_parts
from engine.runtime import half_precision, own_seed, pick_device
from engine.settings import Count, OutputFolder, SeedNumber
from model import PosePolicy
from real.amass import SPLITS, amass_files
from real.formats import read_data
from real.hub import check_common_path, load_processor, load_vlm, served
from real.lora import add_adapter, lora_targets
from real.mixture import Mixture
from real.pose_encoders import BackbonePoseEncoder, backbone_of
from real.smpl import load_body


@dataclass
class WorldConfig:
    poses: str | None = field(default=None, metadata={"help": "folder of AMASS npz files; default: the built-in poses"})
    data: list[str] | None = field(default=None, metadata={
        "help": "real data to train on, each KIND:PATHS=WEIGHT, see formats.py; default: the poses, with pictures"})
    skip_bad: bool = field(default=False, metadata={"help": "leave out what is wrong in --data instead of stopping"})
    body: str | None = field(default=None, metadata={"help": "SMPL: .pkl, .npz or a folder; default: built in"})
    out: OutputFolder = field(default="runs", metadata={"help": "folder for all that is made"})
    seed: SeedNumber = field(default=0, metadata={"help": "seed of data, initialisation, batches and samples"})
    device: str | None = field(default=None, metadata={"help": "cuda, mps or cpu; default: the best there is"})
    train_poses: Count = field(default=12_000, metadata={"help": "poses to train on, each with a picture"})
    eval_poses: Count = field(default=500, metadata={"help": "poses to test on, at most; as many for validation"})
    picture: Count = field(default=64, metadata={"help": "pixels a side; 64 for tiny, 224 or more for another VLM"})


def build_policy(world: WorldConfig, config, splits: dict[str, Split | Mixture],
                 mix: dict[str, float] | None = None) -> PosePolicy:
    """The policy before SFT: `tiny` made from nothing, or the VLM that was asked for. mix: the odds of the tasks of
    real data, of whose words `tiny` takes its vocabulary; default: equal ones."""
    device = pick_device(world.device)
    torch.manual_seed(own_seed(world.seed, 12))
    if config.vlm == "tiny":
        texts = corpus(splits["train"], 1000, rng := np.random.default_rng([world.seed, 11]))
        if "data" in splits:  # its words, too, shall not be spelled letter by letter
            odds = mix or dict.fromkeys(TASKS, 1.0)
            drawn = [example for _ in range(50) for example in splits["data"].draw(odds, 20, rng)]
            texts += [text for example in drawn for text in (example.prompt, example.answer)]
        vlm, processor, pose_encoder = build_tiny(texts)
    else:
        # What is trained itself needs the precision; the rest is as good in half of it.
        vlm, processor = load_vlm(config.vlm, half_precision(device) if config.lora_rank else torch.float32)
        with served(vlm):
            check_common_path(PosePolicy(vlm.to(device), processor, PoseEncoder(tokens=0)))
        if config.lora_rank:
            vlm = add_adapter(vlm, config.lora_rank, config.lora_alpha, config.lora_targets)
        pose_encoder = PoseEncoder()
    if config.pose_encoder:
        pose_encoder = BackbonePoseEncoder(config.pose_encoder)
    return PosePolicy(vlm, processor, pose_encoder, config.covariance, image_size=world.picture).to(device)


def check_world(world: WorldConfig, config) -> None:
    """ValueError for settings that do not go together, for models, bodies and motion capture that are not there, and
    for a batch that cannot be split as is asked: what can be told without reading much."""
    pick_device(world.device)
    if config.vlm == "tiny" and (config.lora_rank or world.picture != 64):
        raise ValueError("tiny is trained whole, on pictures of 64 pixels: --lora_rank and --picture need --vlm")
    if config.lora_targets and not config.lora_rank:
        raise ValueError("--lora_targets names what LoRA adapts: give --lora_rank too, often 16, or all is trained")
    own_parts(config.sft_batch, config.sft_accumulate)
    for made in (Path(world.out) / name for name in ("encoders", "sft", "rft")):
        if made.exists() and not (made / "pose.json").is_file():
            raise ValueError(f"{made} is in the way: it holds no policy; move it elsewhere, and it is made anew")
    if not (Path(world.out) / "encoders").exists():  # later all is read from there
        if config.pose_encoder:
            backbone_of(config.pose_encoder)
        elif world.picture < 64:
            raise ValueError(f"--picture {world.picture}: the built-in pose encoder reads 64 pixels or more; raise "
                             "it, or give --pose_encoder")
        if config.vlm != "tiny":
            architecture, _ = load_processor(config.vlm)
            if config.lora_rank and config.lora_targets:
                with torch.device("meta"):  # without its weights
                    vlm = transformers.AutoModelForImageTextToText.from_config(architecture)
                lora_targets(vlm, config.lora_targets)
    if world.poses:
        for split in SPLITS:
            amass_files(world.poses, split)
    load_body(world.body)


def load_world(world: WorldConfig, config) -> dict[str, Split | Mixture]:
    """The three splits that a configuration asks for and, with --data, what the policy is to be trained on as `data`.
    The image encoders are still made from the train split, and val and test still judge.

    ValueError, before minutes of drawing pictures, for what `check_world` finds, and for faults in --data."""
    check_world(world, config)
    counts = {"train": world.train_poses, "val": world.eval_poses, "test": world.eval_poses}
    real = {}
    if world.data:
        real = {"data": read_data(world.data, image_size=world.picture, skip_bad=world.skip_bad)}
    return load_splits(world.poses, counts, world.seed, body_model=load_body(world.body), size=world.picture) | real


def keep_features(policy: PosePolicy, splits: dict[str, Split | Mixture]) -> None:
    """Encode the pictures that are to be trained on, where many go at once, until no more are kept: every batch would
    leave some to do. Real data are read as they are drawn: an example that the policy cannot read whole is then a fault
    of its row."""
    if "data" in splits:
        splits["data"].meet(policy)
    elif splits and (at_once := policy.images_at_once) > 1:
        images = splits["train"].images
        for start in range(0, len(images), at_once):  # a call holds all that it gives, however little may be kept
            kept = len(policy.frozen_features)
            policy.image_features(images[start:start + at_once])
            if len(policy.frozen_features) == kept:
                break
