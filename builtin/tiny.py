"""`tiny`: the paper's architecture made from a config, small enough to be trained from nothing on a laptop's CPU.

LLaVA (a CLIP vision tower, a projector, a Llama) with a tokenizer that learns its words from the built-in text, and a
residual CNN as the pose-aware encoder, where the paper has LLaVA-1.5-7B and HMR2.0's ViT. model.py makes a policy of
them as it would of any checkpoint; tiny_encoders.py trains the two image encoders before anything else.
Read next: tiny_encoders.py.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlavaConfig,
                          LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast)

from body import rot6d_to_matrix
from data import TASKS, Split, make_example

CHAT_TEMPLATE = ("{% for message in messages %}USER: {% for part in message.content %}{% if part.type == 'image' %}"
                 "<image>\n{% else %}{{ part.text }}{% endif %}{% endfor %} {% endfor %}ASSISTANT:")
CHAT_WORDS = ["USER: ", " ASSISTANT:"]


def build_tiny(corpus: Sequence[str], hidden_size: int = 128, layers: int = 2) -> tuple:
    """The untrained parts of a policy: VLM, processor and pose-aware encoder, about 2.3 M parameters in all.

    corpus: texts from which the tokenizer (byte-level BPE: any text can be written) learns its words.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    template = CHAT_WORDS * len(corpus)  # or USER and ASSISTANT would be spelled letter by letter, at every prompt
    bpe.train_from_iterator([*corpus, *template], trainers.BpeTrainer(
        vocab_size=1200, special_tokens=["<pad>", "<s>", "</s>", "<image>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False, extra_special_tokens={"image_token": "<image>"})
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False), tokenizer, patch_size=32,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=CHAT_TEMPLATE)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=64,
            patch_size=32),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=hidden_size, intermediate_size=2 * hidden_size,
            num_hidden_layers=layers, num_attention_heads=4, max_position_embeddings=2048,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            initializer_range=hidden_size ** -0.5),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=4, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config), processor, PoseEncoder()


class PoseEncoder(nn.Module):
    """Images uint8 (N, 64, 64, 3) to `tokens` features (N, tokens, width): a residual CNN, pre-trained by `regress`.

    Larger square images are made so small. Stands in for HMR2.0's ViT. The pose is read linearly from the mean of its
    tokens: an even look at them finds it.
    """

    def __init__(self, channels: Sequence[int] = (24, 48, 96), tokens: int = 4, width: int = 192):
        super().__init__()
        self.config = {"channels": list(channels), "tokens": tokens, "width": width}
        if len(channels) != 3 or min(*channels, tokens + 1, width) < 1 or max(*channels, tokens * width) > 4096:
            raise ValueError("a pose encoder has three channels, a width and tokens or none, channels and tokens x "
                             f"width at most 4096, not {channels}, {width}, {tokens}")
        self.tokens, self.width = tokens, width
        layers, sizes = [], [3, *channels]
        for i, (before, after) in enumerate(zip(sizes, sizes[1:])):  # 64 x 64 pixels become 16, 8, 4
            layers += [nn.Conv2d(before, after, 3 if i else 5, 2 if i else 4, 1 + (i == 0), bias=False),
                       nn.BatchNorm2d(after), nn.ReLU(), Residual(after)]
        self.trunk = nn.Sequential(*layers)
        with warnings.catch_warnings():  # without tokens the layer is empty: torch says that it initialises nothing
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            self.to_tokens = nn.Sequential(nn.Flatten(), nn.Linear(16 * channels[-1], tokens * width), nn.ReLU())
        self.regressor = nn.Linear(width, 24 * 6)

    def forward(self, images: Tensor) -> Tensor:
        height, width, channels = images.shape[1:]
        if height != width or width < 64 or channels != 3:
            raise ValueError(f"the built-in pose encoder reads images of 64x64x3 or larger squares, "
                             f"got {tuple(images.shape[1:])}")
        pixels = (images.to(self.regressor.weight.dtype) / 127.5 - 1).movedim(-1, 1).contiguous(
            memory_format=torch.channels_last)  # (N, 3, height, width)
        if width > 64:
            pixels = nn.functional.interpolate(pixels, 64, mode="area")
        return self.to_tokens(self.trunk(pixels)).unflatten(-1, (self.tokens, self.width))

    def regress(self, features: Tensor) -> Tensor:
        """The pose (N, 24, 3, 3) that features (N, tokens, width) say, as the encoder is pre-trained to."""
        return rot6d_to_matrix(self.regressor(features.mean(1)).unflatten(-1, (24, 6)))


class Residual(nn.Module):
    def __init__(self, channel: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channel, channel, 3, padding=1, bias=False), nn.BatchNorm2d(channel), nn.ReLU(),
            nn.Conv2d(channel, channel, 3, padding=1, bias=False), nn.BatchNorm2d(channel))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(x + self.body(x))


def corpus(split: Split, n: int, rng: np.random.Generator) -> list[str]:
    """Prompts and answers of n examples of each task that the split allows: the text to train a tokenizer on."""
    tasks = TASKS if split.images is not None else TASKS[:1]
    rows = rng.integers(len(split.rotmats), size=(len(tasks), n))
    examples = [make_example(split, task, int(i), rng) for task, drawn in zip(tasks, rows) for i in drawn]
    return [text for example in examples for text in (example.prompt, example.answer)]
