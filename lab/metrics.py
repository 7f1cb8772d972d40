"""Measures of poses, of words and of retrieval, and what they take: a policy's answers to a split's examples.

Errors are in mm. A measure gives a number for each example, so that `bootstrap` can say how sure their mean is.
Read next: ../evaluate.py, which puts them into one table.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import captions
from body import forward_kinematics, rot6d_to_matrix
from builtin.denials import signed
from data import Example, Split, make_example
from model import PosePolicy
from real.answers import as_read
from real.smpl import body_vertices
from rewards import has_form, informedness

CHUNK = 100  # prompts run at a time, at most
RECALL_AT = (1, 5, 10, 20)
QUESTIONS = 4  # asked about each picture


# ---------------------------------------------------------------- measures

def mpjpe(joints: Tensor, true_joints: Tensor) -> Tensor:
    """Mean joint error (...,) in mm of (..., 24, 3) in metres: SMPL's 24 joints, pelvis aligned."""
    aligned = (joints - joints[..., :1, :]) - (true_joints - true_joints[..., :1, :])
    return 1000 * aligned.norm(dim=-1).mean(-1)


def similarity_fit(x: Tensor, y: Tensor) -> Tensor:
    """x (..., n, 3) turned, scaled and shifted to lie as near to y as can be in squares (Umeyama 1991)."""
    x, center = x - x.mean(-2, keepdim=True), y.mean(-2, keepdim=True)
    U, S, Vh = torch.linalg.svd(x.mT @ (y - center))  # (..., 3, 3)
    sign = torch.ones_like(S)
    sign[..., -1] = torch.det(U @ Vh).sign()  # a reflection is not a rotation
    scale = (S * sign).sum(-1) / x.square().sum((-1, -2)).clamp_min(1e-12)
    return scale[..., None, None] * (x @ ((U * sign[..., None, :]) @ Vh)) + center


def pa_mpjpe(joints: Tensor, true_joints: Tensor) -> Tensor:
    """Mean joint error (...,) in mm of (..., 24, 3) in metres after the similarity transform that fits best."""
    return 1000 * (similarity_fit(joints, true_joints) - true_joints).norm(dim=-1).mean(-1)


def hits(similarity: Tensor, at: Sequence[int] = RECALL_AT) -> dict[str, Tensor]:
    """Is the own one among the K nearest? similarity: (N, N), a row a sentence, a column a pose. Returns name -> (N,).

    Among equals chance decides, and its odds are given: a policy with one pose for all sentences finds none of them.
    What is NaN, as of a pose that is not finite, is not found."""
    own, result = similarity.diagonal()[:, None], {}
    for way, rows in (("t2p", similarity), ("p2t", similarity.T)):
        nearer, equal = (rows > own).sum(1), (rows == own).sum(1)  # the own one is among its equals, unless it is NaN
        result |= {f"{way}_r{k}": ((k - nearer) / equal.clamp_min(1)).clamp(0, 1) * (equal > 0) for k in at}
    return result


