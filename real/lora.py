"""LoRA (Hu et al. 2022), as peft has it: small matrices beside the linear layers of an unchanged language model.

    y = W x + (alpha / rank) B A x,    W frozen, A (rank, in) and B (out, rank) trained, B = 0 at first
So a policy of a large VLM needs little memory for its optimiser, and its reference (`PosePolicy.frozen_copy`) is the
same W with another A and B. `merge_adapter` writes B A into W at the end.
Read next: model.py, which trains the rows of <POSE> beside an adapter.
"""

import warnings
from pathlib import Path

from torch import nn

from real.hub_faults import first_line


def quiet_peft() -> warnings.catch_warnings:
    """peft asks a model by an old name whether it checkpoints activations: transformers warns, and answers."""
    return warnings.catch_warnings(action="ignore", category=FutureWarning)


def lora_targets(vlm: nn.Module, targets: list[str] | None = None) -> list[str]:
    """The linear layers of a VLM's language model, by their whole names, or those of them called one of `targets`.
    ValueError for a target that none is called."""
    decoder = vlm.get_decoder()
    prefix = next(name for name, module in vlm.named_modules() if module is decoder)
    linear = [f"{prefix}.{name}" for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    kinds = sorted({name.split(".")[-1] for name in linear})
    if unknown := set(targets or ()) - set(kinds):
        raise ValueError(f"--lora_targets {' '.join(sorted(unknown))}: LoRA needs targets among {', '.join(kinds)}")
    return [name for name in linear if targets is None or name.split(".")[-1] in targets]


def add_adapter(vlm: nn.Module, rank: int, alpha: float, targets: list[str] | None = None) -> nn.Module:
    """The VLM with LoRA beside the layers that `lora_targets` finds, a PeftModel. ValueError for a rank below 1."""
    if rank < 1:
        raise ValueError(f"LoRA needs a rank of 1 or more (it is {rank})")
    from peft import LoraConfig, get_peft_model  # slow, and only where there is an adapter
    with quiet_peft():
        return get_peft_model(vlm, LoraConfig(r=rank, lora_alpha=alpha, target_modules=lora_targets(vlm, targets)))


def read_adapter(vlm: nn.Module, folder: str | Path) -> nn.Module:
    """The VLM with the adapter that a policy saved in `folder`. ValueError where it fits another VLM."""
    from peft import PeftModel  # as above
    try:
        with quiet_peft():
            return PeftModel.from_pretrained(vlm, folder, is_trainable=True)
    except Exception as error:  # peft, torch and safetensors each raise their own
        raise ValueError(f"the adapter does not fit {vlm.name_or_path}, or is damaged: {first_line(error)}") from error


def merge_adapter(policy) -> None:
    """Write a policy's adapter and its rows of <POSE> into the VLM's weights, in place, so that the VLM needs neither
    peft nor this project to be used. A policy without an adapter stays as it is.

    policy: a model.PosePolicy."""
    if policy.has_adapter:
        policy.vlm = policy.vlm.merge_and_unload()
        tables = policy.vlm.get_input_embeddings().weight, policy.vlm.get_output_embeddings().weight
        for table, row in zip(tables, policy.pose_rows):
            table.data[policy.pose_id] += row.data.to(table)
        policy.pose_rows, policy.has_adapter = None, False
        policy.freeze_encoders()
