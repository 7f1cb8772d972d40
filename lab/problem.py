"""What benchmark.py times: a model, prompts with images, and answers that all have their full length and mostly a pose.

The default model is made from a config, with random weights; any checkpoint in transformers' layout will do as well.
Read next: benchmark.py.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import (CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlavaConfig,
                          LlavaForConditionalGeneration)

from builtin.poses import sample_poses
from builtin.sentences import describe
from builtin.splits import make_split
from builtin.tiny import PoseEncoder, build_tiny
from data import Example, make_example
from engine.saving import load_policy
from model import PosePolicy
from real.hub import load_vlm


def build_llava(texts: Sequence[str]) -> tuple:
    """A LLaVA of 9 M parameters, 196 tokens an image, with the tokenizer and the pose encoder of `tiny`."""
    tiny, processor, pose_encoder = build_tiny(texts)
    processor.patch_size = 16
    processor.image_processor = CLIPImageProcessorPil(size={"height": 224, "width": 224}, do_center_crop=False)
    text = {name: getattr(tiny.config.text_config, name) for name in ("vocab_size", "pad_token_id", "eos_token_id")}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=192, intermediate_size=768, num_hidden_layers=4,
                                       num_attention_heads=4, image_size=224, patch_size=16),
        text_config=LlamaConfig(hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4,
                                max_position_embeddings=4096, **text),
        image_token_index=tiny.config.image_token_index, image_seq_length=196, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config), processor, pose_encoder


def load_policy_or_vlm(folder: str) -> PosePolicy:
    """A policy that save_policy wrote, or one around any image-text-to-text checkpoint that transformers saved."""
    if (Path(folder) / "pose.json").is_file():
        return load_policy(folder)
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"--vlm {folder}: no checkpoint there (no config.json)")
    return PosePolicy(*load_vlm(folder, torch.float32), PoseEncoder())


def force_answers(policy: PosePolicy) -> None:
    """Change the logits of every pass: no end token, no token that stands for a feature, <POSE> a quarter of the time,
    whatever the weights are."""
    never = torch.tensor([policy.tokenizer.eos_token_id, policy.image_id, policy.pose_feature_id, policy.pose_id])

    def forced(module, inputs, logits: Tensor) -> Tensor:  # (..., W)
        logits = logits.index_fill(-1, never.to(logits.device), -1e4)
        return logits.index_copy(-1, never[3:].to(logits.device), logits.logsumexp(-1, keepdim=True) - np.log(3))
    policy.vlm.get_output_embeddings().register_forward_hook(forced)


def make_examples(policy: PosePolicy, count: int, tokens: int) -> list[Example]:
    """`count` examples with an image and `tokens` tokens of text around it, rewarded as text2pose and image2text in
    turn, so that kinematics, statements and the retrieval model all have their part."""
    rng = np.random.default_rng(0)
    split = make_split(sample_poses(count, rng), rng)
    examples = []
    for i in range(count):
        example = make_example(split, ("text2pose", "image2text")[i % 2], i, rng)
        example = replace(example, image=split.images[i], prompt="")
        frame = int((policy.encode([example]).ids != policy.image_id).sum()) - policy.pose_encoder.tokens
        text = " ".join(describe(split.holds[i], rng)[0] for _ in range(tokens // 8 + 8))
        ids = policy.tokenizer(text, add_special_tokens=False).input_ids[:max(1, tokens - frame)]
        examples.append(replace(example, prompt=policy.tokenizer.decode(ids)))
    return examples