def recall(texts: Tensor, poses: Tensor) -> dict[str, float]:
    """Recall at 1, 5, 10, 20 of unit vectors (N, dim), row i of one belonging to row i of the other; pool: all N.

    `t2p`: is the pose among the K nearest to its text; `p2t`: the other way.
    """
    return {name: found.mean().item() for name, found in hits(texts @ poses.T).items()}


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance of two clouds (N, dim) and (M, dim), covariances regularised by 1e-6 (Heusel et al. 2017)."""
    a, b = a.cpu().double(), b.cpu().double()  # on the CPU: Apple's GPUs know no float64
    if not (a.isfinite().all() and b.isfinite().all()) or min(len(a), len(b)) < 2:  # one pose has no covariance
        return float("nan")
    eye = 1e-6 * torch.eye(a.shape[1], dtype=torch.float64)
    cov_a, cov_b = a.T.cov() + eye, b.T.cov() + eye
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross).item()


def bootstrap(values: np.ndarray, seed: int = 0, resamples: int = 1000) -> tuple[float, float]:
    """The 95 % interval of the mean of values (N,): percentiles over resamples with replacement (Efron 1979)."""
    rng = np.random.default_rng([seed, 79])
    means = values[rng.integers(len(values), size=(resamples, len(values)))].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def frechet_interval(a: Tensor, b: Tensor, groups: int = 20) -> tuple[float, float]:
    """The 95 % interval of the Frechet distance of (N, dim) and (N, dim): 1.96 standard errors about it, by leaving out
    every 20th row, then the next (delete-a-group jackknife). Rows drawn twice, as by the bootstrap, would raise it."""
    distance, group = frechet_distance(a, b), torch.arange(len(a), device=a.device) % groups
    without = np.array([frechet_distance(a[group != g], b[group != g]) for g in range(min(groups, len(a)))])
    error = 1.96 * float(np.sqrt((len(without) - 1) * without.var()))
    return (max(0.0, distance - error), distance + error) if error == error else (error, error)


def compare(values: np.ndarray, others: np.ndarray, seed: int = 0) -> dict:
    """Two policies on the same examples, values and others (N,): the mean difference, its 95 % interval over resampled
    pairs, and in what share of the examples the first is lower or higher."""
    difference = values - others
    return {"difference": float(difference.mean()), "interval": list(bootstrap(difference, seed)),
            "lower_in": float((difference < 0).mean()), "higher_in": float((difference > 0).mean())}


# ---------------------------------------------------------------- measures of words

def statements_held(examples: Sequence[Example], rotmats: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The share of each example's statements that hold in its own poses (N, K, 24, 3, 3), and the mean share of the
    other examples' statements that hold there: (n,) and (n,), of those n examples that make any. Of a pose of zeros,
    which is none, nothing holds."""
    speaking = [i for i, e in enumerate(examples) if len(e.statements)]  # a caption from outside may make none
    said = torch.zeros(len(speaking), 2 * captions.S).double()
    for row, i in zip(said, speaking):
        row[list(examples[i].statements)] = 1.0
    rotmats = rotmats[speaking].cpu()  # on the CPU, for float64, as above
    holds = signed(captions.pose_holds(rotmats).double()) * rotmats.flatten(-3).any(-1)[..., None]  # (n, K, 2 S)
    holds = holds.mean(1)
    share = said @ holds.T / said.sum(1, keepdim=True)  # (n, n): of the statements of one, in the pose of the other
    own = share.diagonal()
    return own.numpy(), ((share.sum(0) - own) / max(1, len(speaking) - 1)).numpy()


def description_scores(examples: Sequence[Example], answers: Sequence[str]) -> dict[str, np.ndarray]:
    """Of the answer to each example (N,): how many statements it makes (`statements_made`), the share of them that
    holds in the picture (`statements_held`), and `informed`: rewards.informedness, the base rates taken from the other
    pictures, over its mean for the true descriptions. Whoever does not look has 0 there, and no more than that."""
    said = [captions.parse(answer) for answer in answers]
    holds = signed(torch.from_numpy(np.stack([e.holds for e in examples])).double())  # (N, 2 S)
    others = (holds.sum(0) - holds) / max(1, len(holds) - 1)  # one answer for all pictures then has exactly 0
    earned, truth = (np.array([informedness(*row) for row in zip(statements, holds, others)])
                     for statements in (said, [e.statements for e in examples]))
    return {"statements_held": np.array([holds[i, list(s)].mean().item() if s else 0.0 for i, s in enumerate(said)]),
            "statements_made": np.array([float(len(s)) for s in said]), "informed": earned / max(truth.mean(), 1e-9)}


def right_form(examples: Sequence[Example], answers: Sequence[str]) -> dict[str, np.ndarray]:
    """Whether each answer has the form that its task asks for: (N,), 0 or 1."""
    return {"format_rate": np.array([float(has_form(e.task, answer)) for e, answer in zip(examples, answers)])}


def commonest_answer_accuracy(examples: Sequence[Example]) -> float:
    """How often the commonest answer to each question is right: what one can know without looking."""
    counts: dict[str, dict[str, int]] = {}
    for e in examples:
        counts.setdefault(e.prompt, {}).setdefault(e.answer, 0)
        counts[e.prompt][e.answer] += 1
    return sum(max(answers.values()) for answers in counts.values()) / len(examples)


