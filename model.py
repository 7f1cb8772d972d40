"""The policy: a vision-language model that answers in words and, at the token <POSE>, with a Gaussian over body poses.

    pi(a, p | q) = prod_t pi(a_t | q, a_<t) x N(p; mu(h), Sigma(h)),   h = hidden state at <POSE>     (Pose-RFT eq. 1-2)
An image enters twice: through the VLM's own vision tower and through a *pose-aware encoder*, pre-trained on pose
regression, whose projected features follow the image's tokens. Both are frozen, so each image is encoded once and kept.
A prompt is run once for all the answers of its group: they follow it side by side in one row, blind to each other.

Departures from the paper: the VLM's own projector is aligned before SFT and frozen with the tower, so that an image is
one cached tensor; the language model of `tiny` (tiny.py) is trained whole where the paper uses LoRA.
Read next: hygrpo.py for what is done with `log_prob`, train_sft.py for how a policy is taught.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal
from transformers import AutoModelForImageTextToText, AutoProcessor

from body import matrix_to_rot6d
from captions import POSE_TOKEN
from checkpoint import whole_folder
from tiny import PoseEncoder

POSE_DIM = 144  # 24 joints x 6 numbers of rotation
POSE_FEATURE_TOKEN = "<pose_feature>"  # holds the place of one feature of the pose-aware encoder
WORDS = "(the prompt)"  # holds the place of a prompt while its chat template is filled


class Prompt(NamedTuple):
    """Prompts as the frozen parts leave them: no taught parameter is in it, so policy and reference share it."""
    ids: Tensor  # (B, P) tokens, left-padded
    mask: Tensor  # (B, P), 1 where not padding
    vlm_features: Tensor  # (n, H), in the order of the image tokens in ids
    pose_features: Tensor  # (m, width), in the order of the pose-feature tokens in ids


class Rollout(NamedTuple):
    tokens: Tensor  # (B, G, T) answer tokens, the end token included
    token_mask: Tensor  # (B, G, T) bool, by length
    has_pose: Tensor  # (B, G) bool: the answer holds <POSE>
    pose: Tensor  # (B, G, K, 144) raw 6D samples, what the density scores
    answers: list[list[str]]  # B x G decoded answers
    mean: Tensor | None = None  # (B, G, 144) of the Gaussians sampled from


class Scores(NamedTuple):
    log_prob: Tensor  # (B, G, T) of the answer's tokens
    log_softmax: Tensor  # (B, G, T, W) of the whole vocabulary
    pose: Distribution  # batch (B, G), event (144,): at the first <POSE> (meaningless where there is none)


def pick_device(name: str | None = None) -> torch.device:
    """`name`, or the best device there is. ValueError for one that is not there."""
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.zeros(1, device=name or best).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"no --device {name} here ({str(error).splitlines()[0]}); try --device {best}") from error


def run(main: Callable[[], None]) -> None:
    """Run a script: transformers keeps quiet, and what the user can mend ends in one sentence, not in a traceback."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    except OSError as error:  # a full disk, a folder that may not be written to
        sys.exit(f"{Path(sys.argv[0]).name}: {error}; what was kept before is whole: mend this and call the same command "
                 "again")
    except KeyboardInterrupt as stop:
        print(f"\n{Path(sys.argv[0]).name}: {stop}", file=sys.stderr)
        sys.exit(130)


# ---------------------------------------------------------------- the Gaussian pose head (eq. 2)

