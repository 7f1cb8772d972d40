"""How the two image encoders of `tiny` are made, which has no pre-trained ones: before stage one, then frozen.

The pose-aware encoder learns to regress poses (the paper takes HMR2.0's), the VLM's vision tower and projector to name
the statements of a picture (the paper: CLIP, LLaVA's alignment stage). Read next: train_sft.py.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from body import forward_kinematics
from builtin.tiny import PoseEncoder
from captions import STATEMENTS
from data import Split
from engine.checkpoint import TrainingState, warm_up_and_decay
from engine.muon import MuonAdamW
from engine.runtime import own_seed
from model import PosePolicy

ENCODERS = {"joints": 6.0, "located": 12.0, "named": 6.0, "lr": 3e-3, "muon_lr": 0.03}  # weights and rates


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures (N, H, W, 3) shifted by up to 3 pixels, each eighth of them alike. Light, colours and grain differ among
    pictures as it is."""
    shifts = torch.randint(-3, 4, (8, 2), generator=generator).tolist()
    return torch.cat([part.roll(shift, (1, 2)) for part, shift in zip(images.chunk(8), shifts)])


def train_encoders(policy: PosePolicy, split: Split, steps: int, seed: int, batch_size: int = 64,
                   towers: bool = True, state_file: Path | None = None) -> None:
    """Teach the pose-aware encoder to regress poses and the vision tower to name statements, then freeze both.
    Without `towers` the VLM is left as it is; a pose encoder of transformers always is.

    The pose loss is the mean absolute error of rotation matrices, the mean distance of joints after kinematics (weighed
    by `joints` of ENCODERS), and that of joints read straight from the features (`located`), which is learned soonest.
    Statements are read from the pose features too (`named`): what is linear in them, the language model finds with few
    questions.
    """
    generator = torch.Generator().manual_seed(own_seed(seed, 13))
    device = policy.device
    own_encoder = isinstance(policy.pose_encoder, PoseEncoder)
    tower = [policy.vlm.model.vision_tower, policy.vlm.model.multi_modal_projector] if towers else []
    # Readers that are thrown away: statements from both kinds of features, joints straight from the pose features.
    width = policy.pose_encoder.width
    namer = nn.Linear(policy.pose_projector[1].out_features, len(STATEMENTS)).to(device)
    pose_namer, locator = nn.Linear(width, len(STATEMENTS)).to(device), nn.Linear(width, 72).to(device)
    modules = nn.ModuleList([*([policy.pose_encoder] if own_encoder else []), *tower, namer, pose_namer, locator])
    modules.requires_grad_(True).train()
    filters = [p for p in policy.pose_encoder.parameters() if own_encoder and p.dim() == 4]
    optimizer = MuonAdamW([{"params": list(modules.parameters())}], filters, muon_lr=ENCODERS["muon_lr"],
                          muon_decay=0.1, iterations=3, lr=ENCODERS["lr"], weight_decay=0.05)
    schedule = warm_up_and_decay(optimizer, steps)
    images, holds = torch.from_numpy(split.images), torch.from_numpy(split.holds).float()
    image_joints = forward_kinematics(split.image_rotmats)[0]
    if towers:
        normalise = policy.processor.image_processor
        mean, std = (255 * torch.tensor(x, device=device) for x in (normalise.image_mean, normalise.image_std))
    state = TrainingState(state_file, modules, optimizer, schedule, generator)
    for bar in state.steps(steps, "image encoders"):
        rows = torch.randint(len(images), (batch_size,), generator=generator)
        batch, name_error = augment(images[rows], generator).to(device), nn.functional.binary_cross_entropy_with_logits
        loss, shown, true_names = 0.0, {}, holds[rows].to(device)
        if own_encoder:
            features = policy.pose_encoder(batch)  # (N, tokens, width)
            predicted, pooled = policy.pose_encoder.regress(features), features.mean(1)  # (N, 24, 3, 3), (N, width)
            joints = locator(pooled).unflatten(-1, (24, 3))  # (N, 24, 3)
            true, true_joints = split.image_rotmats[rows].to(device), image_joints[rows].to(device)
            error = (forward_kinematics(predicted)[0] - true_joints).norm(dim=-1).mean()  # metres
            located = (joints - true_joints).norm(dim=-1).mean()
            pose_loss = (predicted - true).abs().mean() + ENCODERS["joints"] * error + ENCODERS["located"] * located
            pose_name_loss = name_error(pose_namer(pooled), true_names)
            loss = loss + pose_loss + ENCODERS["named"] * pose_name_loss
            shown |= {"pose": pose_loss, "joint_mm": 1000 * error, "naming": pose_name_loss}
        if towers:
            n = batch_size // 4  # of the pose, this tower sees little that the pose-aware encoder does not
            pixels = ((batch[:n] - mean) / std).movedim(-1, 1)  # (n, 3, 64, 64)
            named = torch.stack(list(policy.vlm.get_image_features(pixel_values=pixels).pooler_output))  # (n, 4, H)
            name_loss = name_error(namer(named.mean(1)), true_names[:n])
            loss, shown["vlm_naming"] = loss + name_loss, name_loss
        loss.backward()
        state.update(loss.item())
        if state.step % 20 == 0:
            bar.set_postfix({name: f"{value.item():.3g}" for name, value in shown.items()})
    policy.freeze_encoders()
    policy.eval()
