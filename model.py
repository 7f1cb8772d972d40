"""The policy: a vision-language model that answers in words and, at the token <POSE>, with a Gaussian over body poses.

    pi(a, p | q) = prod_t pi(a_t | q, a_<t) x N(p; mu(h), Sigma(h)),   h = hidden state at <POSE>     (Pose-RFT eq. 1-2)
An image enters twice: through the VLM's own vision tower and through a *pose-aware encoder*, pre-trained on pose
regression, whose projected features follow the image's tokens. Both are frozen, so what they see in it is kept.
A prompt is run once for all the answers of its group: they follow it side by side in one row, blind to each other.
The density is that of the raw numbers p, hence exact; rewards see the rotations that Gram-Schmidt makes of them.

Departures from the paper: the VLM's own projector is aligned before SFT and frozen with the tower, so that an image is
one cached tensor; the language model of builtin/tiny.py is trained whole where the paper uses LoRA (real/lora.py).
Read next: rewards.py. real/prompts.py makes tokens and features of prompts, engine/saving.py saves and loads.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

from body import matrix_to_rot6d
from captions import POSE_TOKEN
from real.answers import answer_frame, read_answer, tokenize_answers
from real.hub import POSE_FEATURE_TOKEN, add_pose_tokens, check_window, spare_ids
from real.prompts import (ANSWER_TOKENS, ImageFeatures, Prompt, chat_frames, encode_prompts, feature_token_id,
                          image_features)

POSE_DIM = 144  # 24 joints x 6 numbers of rotation, raw, before Gram-Schmidt: the first two columns of each matrix


# ---------------------------------------------------------------- the policy

class Rollout(NamedTuple):
    """What `sample` drew: B prompts, G answers to each, K poses for each answer, T tokens in the longest answer."""
    tokens: Tensor  # (B, G, T) answer tokens, the end token included
    token_mask: Tensor  # (B, G, T) bool, by length
    has_pose: Tensor  # (B, G) bool: the answer holds <POSE>
    pose: Tensor  # (B, G, K, 144) raw 6D samples, what the density scores
    answers: list[list[str]]  # B x G decoded answers
    mean: Tensor | None = None  # (B, G, 144) of the Gaussians sampled from


class Scores(NamedTuple):
    """What `log_prob` says of answers, with gradient; W words in the vocabulary."""
    log_prob: Tensor  # (B, G, T) of the answer's tokens
    log_softmax: Tensor  # (B, G, T, W) of the whole vocabulary
    pose: Distribution  # batch (B, G), event (144,): at the first <POSE> (meaningless where there is none)


class PosePolicy(nn.Module):
    """A transformers image-text-to-text model with <POSE>, the pose-aware encoder and the Gaussian head around it.

    With LoRA (real/lora.py) the language model's own weights stay; of its embedding and output tables only the rows of
    <POSE> are trained, as differences (`pose_rows`) from what is in the tables.
    """

    def __init__(self, vlm: nn.Module, processor, pose_encoder: nn.Module, covariance: str = "diag",
                 sigma_floor: float = 0.02, image_size: int = 64):
        super().__init__()
        tokenizer = processor.tokenizer
        add_pose_tokens(tokenizer)
        if len(tokenizer) > vlm.get_input_embeddings().num_embeddings:
            vlm.resize_token_embeddings(len(tokenizer), mean_resizing=False)  # their mean would start near zero
        self.vlm, self.processor, self.tokenizer, self.pose_encoder = vlm, processor, tokenizer, pose_encoder
        self.image_size = image_size  # pixels a side of the images it is trained on
        side = max(image_size, getattr(vlm.config.vision_config, "image_size", 0))
        self.images_at_once = max(1, 64 * 64 ** 2 // side ** 2)  # 64 for the vision tower of tiny, one for 512 pixels
        hidden_size, width = vlm.get_input_embeddings().embedding_dim, pose_encoder.width
        self.pose_projector = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden_size))
        self.pose_head = PoseHead(hidden_size, covariance, sigma_floor=sigma_floor)
        tied = vlm.get_output_embeddings().weight is vlm.get_input_embeddings().weight
        self.has_adapter = hasattr(vlm, "peft_config")
        self.pose_rows = nn.Parameter(torch.zeros(1 if tied else 2, hidden_size)) if self.has_adapter else None
        self.spare_ids = spare_ids(vlm, tokenizer)
        # Some VLMs have positions of their own for images, in this method; the others count tokens.
        self.rope_index = next((m.get_rope_index for m in vlm.modules() if hasattr(m, "get_rope_index")), None)
        self.image_token, self.chat_frames = processor.image_token, chat_frames(processor)
        self.answer_frame = answer_frame(processor, self.chat_frames[0])
        self.pose_id, self.pose_feature_id = tokenizer.convert_tokens_to_ids([POSE_TOKEN, POSE_FEATURE_TOKEN])
        self.image_id = feature_token_id(vlm.config, processor)
        self.frozen_features: dict[bytes, ImageFeatures] = {}
        self.freeze_encoders()

    def freeze_encoders(self) -> None:
        """From here on only the language model (or its adapter), the pose features' projector and head are trained."""
        self.requires_grad_(False)
        whole = () if self.has_adapter else (self.vlm.get_decoder(), self.vlm.get_output_embeddings())
        for module in (*whole, self.pose_projector, self.pose_head):
            module.requires_grad_(True)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or "lora_" in name or name == "pose_rows")
        self.frozen_features.clear()

    def frozen_copy(self) -> "PosePolicy":
        """This policy as it is now, never trained: the reference. What is frozen is shared with it, not copied, so
        that with an adapter no second model is held."""
        shared = {id(p): p for p in self.parameters() if not p.requires_grad}
        shared[id(self.frozen_features)] = self.frozen_features
        return copy.deepcopy(self, shared).requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        return self.pose_head.mean.weight.device

    def train(self, mode: bool = True) -> "PosePolicy":
        """Frozen encoders stay in evaluation mode, or batch statistics would drift and dropout reach what is kept."""
        super().train(mode).pose_encoder.eval()
        self.vlm.eval().get_decoder().train(mode)
        return self

    def image_features(self, images: Sequence[np.ndarray]) -> list[ImageFeatures]:
        """What the frozen encoders see in images (H, W, 3) uint8, all of one size; kept, as far as there is room."""
        return image_features(self, images)

    def encode(self, examples: Sequence) -> Prompt:
        """Tokens and frozen features of examples (with `prompt` and `image`), for `sample` and `log_prob`."""
        return encode_prompts(self, examples)

    def _embed(self, ids: Tensor) -> Tensor:
        """Embeddings (..., H) of tokens, with the trained row of <POSE>."""
        embeds, rows = self.vlm.get_input_embeddings()(ids), self.pose_rows
        return embeds if rows is None else embeds + (ids == self.pose_id)[..., None] * rows[0].to(embeds)

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., W) of the next token, float32, with the trained row of <POSE>; what is no token never comes."""
        logits = self.vlm.get_output_embeddings()(hidden).float()
        if len(self.spare_ids):  # finite, or their part of a KL, which is 0, would be NaN
            logits = logits.index_fill(-1, self.spare_ids.to(logits.device), torch.finfo(logits.dtype).min)
        if self.pose_rows is None:
            return logits
        place = torch.tensor([self.pose_id], device=hidden.device)
        return logits.index_add(-1, place, (hidden.float() @ self.pose_rows[-1])[..., None])

    def _prefill(self, prompt: Prompt):
        """Run the prompts once. Returns their key/value cache and the hidden state (B, H) at their end."""
        embeds = self._embed(prompt.ids)  # (B, P, H)
        if len(prompt.vlm_features):
            projected = self.pose_projector(prompt.pose_features).to(embeds)
            embeds = embeds.masked_scatter((prompt.ids == self.image_id)[..., None], prompt.vlm_features.to(embeds))
            embeds = embeds.masked_scatter((prompt.ids == self.pose_feature_id)[..., None], projected)
        output = self.vlm.get_decoder()(inputs_embeds=embeds, attention_mask=prompt.mask, use_cache=True,
                                        position_ids=prompt.positions)
        return output.past_key_values, output.last_hidden_state[:, -1]

    def _continue(self, tokens: Tensor, position: Tensor | int, visible: Tensor, prompt: Prompt, cache) -> Tensor:
        """Hidden states (B, N, H) of answer tokens (B, N). A group's answers share a row behind the prompt, whose cache
        is never copied: a token sees the prompt and, by visible (N, C) bool, those of the row's C answer tokens that
        are of its own answer and not after it. position (N,): in its answer. G = 2 answers of T = 3 tokens at once:

            a1  1 . . . . .        a1 a2 a3 are the first answer, b1 b2 b3 the second,
            a2  1 1 . . . .        and every row also sees the whole prompt
            a3  1 1 1 . . .
            b1  . . . 1 . .
            b2  . . . 1 1 .
            b3  . . . 1 1 1
        """
        embeds = self._embed(tokens)
        rows = *tokens.shape, -1
        mask = torch.cat([prompt.mask.bool()[:, None].expand(rows), visible.expand(rows)], -1)  # (B, N, P + C)
        check_window(self.vlm, mask.shape[-1])
        bias = torch.zeros_like(mask, dtype=embeds.dtype).masked_fill(~mask, torch.finfo(embeds.dtype).min)
        start = prompt.positions.view(-1, *prompt.mask.shape).amax((0, -1))[:, None] + 1  # (B, 1)
        position_ids = (start + position).expand_as(tokens)
        return self.vlm.get_decoder()(inputs_embeds=embeds, attention_mask=bias[:, None], position_ids=position_ids,
                                      past_key_values=cache, use_cache=True).last_hidden_state

    @torch.no_grad()
    def sample(self, prompt: Prompt, group_size: int, poses_per_answer: int, max_tokens: int = ANSWER_TOKENS,
               temperature: float = 1.0, seeds: Sequence[int] | None = None) -> Rollout:
        """G answers to each prompt and K poses for each answer.

        temperature: divides the words' logits; 0 takes the likeliest word. Train on answers of temperature 1 only, at
        which `log_prob` scores: drawn at another, they give a biased gradient, and the ratio, 1 at first, hides it.
        seeds: one for each prompt, the only source of chance; fresh ones when None."""
        B, G = prompt.mask.shape[0], group_size
        seeds = torch.randint(2 ** 62, (B,)).tolist() if seeds is None else seeds
        uniform, noise = (x.to(self.device) for x in draw_random_numbers(seeds, G, poses_per_answer, max_tokens))
        cache, last = self._prefill(prompt)
        hidden = last[:, None].expand(-1, G, -1)  # (B, G, H)
        eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        finished = torch.zeros(B, G, dtype=torch.bool, device=self.device)
        pose_hidden, has_pose = torch.zeros_like(hidden), finished.clone()
        tokens, masks = [], []
        for t in range(max_tokens):
            logits = self._logits(hidden)  # (B, G, W)
            token = logits.argmax(-1) if temperature == 0 else draw_tokens(
                (logits / temperature).softmax(-1), uniform[..., t])
            token = token.masked_fill(finished, pad)
            tokens.append(token)
            masks.append(~finished)
            finished = finished | (token == eos)
            if finished.all():
                break
            visible = torch.eye(G, dtype=torch.bool, device=self.device).repeat(1, t + 1)  # (G, G * (t + 1))
            hidden = self._continue(token, t, visible, prompt, cache)
            first_pose = (token == self.pose_id) & ~has_pose
            pose_hidden = torch.where(first_pose[..., None], hidden, pose_hidden)
            has_pose = has_pose | first_pose
        pose = self.pose_head(pose_hidden)
        samples = draw_poses(pose, noise)  # (B, G, K, 144)
        tokens, masks = torch.stack(tokens, -1), torch.stack(masks, -1)  # (B, G, T)
        answers = [[read_answer(self, t[m & (t != eos)]) for t, m in zip(*group)] for group in zip(tokens, masks)]
        return Rollout(tokens, masks, has_pose, samples, answers, pose.mean)

    def log_prob(self, prompt: Prompt, tokens: Tensor, token_mask: Tensor) -> Scores:
        """Score answers (B, G, T), with gradient: the log-probability of each token, the Gaussian at each <POSE>."""
        G, T = tokens.shape[1:]
        cache, last = self._prefill(prompt)
        position = torch.arange(T, device=self.device).repeat(G)  # (G*T,)
        sees = torch.block_diag(*[torch.ones(T, T, dtype=torch.bool, device=self.device).tril()] * G)  # (G*T, G*T)
        hidden = self._continue(tokens.flatten(1), position, sees, prompt, cache).unflatten(1, (G, T))  # (B, G, T, H)
        before = torch.cat([last[:, None, None].expand(-1, G, 1, -1), hidden[:, :, :-1]], 2)  # predicts token t
        log_softmax = self._logits(before).log_softmax(-1)  # (B, G, T, W)
        log_prob = log_softmax.gather(-1, tokens[..., None]).squeeze(-1)
        at_pose = ((tokens == self.pose_id) & token_mask).float().argmax(-1)  # the first one; 0 where there is none
        pose = self.pose_head(hidden.take_along_dim(at_pose[..., None, None], 2).squeeze(2))
        return Scores(log_prob, log_softmax, pose)

    def tokenize_answers(self, examples: Sequence) -> tuple[Tensor, Tensor]:
        """The true answers with their end token: ids and bool mask, (B, 1, T)."""
        return tokenize_answers(self, examples)


# ---------------------------------------------------------------- the Gaussian at <POSE>, and the draws of a rollout

class PoseHead(nn.Module):
    """Hidden state (..., H) to a Gaussian over the 144 numbers of a pose (Pose-RFT eq. 2), always in float32.

    covariance: `diag`, `lowrank` (diagonal plus `rank` shared directions) or `full` (Cholesky factor). The diagonal
    never falls below `sigma_floor`: without one reinforcement narrows the Gaussian until nothing is tried any more.
    Adam moves a sum over H numbers by H times its rate: rates, given for H = 128, are therefore multiplied by `rate`,
    and the mean starts smaller likewise (Yang et al. 2022, muP), so that a step moves the poses alike at any H.
    """

    def __init__(self, hidden_size: int, covariance: str = "diag", rank: int = 8, sigma_floor: float = 0.02):
        super().__init__()
        sizes = {"diag": 0, "lowrank": POSE_DIM * rank, "full": POSE_DIM * (POSE_DIM - 1) // 2}
        if covariance not in sizes or not 0 <= sigma_floor < 10:
            raise ValueError(f"need covariance diag, lowrank or full, and 0 <= sigma_floor < 10; got {covariance!r}, "
                             f"{sigma_floor!r}")
        self.covariance, self.rank, self.sigma_floor = covariance, rank, sigma_floor
        width, self.rate = 2 * hidden_size, 128 / hidden_size
        self.trunk = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, width), nn.GELU())
        self.mean, self.sigma = nn.Linear(width, POSE_DIM), nn.Linear(width, POSE_DIM)
        self.correlation = nn.Linear(width, sizes[covariance]) if sizes[covariance] else None
        self.mean.weight.data.mul_(self.rate ** 0.5)
        nn.init.zeros_(self.sigma.weight)
        nn.init.constant_(self.sigma.bias, -1.5)  # softplus: standard deviations start near 0.2
        self.register_buffer("rest", matrix_to_rot6d(torch.eye(3)).repeat(24), persistent=False)
        if self.correlation is not None:
            nn.init.zeros_(self.correlation.bias)
            nn.init.normal_(self.correlation.weight, std=1e-3)

    def forward(self, hidden: Tensor) -> Distribution:
        features = self.trunk(hidden.float())
        mean = self.rest + self.mean(features)  # (..., 144)
        sigma = self.sigma_floor + nn.functional.softplus(self.sigma(features))
        if self.covariance == "diag":
            return Independent(Normal(mean, sigma, validate_args=False), 1, validate_args=False)
        correlation = self.correlation(features)
        if self.covariance == "lowrank":
            factor = correlation.unflatten(-1, (POSE_DIM, self.rank))
            return LowRankMultivariateNormal(mean, factor, sigma.square(), validate_args=False)
        row, column = torch.tril_indices(POSE_DIM, POSE_DIM, offset=-1, device=mean.device)
        scale_tril = torch.diag_embed(sigma)  # (..., 144, 144)
        scale_tril[..., row, column] = correlation * sigma[..., row]  # in units of sigma, or training diverges
        return MultivariateNormal(mean, scale_tril=scale_tril, validate_args=False)


def draw_random_numbers(seeds: Sequence[int], group_size: int, poses_per_answer: int,
                        max_tokens: int) -> tuple[Tensor, Tensor]:
    """All chance in a rollout: uniform numbers (B, G, max_tokens) for words, standard normal ones (B, G, K, 144) for
    the poses. Each prompt has a seed of its own, so that it is answered alike in whatever batch it stands."""
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    return (torch.stack([torch.rand(group_size, max_tokens, generator=g) for g in generators]),
            torch.stack([torch.randn(group_size, poses_per_answer, POSE_DIM, generator=g) for g in generators]))


def draw_poses(pose: Distribution, noise: Tensor) -> Tensor:
    """Raw samples (..., K, 144) of Gaussians of batch shape (...), from standard normal noise (..., K, 144)."""
    if isinstance(pose, Independent):
        return pose.mean[..., None, :] + pose.stddev[..., None, :] * noise
    return pose.mean[..., None, :] + noise @ pose.scale_tril.mT


def draw_tokens(odds: Tensor, uniform: Tensor) -> Tensor:
    """An index (...) from each row of odds (..., W), by inverting its cumulative sum at uniform (...): one random
    number a row, where `torch.multinomial` draws one a word and takes 16 times as long (72 rows, 1,200 words, CPU)."""
    cumulative = odds.cumsum(-1)  # (..., W)
    place = cumulative[..., -1:] * uniform[..., None]  # (..., 1)
    return torch.searchsorted(cumulative, place, right=True).squeeze(-1).clamp_max(odds.shape[-1] - 1)
