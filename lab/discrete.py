"""A policy without a continuous half: poses as words, for claim 13.

    The SMPL pose of this person is <P0_17><P1_90>...<P11_3>.       in place of <POSE>, one code word a group of joints
A code word stands for rotations of its group, the centre of a cluster of train poses (k-means). So a pose is a part of
the sentence: imitation is cross-entropy alone, reinforcement GRPO on words alone, and what HyGRPO has of its own, the
Gaussian, its ratio and its K poses an answer, is not there. train_sft.py and train_rft.py train it as they are, with
`pose_weight` 0: the advantage F of an answer then holds the rewards of its one pose. What a pose loses by being coded
is lost before anything is learned: `quantisation` measures it.

An answer that lacks a code word, or has one out of its place, has no pose: it stands as zeros, all joints at the
pelvis, and no statement holds of it. Each of K poses is that of an answer of its own, and the mean pose is their mean.
Read next: experiments.py, which compares it with the Gaussian policy.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from body import PARENTS, REST_JOINTS, matrix_to_rot6d, rot6d_to_matrix
from captions import POSE_TOKEN
from data import Example, Split
from engine.runtime import own_seed
from lab.metrics import errors_24, eval_examples, statements_held
from model import PosePolicy, Prompt, Rollout

# The root, by which all errs, in two words, the second for what the first leaves; then thighs, spine, lower legs, neck
# and head, upper arms, lower arms.
GROUPS = ([0], [0], [1], [2], [3, 6, 9], [4, 7, 10], [5, 8, 11], [12, 15], [13, 16], [14, 17], [18, 20, 22],
          [19, 21, 23])
N, CODES, ITERATIONS = len(GROUPS), 128, 20


# ---------------------------------------------------------------- the codebook, (N, C, 24, 6), zero outside its group

def _reach() -> Tensor:
    """How far the limb goes on from each joint, bone by bone, and 0.1 m: (24, 1). By so much its end errs a radian."""
    reach = torch.full((24, 1), 0.1)
    for joint, parent in reversed(list(enumerate(PARENTS))[1:]):
        reach[parent] = reach[parent].maximum(reach[joint] + (REST_JOINTS[joint] - REST_JOINTS[parent]).norm())
    return reach


REACH = _reach()


def nearest(poses: Tensor, centres: Tensor, joints: Sequence[int]) -> Tensor:
    """The nearest of centres (C, 24, 6) to each of poses (n, 24, 6) in these joints, weighed by REACH: (n,)."""
    return torch.cdist(*((x * REACH.to(x))[:, joints].flatten(1) for x in (poses, centres))).argmin(-1)


def encode(codebook: Tensor, rotmats: Tensor) -> Tensor:
    """The codes of poses (n, 24, 3, 3), one for each group in turn: (n, N)."""
    left, codes = matrix_to_rot6d(rotmats).to(codebook), []
    for joints, centres in zip(GROUPS, codebook):
        codes.append(nearest(left, centres, joints))
        left = left - centres[codes[-1]]
    return torch.stack(codes, -1)


def decode(codebook: Tensor, codes: Tensor) -> Tensor:
    """The raw 6D poses (..., 24, 6) of codes (..., N): the sum of their centres."""
    return codebook[torch.arange(N, device=codes.device), codes].sum(-3)


def make_codebook(rotmats: Tensor, codes: int, seed: int) -> Tensor:
    """k-means (Lloyd 1982) of poses (n, 24, 3, 3) in one group after the other, from poses drawn at random; a cluster
    that has lost all of its poses stays where it was. codes: how many a group, or n if that is fewer."""
    left = matrix_to_rot6d(rotmats.cpu())  # (n, 24, 6)
    drawn = torch.randperm(len(left), generator=torch.Generator().manual_seed(seed))[:codes]
    codebook = torch.zeros(N, len(drawn), 24, 6)
    for joints, centres in zip(GROUPS, codebook):  # a view: what is written to it stands in the codebook
        centres[:, joints] = left[drawn][:, joints]
        for _ in range(ITERATIONS):
            own = nearest(left, centres, joints)  # (n,)
            count = own.bincount(minlength=len(drawn))[:, None, None]
            total = torch.zeros_like(centres).index_add_(0, own, left)
            centres[:, joints] = torch.where(count > 0, total / count.clamp_min(1), centres)[:, joints]
        left = left - centres[nearest(left, centres, joints)]
    return codebook


# ---------------------------------------------------------------- the policy

class DiscretePolicy(PosePolicy):
    """The parts of a policy, and in place of <POSE> a word for each code of each group of joints. The codes are found
    anew from the poses of `split`, the same ones for the same seed. Its pose head is there and nothing asks it."""

    def __init__(self, policy: PosePolicy, split: Split, seed: int):
        rotmats = torch.cat([split.rotmats, split.image_rotmats])  # without the headings of pictures, and with them
        codebook = make_codebook(rotmats, CODES, own_seed(seed, 17))
        is_new = policy.tokenizer.add_tokens([f"<P{g}_{code}>" for g in range(N) for code in range(codebook.shape[1])])
        torch.manual_seed(own_seed(seed, 16))  # of the new words' rows, whichever arms came before
        super().__init__(policy.vlm, policy.processor, policy.pose_encoder, image_size=policy.image_size)
        self.pose_projector, self.pose_head = policy.pose_projector, policy.pose_head
        self.register_buffer("codebook", codebook, persistent=False)
        self.first = self.tokenizer.convert_tokens_to_ids("<P0_0>")
        if is_new:  # a group's words share a part of their rows, or each had to learn its group's place by itself
            for table in (self.vlm.get_input_embeddings(), self.vlm.get_output_embeddings()):
                rows = table.weight.detach()[self.first:].unflatten(0, (N, -1))  # (N, C, H), a view
                rows += rows.std() * torch.randn_like(rows[:, :1])
        self.spelled = re.compile("".join(rf"<P{group}_\d+>" for group in range(N)))
        self.to(policy.device).eval()

    def tokenize_answers(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """The true answers, their poses as code words, with their end token: ids and bool mask, (B, 1, T)."""
        rows = encode(self.codebook, torch.stack([e.rotmats for e in examples])).tolist()
        words = ["".join(f"<P{group}_{code}>" for group, code in enumerate(row)) for row in rows]
        return super().tokenize_answers([replace(example, answer=example.answer.replace(POSE_TOKEN, pose))
                                         for example, pose in zip(examples, words)])

    def read_poses(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The raw 6D poses (..., 144) that answers (..., T) spell, and whether they do, bool (...): from the first code
        word on one for each group, in order. Zeros where there is none."""
        codes, groups = self.codebook.shape[1], torch.arange(N, device=tokens.device)
        begin = (tokens >= self.first).float().argmax(-1, keepdim=True)  # (..., 1)
        words = torch.nn.functional.pad(tokens, (0, N)).gather(-1, begin + groups) - self.first  # (..., N)
        found = (words.div(codes, rounding_mode="floor") == groups).all(-1)  # (...)
        return decode(self.codebook, words % codes).flatten(-2) * found[..., None], found

    def sample(self, prompt: Prompt, group_size: int, poses_per_answer: int, *args, **options) -> Rollout:
        """As a PosePolicy does. For K > 1 poses an answer, K answers are drawn, and the words of the first given."""
        drawn = super().sample(prompt, group_size * poses_per_answer, 1, *args, **options)
        pose, found = self.read_poses(drawn.tokens)  # (B, G K, 144), (B, G K)
        pose, first = pose.unflatten(1, (group_size, poses_per_answer)), slice(None, None, poses_per_answer)
        answers = [[self.spelled.sub(POSE_TOKEN, answer) for answer in group[first]] for group in drawn.answers]
        return Rollout(drawn.tokens[:, first], drawn.token_mask[:, first], found[:, first], pose, answers, pose.mean(2))


# ---------------------------------------------------------------- what coding alone costs

def quantisation(codebook: Tensor, split: Split, body, count: int, seed: int) -> dict[str, float]:
    """What evaluate would say of a policy that answers with the codes of the true poses: the MPJPE in mm of those in
    pictures, and the share of the statements of sentences that hold."""
    shown, told, betas = (x[:count].to(codebook) for x in (split.image_rotmats, split.rotmats, split.betas))
    coded, retold = (rot6d_to_matrix(decode(codebook, encode(codebook, x)))[:, None] for x in (shown, told))
    errors = errors_24({"mean": coded[:, 0], "samples": coded}, shown, betas, body)
    held, _ = statements_held(eval_examples(split, "text2pose", count, seed), retold)
    return {"MPJPE, mm": errors["mpjpe_mean"].mean().item(), "statements": float(held.mean())}


def sentence(found: Sequence[dict[str, float]]) -> str:
    """What `quantisation` found, one a seed, as mean ± standard deviation."""
    numbers = {name: [one[name] for one in found] for name in found[0]}
    return f"True poses as {N} code words and back: " + ", ".join(
        f"{name} {np.mean(x):.3f} ± {np.std(x, ddof=1) if len(x) > 1 else 0:.3f}" for name, x in numbers.items())
