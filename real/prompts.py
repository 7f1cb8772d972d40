"""Examples as a vision-language model reads them: chat template, tokens, and the features of images.

    prompt = frame of the chat template( [image tokens] [pose-feature tokens] words )
The processor of each family writes its own image tokens; one <pose_feature> token for each feature of the pose-aware
encoder follows them. Both encoders are frozen, so an image is encoded once and its features are cached by its pixels.
A prompt, and the answer behind it, must fit into the positions that the model counts: no words given are cut off.
Read next: hub.py, where such models come from.
"""

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

PLACEHOLDER = "(the prompt)"  # stands for the prompt while its chat template is filled
ANSWER_TOKENS = 80  # the most that an answer gets when it is sampled
CACHE_BYTES = 1 << 30  # of image features; when there are more, those first seen are forgotten


class Prompt(NamedTuple):
    """Prompts as the frozen parts leave them: no trained parameter is in it, so policy and reference share it."""
    ids: Tensor  # (B, P) tokens, left-padded
    mask: Tensor  # (B, P), 1 where not padding
    positions: Tensor  # (B, P), or (3, B, P) where a VLM counts time, rows and columns of an image apart
    vlm_features: Tensor  # (n, H), in the order of the image tokens in ids
    pose_features: Tensor  # (m, width), in the order of the pose-feature tokens in ids


class ImageFeatures(NamedTuple):
    """What the frozen encoders make of one image."""
    ids: list[int]  # its tokens, as the processor writes them
    vlm: Tensor  # (n, H), in the place of its image tokens
    pose: Tensor  # (tokens, width), after them
    grid: Tensor | None  # (3,) patches in time, rows and columns, where the VLM's positions need them


def chat_frames(processor) -> tuple[str, str]:
    """What the chat template writes around a prompt, for which PLACEHOLDER stands, without an image and with one."""
    words = {"type": "text", "text": PLACEHOLDER}
    frames = tuple(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
                   for content in ([words], [{"type": "image"}, words]))
    if not all(PLACEHOLDER in text for text in frames):
        raise ValueError("its chat template does not write the words of a prompt")
    if [text.count(processor.image_token) for text in frames] != [0, 1]:
        raise ValueError(f"its chat template does not write {processor.image_token}, for which its processor puts the "
                         "tokens of an image, once an image")
    if None in (processor.tokenizer.eos_token, processor.tokenizer.pad_token):
        raise ValueError("its tokenizer has no end or no padding token")
    return frames


def feature_token_id(config, processor) -> int:
    """The token in whose places a VLM takes the features of an image. Mostly it is the one that the chat template
    writes, but Gemma 3's template writes a token that begins the image."""
    own = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    return processor.tokenizer.convert_tokens_to_ids(processor.image_token) if own is None else own


def in_frames(policy, examples: Sequence) -> list[list[int]]:
    """The tokens of each example's prompt in its chat frame, in which one token stands for the image."""
    # All added tokens, marked as special or not: of <tool_call> a tokenizer makes one token wherever it stands.
    added = {*policy.tokenizer.all_special_tokens, *policy.tokenizer.get_added_vocab(), policy.image_token}
    longest_first = sorted((token for token in added if len(token.strip()) > 1), key=len, reverse=True)
    special = re.compile("|".join(map(re.escape, longest_first)))
    texts = []
    for example in examples:
        prompt = special.sub(lambda token: f"{token[0][0]} {token[0][1:]}", example.prompt)  # typed, they stay text
        texts.append(policy.chat_frames[example.image is not None].replace(PLACEHOLDER, prompt))
    begun = texts[0].startswith(policy.tokenizer.bos_token or "\0")
    return policy.tokenizer(texts, add_special_tokens=not begun).input_ids


def most_tokens(policy) -> float:
    """How many tokens prompt and answer may have together; of a model that counts no positions, any number."""
    return getattr(policy.vlm.config.get_text_config(), "max_position_embeddings", None) or math.inf


