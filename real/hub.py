"""A vision-language model that others trained: by its name on the Hugging Face hub, or from a folder in that layout.

Every family comes through the same two classes of transformers, AutoProcessor and AutoModelForImageTextToText, and is
made ready for <POSE> alike: two new tokens, whose rows are the mean of all others.
Read next: lora.py, which trains such a model without changing its weights, and model.py, which makes a policy of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from captions import POSE_TOKEN
from engine.runtime import is_out_of_memory
from real.hub_faults import first_line, why

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


def load_processor(name: str | Path) -> tuple:
    """The configuration of the VLM called `name`, and its processor: what can be told without its weights.
    ValueError for what has no image processor or no chat template, or does not read images and words together."""
    if not hasattr(config := fetch(AutoConfig, name), "vision_config"):
        raise ValueError(f"{name}: a {config.model_type} does not read images and words together; give one that does")
    processor = fetch(AutoProcessor, name)
    if getattr(processor, "image_processor", None) is None:
        raise ValueError(f"{name}: no image processor (preprocessor_config.json or processor_config.json)")
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(f"{name} has no chat template; give a model that was taught to chat (often called Instruct)")
    return config, processor


def load_vlm(name: str | Path, dtype: torch.dtype | str = "auto", spare_rows_too: bool = True) -> tuple:
    """The VLM called `name` and its processor, ready for <POSE>.

    The rows of tokens that the vocabulary gains, new ones of the tables or spare ones, are the mean of the others
    (Hewitt 2021), so that they are the same at each load. spare_rows_too: off for an adapter that was taught while
    spare rows were taken as they were.
    ValueError as of `load_processor`, and for what lacks weights.
    """
    name = absolute(name)
    _, processor = load_processor(name)
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
    return torch.tensor([i for i in range(len(vlm.get_output_embeddings().weight)) if i not in known], dtype=torch.long)


def add_pose_tokens(tokenizer) -> int:
    """Give the tokenizer <POSE> and the place of a pose feature; returns how many of them are new."""
    return tokenizer.add_special_tokens({"additional_special_tokens": [POSE_TOKEN, POSE_FEATURE_TOKEN]},
                                        replace_extra_special_tokens=False)


@contextmanager
def served(vlm) -> Iterator[None]:
    """Whatever a family raises in here, where it is tried whether it can be served, is a ValueError that names it."""
    try:
        yield
    except Exception as error:  # each family raises its own
        if is_out_of_memory(error):
            raise
        reason = first_line(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{vlm.name_or_path}: a {type(vlm).__name__} cannot be served: {reason}; docs/going_real.md "
                         "lists families that are") from error


@torch.no_grad()
def check_common_path(policy) -> None:
    """ValueError for a VLM whose own forward does more with an image than model.py does for all families (puts features
    into its layers, looks ahead inside an image, attends to it from outside): the two must predict the same token; and
    for one to which answers side by side are not what each is alone, as they are to convolutions and recurrences.

    policy: a model.PosePolicy of it without pose features."""
    vlm, processor = policy.eval().vlm, policy.processor
    image, words = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8), "Where is the left hand?"
    prompt = policy.encode([SimpleNamespace(prompt=words, image=image)])
    content = [{"type": "image", "image": Image.fromarray(image)}, {"type": "text", "text": words}]
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True,
                                           tokenize=True, return_dict=True, return_tensors="pt")
    if not torch.equal(prompt.ids, inputs["input_ids"].to(prompt.ids.device)):
        raise ValueError("an image's tokens alone are not those that it has between the words of the chat template, "
                         "where line breaks of both may become one token")
    near = 1e-3 if vlm.dtype == torch.float32 else 0.1  # of two ways to compute the same
    own = vlm(**inputs.to(policy.device, vlm.dtype)).logits[:, -1].float()
    ours = vlm.get_output_embeddings()(policy._prefill(prompt)[1]).float()
    if not (own - ours).norm() <= near * own.norm():
        raise ValueError("it does more with an image than put its features among the words")
    tokens = torch.randint(len(policy.tokenizer), (1, 2, 40), generator=torch.Generator().manual_seed(0))
    tokens, mask = tokens.to(policy.device), torch.ones(1, 2, 40, dtype=torch.bool, device=policy.device)
    together = policy.log_prob(prompt, tokens, mask).log_prob
    alone = torch.cat([policy.log_prob(prompt, tokens[:, [i]], mask[:, [i]]).log_prob for i in range(2)], 1)
    if not (together - alone).norm() <= near / 2 * alone.norm():
        raise ValueError("one answer of a group leaks into the next: not all of its layers are full attention")
    policy.sample(prompt, 2, 1, max_tokens=4, seeds=[0])


def check_window(vlm, length: int) -> None:
    """ValueError where a row of prompt and answers is longer than what the VLM's layers look back: an answer stands
    behind those of its group, which do not count for its positions."""
    config = vlm.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["sliding_attention", "chunked_attention"]
    windows = {"sliding_attention": getattr(config, "sliding_window", None),
               "chunked_attention": getattr(config, "attention_chunk_size", None)}
    window = min((windows[kind] for kind in kinds if windows.get(kind)), default=length)
    if length > window:
        raise ValueError(f"a prompt with its answers has {length} tokens, and layers of {vlm.name_or_path} look back "
                         f"{window} alone: take smaller pictures, a smaller --group_size, or another model")