class PoseHead(nn.Module):
    """Hidden state (..., H) to a Gaussian over the 144 numbers of a pose (Pose-RFT eq. 2), always in float32.

    covariance: `diag`, `lowrank` (diagonal plus `rank` shared directions) or `full` (Cholesky factor). The diagonal
    never falls below `sigma_floor`: without one reinforcement narrows the Gaussian until nothing is tried any more."""

    def __init__(self, hidden_size: int, covariance: str = "diag", rank: int = 8, sigma_floor: float = 0.02):
        super().__init__()
        sizes = {"diag": 0, "lowrank": POSE_DIM * rank, "full": POSE_DIM * (POSE_DIM - 1) // 2}
        if covariance not in sizes or not 0 <= sigma_floor <= 10:
            raise ValueError(f"covariance must be diag, lowrank or full, not {covariance!r}, sigma_floor 0 to 10")
        self.covariance, self.rank, self.sigma_floor = covariance, rank, sigma_floor
        width = 2 * hidden_size
        self.trunk = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, width), nn.GELU())
        self.mean = nn.Linear(width, POSE_DIM)
        self.sigma = nn.Linear(width, POSE_DIM)
        self.correlation = nn.Linear(width, sizes[covariance]) if sizes[covariance] else None
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
        scale_tril[..., row, column] = correlation
        return MultivariateNormal(mean, scale_tril=scale_tril, validate_args=False)


def draw_luck(seeds: Sequence[int], group_size: int, poses_per_answer: int, max_tokens: int) -> tuple[Tensor, Tensor]:
    """All that chance decides: uniform numbers (B, G, max_tokens) for the words, standard normal ones (B, G, K, 144)
    for the poses. Each prompt has a seed of its own, so that it is answered alike in whatever batch it stands."""
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    return (torch.stack([torch.rand(group_size, max_tokens, generator=g) for g in generators]),
            torch.stack([torch.randn(group_size, poses_per_answer, POSE_DIM, generator=g) for g in generators]))


def draw_poses(pose: Distribution, noise: Tensor) -> Tensor:
    """Raw samples (..., K, 144) of Gaussians of batch shape (...), from standard normal noise (..., K, 144)."""
    if isinstance(pose, Independent):
        return pose.mean[..., None, :] + pose.stddev[..., None, :] * noise
    return pose.mean[..., None, :] + noise @ pose.scale_tril.mT


def draw_tokens(odds: Tensor, uniform: Tensor) -> Tensor:
    """An index (...) from each row of odds (..., W), by inverting its cumulative sum at uniform (...): one random number
    a row, where `torch.multinomial` draws one a word and takes 16 times as long (72 rows of 1,200 words, 2 CPU cores)."""
    cumulative = odds.cumsum(-1)
    place = cumulative[..., -1:] * uniform[..., None]
    return torch.searchsorted(cumulative, place, right=True).squeeze(-1).clamp_max(odds.shape[-1] - 1)


# ---------------------------------------------------------------- the policy