def length_check(policy) -> Callable[[object], None]:
    """A function that raises ValueError for an example (with `prompt`, `image`, `answer`) whose prompt, with its image,
    and true answer are more than the policy reads, before either is encoded."""
    black, most = np.zeros((policy.image_size, policy.image_size, 3), np.uint8), most_tokens(policy)
    picture = policy.image_features([black])[0]
    of_image = len(picture.ids) + len(picture.pose) - 1

    def check(example) -> None:
        prompt = len(in_frames(policy, [example])[0]) + of_image * (example.image is not None)
        answer = policy.tokenize_answers([example])[0].shape[-1]
        if prompt + max(answer, ANSWER_TOKENS) > most:
            raise ValueError(f"the prompt has {prompt} tokens and the answer {answer}, and the policy reads at most "
                             f"{most}, {ANSWER_TOKENS} of them kept for an answer: make them shorter")
    return check


def encode_prompts(policy, examples: Sequence) -> Prompt:
    """Tokens and frozen features of examples (with `prompt` and `image`); policy: a model.PosePolicy. ValueError for a
    prompt beside which an answer has no room."""
    features = iter(policy.image_features([e.image for e in examples if e.image is not None]))
    rows, pictures, room = [], [], most_tokens(policy) - ANSWER_TOKENS
    mark = policy.tokenizer.convert_tokens_to_ids(policy.image_token)
    for example, row in zip(examples, in_frames(policy, examples)):
        if example.image is not None:
            picture, place = next(features), row.index(mark)
            row[place:place + 1] = picture.ids + [policy.pose_feature_id] * len(picture.pose)
            pictures.append(picture)
        if len(row) > room:
            raise ValueError(f"the prompt has {len(row)} tokens, and the policy reads at most {room}: make it shorter")
        rows.append(torch.tensor(row))
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left",
                                    padding_value=policy.tokenizer.pad_token_id)  # (B, P)
    mask = torch.arange(ids.shape[1]) >= ids.shape[1] - torch.tensor([len(row) for row in rows])[:, None]
    ids, mask = ids.to(policy.device), mask.long().to(policy.device)
    if policy.rope_index and pictures:
        positions = policy.rope_index(input_ids=ids, mm_token_type_ids=(ids == policy.image_id).int(),
                                      image_grid_thw=torch.stack([x.grid for x in pictures]), attention_mask=mask)[0]
    else:
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
    gather = lambda parts: torch.cat(parts) if parts else torch.empty(0, device=policy.device)
    return Prompt(ids, mask, positions, gather([x.vlm for x in pictures]), gather([x.pose for x in pictures]))


@torch.no_grad()
def image_features(policy, images: Sequence[np.ndarray]) -> list[ImageFeatures]:
    """What the frozen encoders see in images (H, W, 3) uint8, all of one size: computed once and cached, by their
    pixels. The processor itself writes the image's tokens.

    Always in full batches, filled up where images lack: in batches of other sizes sums are split otherwise, and an
    image must have the same features, to the last bit, whatever comes with it."""
    keys = [hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).digest() for image in images]
    missing = list({k: image for k, image in zip(keys, images) if k not in policy.frozen_features}.items())
    for start in range(0, len(missing), policy.images_at_once):
        chunk_keys, chunk = zip(*missing[start:start + policy.images_at_once])
        chunk += chunk[:1] * (policy.images_at_once - len(chunk))
        inputs = policy.processor(images=[[image] for image in chunk], text=[policy.image_token] * len(chunk),
                                  return_tensors="pt", add_special_tokens=False, padding=True).to(policy.device)
        pixels = {name: inputs[name] for name in policy.processor.image_processor.model_input_names if name in inputs}
        features = policy.vlm.get_image_features(**pixels).pooler_output
        features = features if torch.is_tensor(features) else torch.cat(list(features))
        vlm_features = features.flatten(0, -2).split((inputs["input_ids"] == policy.image_id).sum(-1).tolist())
        pose_features = policy.pose_encoder(torch.from_numpy(np.stack(chunk)).to(policy.device))
        grids = inputs["image_grid_thw"] if policy.rope_index else [None] * len(chunk)
        ids = [row[mask.bool()].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"])]
        # A row of a batch is a view that keeps the whole batch in memory: what is kept is a copy of the row alone.
        rows = ([None if row is None else row.clone() for row in of] for of in (vlm_features, pose_features, grids))
        policy.frozen_features |= zip(chunk_keys, map(ImageFeatures, ids, *rows))
    pictures = [policy.frozen_features[key] for key in keys]
    most = CACHE_BYTES // max([1, *(picture.vlm.nbytes + picture.pose.nbytes for picture in pictures)])
    while len(policy.frozen_features) > most:
        del policy.frozen_features[next(iter(policy.frozen_features))]
    return pictures
