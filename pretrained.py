"""A vision-language model that others trained: by its name on the Hugging Face hub, or from a folder in that layout.

Every family comes through the same two classes of transformers, AutoProcessor and AutoModelForImageTextToText, and is
made ready for <POSE> alike. LoRA (Hu et al. 2022) is peft's: small matrices beside the linear layers of the language
model, whose own weights stay as they were.
Read next: model.py, which makes a policy of what comes from here.
"""

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from captions import POSE_TOKEN

POSE_FEATURE_TOKEN = "<pose_feature>"  # holds the place of one feature of the pose-aware encoder


def fetch(auto: type, name: str | Path, **options):
    """`auto`.from_pretrained(name), without running what a folder may bring. ValueError, in one sentence, for whatever
    is wrong with it."""
    try:
        return auto.from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:  # transformers, huggingface_hub, safetensors and the system each raise their own
        told = (str(error).splitlines() or [type(error).__name__])[0]
        if "connect" in told:
            fault = "no such folder, and the hub cannot be reached; give a folder with the model's files, or go online"
        elif isinstance(error, ImportError) or "torchvision" in told or "video processor" in told:
            # For videos, which nobody shows them, some processors insist on these.
            fault = "its processor needs packages that are not installed; pip install torchvision num2words"
        elif "image processor" in told:
            fault = "no image processor (preprocessor_config.json or processor_config.json)"
        elif Path(name).is_dir():
            fault = f"{auto.__name__} cannot read this folder: {told}"
        else:
            fault = "neither a folder nor a model on the Hugging Face hub"
        raise ValueError(f"{name}: {fault}") from error


def absolute(name: str | Path) -> str:
    """A folder's whole path, since policies note it and may be read from elsewhere; a name on the hub as it is."""
    return str(Path(name).resolve() if Path(name).is_dir() else name)


def load_vlm(name: str | Path, dtype: torch.dtype | str = "auto") -> tuple:
    """The VLM called `name` and its processor, ready for <POSE>.

    Rows that the vocabulary gains are the mean of the others (Hewitt 2021), so that they are the same at each load.
    ValueError for what has no image processor, reads text alone, or lacks weights.
    """
    name = absolute(name)
    if not hasattr(fetch(AutoConfig, name), "vision_config"):
        raise ValueError(f"{name} is a model of text alone; give one that also reads images")
    processor = fetch(AutoProcessor, name)
    if getattr(processor, "image_processor", None) is None:
        raise ValueError(f"{name}: no image processor (preprocessor_config.json or processor_config.json)")
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(f"{name} has no chat template; give a model that was taught to chat (often called Instruct)")
    vlm, info = fetch(AutoModelForImageTextToText, name, dtype=dtype, use_safetensors=True, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"{name} lacks weights of its own architecture ({sorted(info['missing_keys'])[0]})")
    tokenizer = processor.tokenizer
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    before = vlm.get_input_embeddings().num_embeddings
    if not add_pose_tokens(tokenizer) and len(tokenizer) > before:
        raise ValueError(f"{name}: the tokenizer has {len(tokenizer)} tokens and the model only {before}; they are of "
                         "two different checkpoints")
    if len(tokenizer) > before:
        vlm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            for table in (vlm.get_input_embeddings().weight, vlm.get_output_embeddings().weight):
                table[before:] = table[:before].float().mean(0)
    return vlm.eval(), processor


def add_pose_tokens(tokenizer) -> int:
    """Give the tokenizer <POSE> and the place of a pose feature; returns how many of them are new."""
    return tokenizer.add_special_tokens({"additional_special_tokens": [POSE_TOKEN, POSE_FEATURE_TOKEN]},
                                        replace_extra_special_tokens=False)


# ---------------------------------------------------------------- LoRA

def quiet_peft() -> warnings.catch_warnings:
    """peft asks a model by an old name whether it checkpoints activations; transformers warns, and answer all the same."""
    return warnings.catch_warnings(action="ignore", category=FutureWarning)


def add_adapter(vlm: nn.Module, rank: int, alpha: float, targets: list[str] | None = None) -> PeftModel:
    """The VLM with LoRA beside the linear layers of its language model, or beside those called one of `targets`."""
    decoder = vlm.get_decoder()
    prefix = next(name for name, module in vlm.named_modules() if module is decoder)
    linear = [f"{prefix}.{name}" for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    chosen = [name for name in linear if targets is None or name.split(".")[-1] in targets]
    if not chosen or rank < 1:
        kinds = sorted({name.split(".")[-1] for name in linear})
        raise ValueError(f"LoRA needs a rank of 1 or more (it is {rank}) and targets among {', '.join(kinds)}")
    with quiet_peft():
        return get_peft_model(vlm, LoraConfig(r=rank, lora_alpha=alpha, target_modules=chosen))


def read_adapter(vlm: nn.Module, folder: str | Path) -> PeftModel:
    """The VLM with the adapter that a policy saved in `folder`. ValueError where it fits another VLM."""
    try:
        with quiet_peft():
            return PeftModel.from_pretrained(vlm, folder, is_trainable=True)
    except Exception as error:  # peft, torch and safetensors each raise their own
        raise ValueError(f"{folder}: its adapter does not fit {vlm.name_or_path}, or is damaged") from error


@torch.no_grad()
def check_common_path(policy) -> None:
    """ValueError for a VLM whose own forward does more with an image than model.py does for all families (puts features
    into its layers, looks ahead inside an image, attends to it from outside): the two must foretell the same token.

    policy: a model.PosePolicy of it without pose features."""
    vlm, processor = policy.eval().vlm, policy.processor
    image, words = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8), "Where is the left hand?"
    prompt = policy.encode([SimpleNamespace(prompt=words, image=image)])
    content = [{"type": "image", "image": Image.fromarray(image)}, {"type": "text", "text": words}]
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True,
                                           tokenize=True, return_dict=True, return_tensors="pt")
    own = vlm(**inputs.to(policy.device, vlm.dtype)).logits[:, -1].float()
    ours = policy._logits(policy._prefill(prompt)[1])
    if not torch.equal(prompt.ids, inputs["input_ids"]) or not (
            (own - ours).norm() <= (1e-3 if vlm.dtype == torch.float32 else 0.1) * own.norm()):
        raise ValueError(f"{vlm.name_or_path}: a {type(vlm).__name__} does more with an image than put its features "
                         "among the words, and cannot be served")
