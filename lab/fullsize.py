"""A hub model at its full size: how long a step of either stage takes, and how much memory.

    python -m lab.fullsize [--json FILE]
SmolVLM-256M's architecture (as its config on the hub has it) with random weights, LoRA of rank 16 and pictures of 224
pixels: one step of SFT with images new and with images kept, one of HyGRPO with G = 4. The checkpoint is written to a
temporary folder and read as any other. Its tokenizer is that of `tiny`, under a vocabulary of the real size.
"""

import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import (AutoModelForImageTextToText, Idefics3ImageProcessorPil, Idefics3Processor,
                          LlamaConfig, SmolVLMConfig)

import train_rft
import train_sft
from lab.problem import force_answers
from builtin.splits import make_split
from builtin.tiny import corpus
from builtin.poses import sample_poses
from builtin.retriever import Retriever
from engine.checkpoint import atomic_write
from engine.runtime import pick_device, run
from engine.settings import OutputFile, read_settings
from lab.soak import peak_memory, reset_peak_memory
from builtin.tiny import build_tiny

TEMPLATE = ("{% for message in messages %}User:{% for part in message.content %}{% if part.type == 'image' %}<image>"
            "{% else %}{{ part.text }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}Assistant:")


def write_checkpoint(folder: Path, texts: list[str]) -> None:
    """SmolVLM-256M in the hub's layout, with Idefics3's processor, which writes the same for images."""
    tokenizer = build_tiny(texts)[1].tokenizer
    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer.add_special_tokens({"additional_special_tokens": [
        "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *places]})
    config = SmolVLMConfig(
        vision_config={"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 512,
                       "intermediate_size": 3072, "patch_size": 16}, scale_factor=4, tie_word_embeddings=False,
        text_config=LlamaConfig(
            hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, vocab_size=49280,
            intermediate_size=1536, rope_theta=100000.0, max_position_embeddings=8192,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"))
    image_processor = Idefics3ImageProcessorPil(size={"longest_edge": 2048}, max_image_size={"longest_edge": 512})
    Idefics3Processor(image_processor, tokenizer, image_seq_len=64, chat_template=TEMPLATE).save_pretrained(folder)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)


@dataclass
class FullSizeConfig:
    json: OutputFile | None = field(default=None, metadata={"help": "file to write the figures to"})
    device: str | None = field(default=None, metadata={"help": "cuda, mps or cpu; default: the best there is"})


def main() -> None:
    config, = read_settings(__doc__, FullSizeConfig)
    device, rng, rows, began = pick_device(config.device), np.random.default_rng(0), [], time.time()
    split = make_split(sample_poses(2, rng), rng, 224)

    def note(what: str) -> None:
        nonlocal began
        rows.append({"what": what, "seconds": round(time.time() - began, 1),
                     "peak_gb": round(peak_memory(device) / 1e3, 2)})
        print(f"{what}: {rows[-1]['seconds']} s, peak memory {rows[-1]['peak_gb']} GB", flush=True)
        reset_peak_memory(device)
        began = time.time()

    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        write_checkpoint(Path(folder), corpus(split, 500, rng))
        reset_peak_memory(device)
        began = time.time()
        sft = train_sft.SFTConfig(vlm=folder, lora_rank=16, sft_steps=1, sft_batch=2)
        world = train_sft.WorldConfig(device=config.device, picture=224)
        policy = train_sft.build_policy(world, sft, {"train": split})
        note("read, and checked that its family is served")
        size = [sum(p.numel() for p in policy.parameters() if p.requires_grad or whole) for whole in (True, False)]
        train_sft.MIX = train_rft.MIX = {"image2pose": 1.0}
        train_sft.train_sft(policy, split, sft, 0)
        note("SFT step, 2 examples, images new")
        train_sft.train_sft(policy, split, sft, 0)
        note("SFT step, 2 examples, images kept")
        tokens = len(policy.image_features(list(split.images))[0].ids)
        force_answers(policy)  # random weights hardly ever say <POSE>
        retriever = Retriever(policy.tokenizer.backend_tokenizer).to(device).eval().requires_grad_(False)
        began = time.time()
        few = train_rft.RFTConfig(rft_steps=1, pose_prompts=2, pose_answers=4)
        train_rft.train_rft(policy, split, retriever, few, 0, lambda policy: {})
        note("HyGRPO step, 2 prompts, G = 4, K = 64")
    print(f"{size[0] / 1e6:.0f} M parameters, {size[1] / 1e6:.1f} M of them taught; {tokens} tokens an image; "
          f"{device}, {torch.get_num_threads()} threads")
    if config.json:
        atomic_write(Path(config.json), json.dumps({
            "rows": rows, "million_parameters": round(size[0] / 1e6), "million_taught": round(size[1] / 1e6, 1),
            "image_tokens": tokens, "device": str(device), "threads": torch.get_num_threads()}, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