class PosePolicy(nn.Module):
    """A transformers image-text-to-text model with <POSE>, the pose-aware encoder and the Gaussian head around it."""

    def __init__(self, vlm: nn.Module, processor, pose_encoder: PoseEncoder, covariance: str = "diag",
                 sigma_floor: float = 0.02):
        super().__init__()
        tokenizer = processor.tokenizer
        tokenizer.add_special_tokens({"additional_special_tokens": [POSE_TOKEN, POSE_FEATURE_TOKEN]})
        if len(tokenizer) > vlm.get_input_embeddings().num_embeddings:
            vlm.resize_token_embeddings(len(tokenizer), mean_resizing=False)  # their mean would start near zero
        self.vlm, self.processor, self.tokenizer, self.pose_encoder = vlm, processor, tokenizer, pose_encoder
        hidden_size, width = vlm.get_input_embeddings().embedding_dim, pose_encoder.width
        self.pose_projector = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden_size))
        self.pose_head = PoseHead(hidden_size, covariance, sigma_floor=sigma_floor)
        self.pose_id, self.pose_feature_id = tokenizer.convert_tokens_to_ids([POSE_TOKEN, POSE_FEATURE_TOKEN])
        self.image_token = processor.image_token
        self.image_id = tokenizer.convert_tokens_to_ids(self.image_token)
        # What the chat template writes around a prompt, without an image and with one; WORDS stands for the prompt.
        frame = lambda *content: processor.apply_chat_template(
            [{"role": "user", "content": [*content, {"type": "text", "text": WORDS}]}], add_generation_prompt=True)
        self.chat_frames = frame(), frame({"type": "image"})
        images = [text.count(self.image_token) for text in self.chat_frames if WORDS in text]
        if images != [0, 1] or None in (tokenizer.eos_token, tokenizer.pad_token):
            raise ValueError("its chat template must write prompt and image, its tokenizer have end and padding tokens")
        self.frozen_features: dict[bytes, tuple[list[int], Tensor, Tensor]] = {}
        self.freeze_encoders()

    def freeze_encoders(self) -> None:
        """Only the language model, the pose projector and the head are taught from here on (as in the paper)."""
        self.requires_grad_(False)
        for module in (self.vlm.get_decoder(), self.vlm.get_output_embeddings(), self.pose_projector, self.pose_head):
            module.requires_grad_(True)
        self.frozen_features.clear()

    @property
    def device(self) -> torch.device:
        return self.pose_head.mean.weight.device

    def train(self, mode: bool = True) -> "PosePolicy":
        """Frozen encoders stay in evaluation mode, or their batch statistics would drift."""
        super().train(mode)
        self.pose_encoder.eval()
        return self

    # ------------------------------------------------ prompts

    @torch.no_grad()
    def image_features(self, images: Sequence[np.ndarray]) -> list[tuple[list[int], Tensor, Tensor]]:
        """For each image (H, W, 3) uint8: its token ids, their VLM features (n, H) and pose features (tokens, width).

        Frozen, so computed once and kept, keyed by the pixels. The processor itself writes the image's tokens."""
        keys = [hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).digest() for image in images]
        missing = list({k: image for k, image in zip(keys, images) if k not in self.frozen_features}.items())
        for start in range(0, len(missing), 64):
            chunk_keys, chunk = zip(*missing[start:start + 64])
            inputs = self.processor(images=list(chunk), text=[self.image_token] * len(chunk), return_tensors="pt",
                                    add_special_tokens=False).to(self.device)
            ids, _ = inputs.pop("input_ids"), inputs.pop("attention_mask", None)
            features = self.vlm.get_image_features(**inputs).pooler_output
            features = features if torch.is_tensor(features) else torch.cat(list(features))
            vlm_features = features.flatten(0, -2).split((ids == self.image_id).sum(-1).tolist())
            pose_features = self.pose_encoder(torch.from_numpy(np.stack(chunk)).to(self.device))
            for row in zip(chunk_keys, ids.tolist(), vlm_features, pose_features):
                self.frozen_features[row[0]] = row[1:]
        return [self.frozen_features[key] for key in keys]

    def encode(self, examples: Sequence) -> Prompt:
        """Tokens and frozen features of examples (with `prompt` and `image`)."""
        features = iter(self.image_features([e.image for e in examples if e.image is not None]))
        special = re.compile("|".join(map(re.escape, self.tokenizer.all_special_tokens)))
        pieces = []  # texts, cut where an image stands
        for example in examples:
            prompt = special.sub(lambda token: f"{token[0][0]} {token[0][1:]}", example.prompt)  # typed, they stay text
            text = self.chat_frames[example.image is not None].replace(WORDS, prompt)
            pieces += text.split(self.image_token) if example.image is not None else [text]
        tokenized = iter(self.tokenizer(pieces, add_special_tokens=False).input_ids)
        rows, vlm_features, pose_features = [], [], []
        for example in examples:
            row = next(tokenized)
            if example.image is not None:
                image_ids, vlm_feature, pose_feature = next(features)
                row = row + image_ids + [self.pose_feature_id] * len(pose_feature) + next(tokenized)
                vlm_features.append(vlm_feature)
                pose_features.append(pose_feature)
            rows.append(torch.tensor(row))
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left",
                                        padding_value=self.tokenizer.pad_token_id)  # (B, P)
        mask = torch.arange(ids.shape[1]) >= ids.shape[1] - torch.tensor([len(row) for row in rows])[:, None]
        gather = lambda kept: torch.cat(kept) if kept else torch.empty(0, device=self.device)
        return Prompt(ids.to(self.device), mask.long().to(self.device), gather(vlm_features), gather(pose_features))

    def _prefill(self, prompt: Prompt):
        """Run the prompts once. Returns their key/value cache and the hidden state (B, H) at their end."""
        embeds = self.vlm.get_input_embeddings()(prompt.ids)  # (B, P, H)
        if len(prompt.vlm_features):
            projected = self.pose_projector(prompt.pose_features).to(embeds)
            embeds = embeds.masked_scatter((prompt.ids == self.image_id)[..., None], prompt.vlm_features.to(embeds))
            embeds = embeds.masked_scatter((prompt.ids == self.pose_feature_id)[..., None], projected)
        output = self.vlm.get_decoder()(inputs_embeds=embeds, attention_mask=prompt.mask, use_cache=True,
                                        position_ids=(prompt.mask.cumsum(-1) - 1).clamp_min(0))
        return output.past_key_values, output.last_hidden_state[:, -1]

    def _continue(self, tokens: Tensor, place: Tensor | int, own: Tensor, prompt: Prompt, cache) -> Tensor:
        """Hidden states (B, N, H) of answer tokens (B, N). A group's answers share a row behind the prompt, whose cache
        is never copied: a token sees the prompt and, by own (N, C) bool, those of the row's C answer tokens that are of
        its own answer and not after it. place (N,): where in its answer a token stands."""
        embeds = self.vlm.get_input_embeddings()(tokens)
        rows = *tokens.shape, -1
        seen = torch.cat([prompt.mask.bool()[:, None].expand(rows), own.expand(rows)], -1)  # (B, N, P + C)
        bias = torch.zeros_like(seen, dtype=embeds.dtype).masked_fill(~seen, torch.finfo(embeds.dtype).min)
        position_ids = (prompt.mask.sum(-1, keepdim=True) + place).expand_as(tokens)
        return self.vlm.get_decoder()(inputs_embeds=embeds, attention_mask=bias[:, None], position_ids=position_ids,
                                      past_key_values=cache, use_cache=True).last_hidden_state

    # ------------------------------------------------ sampling and scoring

    @torch.no_grad()
    def sample(self, prompt: Prompt, group_size: int, poses_per_answer: int, max_tokens: int = 80,
               temperature: float = 1.0, seeds: Sequence[int] | None = None) -> Rollout:
        """G answers a prompt and K poses an answer. temperature scales the words' logits; 0 is greedy.

        seeds: one a prompt, on which alone chance depends; fresh ones when None."""
        B, G = prompt.mask.shape[0], group_size
        seeds = torch.randint(2 ** 62, (B,)).tolist() if seeds is None else seeds
        uniform, noise = (x.to(self.device) for x in draw_luck(seeds, G, poses_per_answer, max_tokens))
        cache, last = self._prefill(prompt)
        hidden = last[:, None].expand(-1, G, -1)  # (B, G, H)
        eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        finished = torch.zeros(B, G, dtype=torch.bool, device=self.device)
        pose_hidden, has_pose = torch.zeros_like(hidden), finished.clone()
        tokens, masks = [], []
        for t in range(max_tokens):
            logits = self.vlm.get_output_embeddings()(hidden).float()  # (B, G, W)
            token = logits.argmax(-1)
            if temperature:
                token = draw_tokens((logits / temperature).softmax(-1), uniform[..., t])
            token = token.masked_fill(finished, pad)
            tokens.append(token)
            masks.append(~finished)
            finished = finished | (token == eos)
            if finished.all():
                break
            own = torch.eye(G, dtype=torch.bool, device=self.device).repeat(1, t + 1)  # (G, G * (t + 1))
            hidden = self._continue(token, t, own, prompt, cache)
            first_pose = (token == self.pose_id) & ~has_pose
            pose_hidden = torch.where(first_pose[..., None], hidden, pose_hidden)
            has_pose = has_pose | first_pose
        pose = self.pose_head(pose_hidden)
        samples = draw_poses(pose, noise)  # (B, G, K, 144)
        tokens, masks = torch.stack(tokens, -1), torch.stack(masks, -1)  # (B, G, T)
        answers = [[self.tokenizer.decode(t[m & (t != eos)]) for t, m in zip(*group)] for group in zip(tokens, masks)]
        return Rollout(tokens, masks, has_pose, samples, answers, pose.mean)

    def log_prob(self, prompt: Prompt, tokens: Tensor, token_mask: Tensor, temperature: float = 1.0) -> Scores:
        """Score answers (B, G, T), with gradient: log-probabilities of their tokens and the Gaussian at their <POSE>.

        temperature must be the one sampled with, or the ratio would not be 1 on the first inner step."""
        G, T = tokens.shape[1:]
        cache, last = self._prefill(prompt)
        place = torch.arange(T, device=self.device).repeat(G)  # (G*T,)
        own = torch.block_diag(*[torch.ones(T, T, dtype=torch.bool, device=self.device).tril()] * G)  # (G*T, G*T)
        hidden = self._continue(tokens.flatten(1), place, own, prompt, cache).unflatten(1, (G, T))  # (B, G, T, H)
        before = torch.cat([last[:, None, None].expand(-1, G, 1, -1), hidden[:, :, :-1]], 2)  # foretells token t
        log_softmax = (self.vlm.get_output_embeddings()(before).float() / temperature).log_softmax(-1)  # (B, G, T, W)
        log_prob = log_softmax.gather(-1, tokens[..., None]).squeeze(-1)
        at_pose = ((tokens == self.pose_id) & token_mask).float().argmax(-1)  # the first one; 0 where there is none
        pose = self.pose_head(hidden.take_along_dim(at_pose[..., None, None], 2).squeeze(2))
        return Scores(log_prob, log_softmax, pose)

    def tokenize_answers(self, examples: Sequence) -> tuple[Tensor, Tensor]:
        """The true answers with their end token: ids and bool mask, (B, 1, T)."""
        ids = self.tokenizer([e.answer for e in examples], add_special_tokens=False).input_ids
        rows = [torch.tensor(row + [self.tokenizer.eos_token_id]) for row in ids]
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        mask = torch.arange(tokens.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        return tokens[:, None].to(self.device), mask[:, None].to(self.device)

    # ------------------------------------------------ one folder in Hugging Face layout

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `folder`: VLM and processor as transformers save them, `pose.safetensors` and `pose.json` beside."""
        ours = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("vlm.")}
        head = self.pose_head
        with whole_folder(folder) as partial:
            self.vlm.save_pretrained(partial)
            self.processor.save_pretrained(partial)
            save_file({name: tensor.contiguous() for name, tensor in ours.items()}, partial / "pose.safetensors")
            (partial / "pose.json").write_text(json.dumps({
                "covariance": head.covariance, "sigma_floor": head.sigma_floor,
                "pose_encoder": self.pose_encoder.config}))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "PosePolicy":
        """Read what `save_pretrained` wrote."""
        folder = Path(folder)
        if not (folder / "pose.json").is_file():
            raise FileNotFoundError(f"{folder} holds no policy; python train_rft.py, or train_sft.py, trains one")
        try:
            config = json.loads((folder / "pose.json").read_text())
            vlm, info = AutoModelForImageTextToText.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False, output_loading_info=True)
            policy = cls(vlm, AutoProcessor.from_pretrained(folder, trust_remote_code=False),
                         PoseEncoder(**config["pose_encoder"]), config["covariance"], config["sigma_floor"])
            missing, unexpected = policy.load_state_dict(load_file(folder / "pose.safetensors"), strict=False)
            wrong = [name for name in missing if not name.startswith("vlm.")] + unexpected + [*info["missing_keys"]]
            wrong += [name for name, tensor in policy.state_dict().items() if not tensor.isfinite().all()]
            if wrong:
                raise ValueError(f"missing, not expected or not finite: {', '.join(wrong[:3])}")
        except Exception as error:  # json, safetensors, transformers, jinja and torch each raise their own
            raise ValueError(f"{folder} cannot be read as a policy, train it again: {error!r}") from error
        return policy.eval()
