"""A vision-language model that others trained: by its name on the Hugging Face hub, or from a folder in that layout.

Every family comes through the same two classes of transformers, AutoProcessor and AutoModelForImageTextToText, and is
made ready for <POSE> alike: two new tokens, whose rows are the mean of all others.
Read next: lora.py, which trains such a model without changing its weights, and model.py, which makes a policy of it.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from captions import POSE_TOKEN
from real.hub_faults import why

POSE_FEATURE_TOKEN = "<pose_feature>"  # holds the place of one feature of the pose-aware encoder


def fetch(auto: type, name: str | Path, **options):
    """`auto`.from_pretrained(name), without running what a folder may bring. ValueError, in one sentence, for whatever
    is wrong with it."""
    try:
        return auto.from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:  # transformers, huggingface_hub, safetensors and the system each raise their own
        reason = why(str(name), auto.__name__, error, weights="use_safetensors" in options)
        raise ValueError(f"{name}: {reason}") from error


def absolute(name: str | Path) -> str:
    """A folder's whole path, since policies note it and may be read from elsewhere; a name on the hub as it is."""
    return str(Path(name).resolve() if Path(name).is_dir() else name)


def load_vlm(name: str | Path, dtype: torch.dtype | str = "auto", spare_rows_too: bool = True) -> tuple:
    """The VLM called `name` and its processor, ready for <POSE>.

    The rows of tokens that the vocabulary gains, new ones of the tables or spare ones, are the mean of the others
    (Hewitt 2021), so that they are the same at each load. spare_rows_too: off for an adapter that was taught while
    spare rows were taken as they were.
    ValueError for what has no image processor, does not read images and words together, or lacks weights.
    """
    name = absolute(name)
    if not hasattr(config := fetch(AutoConfig, name), "vision_config"):
        raise ValueError(f"{name}: a {config.model_type} does not read images and words together; give one that does")
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
    known = {i for i in tokenizer.get_vocab().values() if i < before}
    if not add_pose_tokens(tokenizer) and len(tokenizer) > before:
        raise ValueError(f"{name}: the tokenizer has {len(tokenizer)} tokens and the model only {before}; they are of "
                         "two different checkpoints")
    if len(tokenizer) > before:
        vlm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    new = set(tokenizer.get_vocab().values()) - known
    if not spare_rows_too:
        new, known = set(range(before, len(tokenizer))), set(range(before))
    if new:
        with torch.no_grad():
            for table in (vlm.get_input_embeddings().weight, vlm.get_output_embeddings().weight):
                table[sorted(new)] = table[sorted(known)].float().mean(0).to(table)
    return vlm.eval(), processor


def spare_ids(vlm, tokenizer) -> torch.Tensor:
    """Rows of the VLM's output table that stand for no token: many tables are padded to a round number of rows."""
    known = set(tokenizer.get_vocab().values())
    return torch.tensor([i for i in range(len(vlm.get_output_embeddings().weight)) if i not in known])


def add_pose_tokens(tokenizer) -> int:
    """Give the tokenizer <POSE> and the place of a pose feature; returns how many of them are new."""
    return tokenizer.add_special_tokens({"additional_special_tokens": [POSE_TOKEN, POSE_FEATURE_TOKEN]},
                                        replace_extra_special_tokens=False)


@torch.no_grad()
def check_common_path(policy) -> None:
    """ValueError for a VLM whose own forward does more with an image than model.py does for all families (puts features
    into its layers, looks ahead inside an image, attends to it from outside): the two must predict the same token.

    policy: a model.PosePolicy of it without pose features."""
    vlm, processor = policy.eval().vlm, policy.processor
    image, words = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8), "Where is the left hand?"
    prompt = policy.encode([SimpleNamespace(prompt=words, image=image)])
    content = [{"type": "image", "image": Image.fromarray(image)}, {"type": "text", "text": words}]
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True,
                                           tokenize=True, return_dict=True, return_tensors="pt")
    own = vlm(**inputs.to(policy.device, vlm.dtype)).logits[:, -1].float()
    ours = vlm.get_output_embeddings()(policy._prefill(prompt)[1]).float()
    if not torch.equal(prompt.ids, inputs["input_ids"]) or not (
            (own - ours).norm() <= (1e-3 if vlm.dtype == torch.float32 else 0.1) * own.norm()):
        raise ValueError(f"{vlm.name_or_path}: a {type(vlm).__name__} does more with an image than put its features "
                         "among the words, and cannot be served")

