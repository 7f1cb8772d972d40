"""A policy in one folder, in Hugging Face layout: written whole or not at all, and checked when it is read.

The VLM (or its LoRA adapter) and the processor are as transformers and peft save them; beside them `pose.safetensors`
holds the projector, the pose head, a pose encoder of ours and the rows of <POSE>, and `pose.json` the settings.

    save_policy(policy, "runs/rft")
    policy = load_policy("runs/rft")
Read next: real/hub.py, which reads the VLM.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file, save_file

from captions import POSE_TOKEN
from engine.checkpoint import atomic_folder
from engine.runtime import is_out_of_memory
from model import PosePolicy
from real.hub import load_vlm
from real.hub_faults import first_line
from real.lora import read_adapter
from real.pose_encoders import build_pose_encoder

ELSEWHERE = "vlm.", "pose_encoder.backbone."  # not in pose.safetensors: transformers save and read these


def save_policy(policy: PosePolicy, folder: str | Path) -> None:
    """Write `policy` to `folder`, in place of what may be there."""
    settings = {"covariance": policy.pose_head.covariance, "sigma_floor": policy.pose_head.sigma_floor,
                "picture": policy.image_size, "pose_id": policy.pose_id, "pose_encoder": policy.pose_encoder.config}
    if policy.has_adapter:
        settings |= {"vlm": policy.vlm.name_or_path, "dtype": str(policy.vlm.dtype).removeprefix("torch."),
                     "spare_rows": "mean"}  # of a padded vocabulary; earlier policies left them as they were
    tensors = {name: x.contiguous() for name, x in policy.state_dict().items() if not name.startswith(ELSEWHERE)}
    with atomic_folder(folder) as partial:
        policy.vlm.save_pretrained(partial, **{"save_embedding_layers": False} if policy.has_adapter else {})
        policy.processor.save_pretrained(partial)
        save_file(tensors, partial / "pose.safetensors")
        (partial / "pose.json").write_text(json.dumps(settings))


def load_policy(folder: str | Path) -> PosePolicy:
    """Read what `save_policy` wrote, onto the CPU and in evaluation mode. FileNotFoundError where there is no policy,
    ValueError where the parts are not of one policy, or where a model that it was taught on is not where it was."""
    folder = Path(folder)
    if not (folder / "pose.json").is_file():
        if inside := [str(path.parent) for path in sorted(folder.glob("[rs]ft/pose.json"))]:  # it is a run
            raise FileNotFoundError(f"{folder} is the folder of a run: name a policy in it, {' or '.join(inside)}")
        raise FileNotFoundError(f"{folder} holds no policy; python train_rft.py, or train_sft.py, trains one")
    try:
        settings = json.loads((folder / "pose.json").read_text())
        with _expected_at(folder, "vlm", settings.get("vlm")):
            vlm, processor = load_vlm(settings.get("vlm", folder), settings.get("dtype", "auto"),
                                      "vlm" not in settings or "spare_rows" in settings)
        with _expected_at(folder, "pose_encoder", settings["pose_encoder"].get("name")):
            pose_encoder = build_pose_encoder(settings["pose_encoder"])
        policy = PosePolicy(read_adapter(vlm, folder) if "vlm" in settings else vlm, processor, pose_encoder,
                            settings["covariance"], settings["sigma_floor"], settings.get("picture", 64))
        if settings.get("pose_id", policy.pose_id) != policy.pose_id:
            raise ValueError(f"trained with another vocabulary, in which {POSE_TOKEN} was token {settings['pose_id']}")
        saved, expected = load_file(folder / "pose.safetensors"), policy.state_dict()
        wrong = [k for k in saved if k not in expected or saved[k].shape != expected[k].shape]
        wrong += [k for k in expected if k not in saved and not k.startswith(ELSEWHERE)]
        wrong += [k for k, tensor in {**expected, **saved}.items() if not tensor.isfinite().all()]
        if wrong:
            raise ValueError(f"pose.safetensors does not fit pose.json, or is not finite: {', '.join(wrong[:3])}")
        policy.load_state_dict(saved, strict=False)
    except Exception as error:  # json, safetensors, transformers, jinja and torch each raise their own
        if is_out_of_memory(error):
            raise
        reason = first_line(error) if isinstance(error, (ValueError, OSError)) else repr(error)
        if not isinstance(error, ElsewhereError):
            reason += ("; if it was copied, copy it again, else move it elsewhere and the command that made it makes "
                       "it anew")
        raise ValueError(f"{folder} cannot be read as a policy: {reason}") from error
    return policy.eval()


class ElsewhereError(ValueError):
    """What a policy is made of lies in another place, and that cannot be read: the policy itself may be sound."""


@contextmanager
def _expected_at(folder: Path, entry: str, place: str | None) -> Iterator[None]:
    """Say of a model of others, which the policy in `folder` does not hold itself, how to point to where it is now."""
    try:
        yield
    except ValueError as error:
        if place is None:
            raise
        raise ElsewhereError(f"its {entry} was expected at {error}; if it was moved, write where it is now in place of "
                         f"{place} in {folder}/pose.json, and nothing is lost") from error