# ---------------------------------------------------------------- a policy's answers, and the errors of their poses

def eval_examples(split: Split, task: str, count: int, seed: int = 0, each: int = 1) -> list[Example]:
    """The first `count` poses of a split as examples of a task, `each` times, always with the same words."""
    rng = np.random.default_rng([seed, 77])
    return [make_example(split, task, i, rng) for i in range(min(count, len(split.rotmats))) for _ in range(each)]


@torch.no_grad()
def respond(policy: PosePolicy, examples: Sequence[Example], samples: int, seed: int = 0, greedy: bool = False) -> dict:
    """The policy's answers to examples: `answers`, their words sampled or the likeliest, and `truths`, the true ones
    after they have been tokens; `mean` pose and `samples` drawn at <POSE>, rotation matrices (N, 24, 3, 3) and
    (N, samples, 24, 3, 3)."""
    seeds = np.random.default_rng([seed, 78]).integers(2 ** 62, size=len(examples))
    rows = {"answers": [], "truths": [e.answer for e in as_read(policy, examples)], "mean": [], "samples": []}
    chunk = min(CHUNK, 8 * policy.images_at_once)  # fewer of a model with large pictures, as in training
    for start in range(0, len(examples), chunk):
        prompt = policy.encode(examples[start:start + chunk])
        rollout = policy.sample(prompt, 1, samples, temperature=0.0 if greedy else 1.0,
                                seeds=seeds[start:start + chunk])
        rows["answers"] += [answers[0] for answers in rollout.answers]
        rows["mean"].append(rot6d_to_matrix(rollout.mean[:, 0].unflatten(-1, (24, 6))))
        rows["samples"].append(rot6d_to_matrix(rollout.pose[:, 0].unflatten(-1, (24, 6))))
    return {name: torch.cat(value) if name in ("mean", "samples") else value for name, value in rows.items()}


def errors_24(out: dict, true: Tensor, betas: Tensor, body) -> dict[str, Tensor]:
    """SMPL's 24 joints, its pelvis joint the root: errors of the mean pose, and of samples beside.

    out: of `respond`, `mean` (N, 24, 3, 3), `samples` (N, K, 24, 3, 3). true: (N, 24, 3, 3). betas: (N, 10)."""
    vertices, joints = body_vertices(body, out["mean"], betas)
    true_vertices, true_joints = body_vertices(body, true, betas)
    samples = sampled_joints(out, betas, body)  # (N, K, 24, 3)
    return {"mpjpe_mean": mpjpe(joints, true_joints), "pa_mpjpe_mean": pa_mpjpe(joints, true_joints),
            "pve_mean": 1000 * (vertices - true_vertices).norm(dim=-1).mean(-1),
            "mpjpe_sampled": mpjpe(samples, true_joints[:, None]).mean(1),
            "pa_mpjpe_sampled": pa_mpjpe(samples, true_joints[:, None]).mean(1)}


def sampled_joints(out: dict, betas: Tensor, body) -> Tensor:
    """The 24 joints (N, K, 24, 3) of each sample, by kinematics alone: SMPL's joints need no skin."""
    rest = body.J_regressor @ (body.v_template + torch.einsum("bl,vcl->bvc", betas, body.shapedirs))  # (N, 24, 3)
    return forward_kinematics(out["samples"], rest[:, None])[0]


def best_of(out: dict, true: Tensor, betas: Tensor, body, counts: Sequence[int] = (1, 5, 10, 25)) -> dict[str, Tensor]:
    """The least error among the first N samples, beside their mean: a wider sigma improves the least alone."""
    errors = mpjpe(sampled_joints(out, betas, body), body_vertices(body, true, betas)[1][:, None])  # (N, K)
    found = {f"best_of_{n}": errors[:, :n].amin(1) for n in counts}
    return found | {f"mean_of_{n}": errors[:, :n].mean(1) for n in counts}
