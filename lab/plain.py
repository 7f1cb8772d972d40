"""The plain way to run a group of answers, as TRL's GRPOTrainer does: nothing is shared, nothing is kept.

Every answer is a row of its own with its own copy of prompt and image. transformers' `generate` samples; then prompt
and answer go as one sequence through the whole VLM, vision tower and pose-aware encoder included, once for the
reference and once in training, in micro-batches as memory allows. Slow, and simple enough to trust: the tests hold
model.py against it, benchmark.py times both, against_trl.py the trainer itself.
"""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model import POSE_DIM, PosePolicy, Rollout, Scores, draw_poses


class PlainWay:
    """Answers of `policy` to examples (with `prompt` and `image`); B prompts, G answers each, R = B x G rows."""

    def __init__(self, policy: PosePolicy, examples: Sequence, group_size: int, micro_batch: int = 16):
        self.policy, self.group_size, self.micro_batch = policy, group_size, micro_batch
        self.examples = [e for e in examples for _ in range(group_size)]

    def prepare(self) -> None:
        """Tokens, pixels and images of all rows, as the VLM's forward and the pose encoder take them."""
        prompt, images = self.policy.encode(self.examples), [e.image for e in self.examples if e.image is not None]
        self.inputs, self.images = {"input_ids": prompt.ids, "attention_mask": prompt.mask}, None
        if images:
            processor = self.policy.processor
            pixels = processor(images=images, text=[processor.image_token] * len(images), return_tensors="pt",
                               add_special_tokens=False).to(self.policy.device)
            self.inputs |= {name: x for name, x in pixels.items() if name not in self.inputs}
            self.images = torch.from_numpy(np.stack(images)).to(self.policy.device)

    @contextmanager
    def pose_features(self, policy: PosePolicy, rows: slice):
        """Inside, the VLM's own forward finds the pose features of these rows at their tokens."""
        def put(module, inputs, embeds):
            here = inputs[0] == policy.pose_feature_id
            here[:, self.inputs["input_ids"].shape[1]:] = False  # one that an answer happens to hold is only a word
            if self.images is None or not here.any():
                return embeds
            with torch.no_grad():
                features = policy.pose_encoder(self.images[rows])
            return embeds.masked_scatter(here[..., None], policy.pose_projector(features).to(embeds))
        hook = policy.vlm.get_input_embeddings().register_forward_hook(put)
        try:
            yield
        finally:
            hook.remove()

    @torch.no_grad()
    def generate(self, tokens: int) -> Tensor:
        """Answers (R, T) of transformers' own sampling."""
        with self.pose_features(self.policy, slice(None)):
            output = self.policy.vlm.generate(
                **self.inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=True, temperature=1.0,
                top_k=0, top_p=1.0, pad_token_id=self.policy.tokenizer.pad_token_id,
                suppress_tokens=self.policy.spare_ids.tolist() or None)
        return output[:, self.inputs["input_ids"].shape[1]:]

    @torch.no_grad()
    def sample(self, poses: int, tokens: int) -> Rollout:
        self.prepare()
        states = []  # the state that foretells each token; that of a <POSE> in the last place is never computed
        hook = self.policy.vlm.get_output_embeddings().register_forward_pre_hook(
            lambda module, inputs: states.append(inputs[0][:, -1]))
        ids = self.generate(tokens)
        hook.remove()
        at_pose = ((ids == self.policy.pose_id).float().argmax(-1) + 1).clamp_max(tokens - 1)
        hidden = torch.stack(states, 1)[torch.arange(len(ids), device=ids.device), at_pose]  # (R, H)
        pose = draw_poses(self.policy.pose_head(hidden), torch.randn(len(ids), poses, POSE_DIM, device=ids.device))
        answers = self.policy.tokenizer.batch_decode(ids)
        group = lambda x: x.unflatten(0, (-1, self.group_size))
        return Rollout(group(ids), torch.ones_like(group(ids), dtype=torch.bool),
                       group((ids == self.policy.pose_id).any(-1)), group(pose),
                       [answers[i:i + self.group_size] for i in range(0, len(answers), self.group_size)])

    def batches(self, rollout: Rollout, F: Tensor, Delta: Tensor) -> list[tuple]:
        """Micro-batches of single answers: (B, G, ...) becomes (B * G, 1, ...)."""
        flat = [x.flatten(0, 1)[:, None] for x in (*rollout[:4], F, Delta)]
        batches = []
        for start in range(0, len(flat[0]), self.micro_batch):
            rows = slice(start, start + self.micro_batch)
            *parts, F, Delta = (x[rows] for x in flat)
            batches.append((rows, Rollout(*parts, answers=[]), F, Delta))
        return batches

    def log_prob(self, policy: PosePolicy, rows: slice, rollout: Rollout) -> Scores:
        """Prompt and answer as one sequence through the whole VLM, without a cache."""
        tokens, token_mask = rollout.tokens[:, 0], rollout.token_mask[:, 0]  # (R, T)
        R, T = tokens.shape
        inputs = {name: x[rows] for name, x in self.inputs.items()}
        inputs["input_ids"] = torch.cat([inputs["input_ids"], tokens], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], token_mask.long()], 1)
        position_ids = (inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)
        with self.pose_features(policy, rows):
            hidden = policy.vlm.base_model(**inputs, position_ids=position_ids, use_cache=False).last_hidden_state
        logits = policy.vlm.get_output_embeddings()(hidden[:, -T - 1:-1]).float()  # (R, T, W)
        logits = logits.index_fill(-1, policy.spare_ids.to(logits.device), torch.finfo(logits.dtype).min)
        log_softmax = logits.log_softmax(-1)
        log_prob = log_softmax.gather(-1, tokens[..., None]).squeeze(-1)
        at_pose = ((tokens == policy.pose_id) & token_mask).float().argmax(-1)
        pose = policy.pose_head(hidden[torch.arange(R, device=tokens.device), at_pose - T][:, None])
        return Scores(log_prob[:, None], log_softmax[:, None], pose)


@dataclass
class SharedPrompt:
    """Our way (model.py), in the same form: all answers of a group behind one prompt, all groups in one batch."""

    policy: PosePolicy
    examples: Sequence
    group_size: int

    def sample(self, poses: int, tokens: int) -> Rollout:
        self.prompt = self.policy.encode(self.examples)
        return self.policy.sample(self.prompt, self.group_size, poses, tokens)

    def batches(self, rollout: Rollout, F: Tensor, Delta: Tensor) -> list[tuple]:
        return [(slice(None), rollout, F, Delta)]

    def log_prob(self, policy: PosePolicy, rows: slice, rollout: Rollout) -> Scores:
        return policy.log_prob(self.prompt, rollout.tokens, rollout.token_mask)
