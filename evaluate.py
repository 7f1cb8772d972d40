"""How good a policy is, by measures that are not its rewards: metrics and a table.

    python evaluate.py --model runs/rft [--poses DIR] [--json FILE]
Text to pose: the share of a caption's statements that hold in a sampled pose; recall under a retrieval model that never
gave a reward, beside the recall of true poses (ceiling) and of shuffled ones (floor). Image to pose: joint and vertex
errors after aligning the pelvis, of the mean pose and of sampled poses. All on poses and pictures never trained on.
Read next: predict.py, which asks a policy, and pictures.py, which draws what came of a run.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import HfArgumentParser

import captions
from body import body_vertices, forward_kinematics, load_body, remove_heading, rot6d_to_matrix
from data import Example, Split, load_splits, make_example
from model import PosePolicy, pick_device, run
from rewards import Retriever, format_reward

CHUNK = 100  # prompts run at a time
SAMPLES = 8  # poses drawn for each prompt
QUESTIONS = 4  # asked about each picture
RECALL_AT = (1, 5, 10, 20)


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


def recall(texts: Tensor, poses: Tensor) -> dict[str, float]:
    """Recall at 1, 5, 10, 20 of unit vectors (N, dim), row i of one belonging to row i of the other; pool: all N.

    `t2p`: is the pose among the K nearest to its text; `p2t`: the other way.
    """
    similarity = texts @ poses.T  # (N, N)
    own = similarity.diagonal()
    result = {}
    for name, rank in (("t2p", (similarity > own[:, None]).sum(1)), ("p2t", (similarity > own[None, :]).sum(0))):
        result |= {f"{name}_r{k}": (rank < k).float().mean().item() for k in RECALL_AT}
    return result


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance of two clouds (N, dim) and (M, dim), covariances regularised by 1e-6 (Heusel et al. 2017)."""
    a, b = a.double(), b.double()
    eye = 1e-6 * torch.eye(a.shape[1], dtype=torch.float64, device=a.device)
    cov_a, cov_b = a.T.cov() + eye, b.T.cov() + eye
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross).item()


# ---------------------------------------------------------------- the evaluation

def eval_examples(split: Split, task: str, count: int, seed: int = 0, each: int = 1) -> list[Example]:
    """The first `count` poses of a split as examples of a task, `each` times, always with the same words."""
    rng = np.random.default_rng([seed, 77])
    return [make_example(split, task, i, rng) for i in range(min(count, len(split.rotmats))) for _ in range(each)]


@torch.no_grad()
def respond(policy: PosePolicy, examples: Sequence[Example], samples: int, seed: int = 0, greedy: bool = False) -> dict:
    """The policy's answers to examples: `answers`, their words sampled or the likeliest; `mean` pose and `samples`
    drawn at <POSE>, rotation matrices (N, 24, 3, 3) and (N, samples, 24, 3, 3)."""
    seeds = np.random.default_rng([seed, 78]).integers(2 ** 62, size=len(examples))
    rows = {"answers": [], "mean": [], "samples": []}
    for start in range(0, len(examples), CHUNK):
        prompt = policy.encode(examples[start:start + CHUNK])
        rollout = policy.sample(prompt, 1, samples, temperature=0.0 if greedy else 1.0,
                                seeds=seeds[start:start + CHUNK])
        rows["answers"] += [answers[0] for answers in rollout.answers]
        rows["mean"].append(rot6d_to_matrix(rollout.mean[:, 0].unflatten(-1, (24, 6))))
        rows["samples"].append(rot6d_to_matrix(rollout.pose[:, 0].unflatten(-1, (24, 6))))
    return {name: value if name == "answers" else torch.cat(value) for name, value in rows.items()}


def statements_held(examples: Sequence[Example], rotmats: Tensor) -> float:
    """Mean over examples of the share of their statements that hold in (N, K, 24, 3, 3)."""
    held = captions.pose_holds(rotmats)  # (N, K, S)
    return float(np.mean([held[i][:, list(e.statements)].float().mean().item() for i, e in enumerate(examples)]))


def evaluate(policy: PosePolicy, split: Split, judge: Retriever, body, count: int = 500, seed: int = 0) -> dict:
    """All metrics of a policy on a split. An answer without a pose counts with the pose head's guess at its place
    (and against `format_rate`, the mean of the four tasks'). Lengths in mm, shares in [0, 1]."""
    policy.eval()
    result, forms = {}, []

    examples = eval_examples(split, "text2pose", count, seed)
    out = respond(policy, examples, SAMPLES, seed)
    forms.append(np.mean([format_reward("text2pose", a) for a in out["answers"]]))
    texts = judge.encode_text([e.caption for e in examples])
    true = torch.stack([e.rotmats for e in examples]).to(policy.device)
    sampled = remove_heading(out["samples"])
    judged = judge.encode_pose(sampled[:, 0])
    joints = forward_kinematics(sampled)[0]  # (N, K, 24, 3)
    apart = (joints[:, :, None] - joints[:, None]).norm(dim=-1).mean(-1)  # (N, K, K)
    scores = recall(texts, judged)
    truth = judge.encode_pose(true)
    result["text2pose"] = {
        "statements_sampled": statements_held(examples, sampled),
        "statements_mean": statements_held(examples, out["mean"][:, None]),
        "judge_r5": scores["t2p_r5"],
        "diversity_mm": 1000 * apart.sum((-1, -2)).div(SAMPLES * (SAMPLES - 1)).mean().item(),
        "fid": frechet_distance(judged, truth),
        "judge": scores, "judge_ceiling": recall(texts, truth), "judge_floor": recall(texts, judged.roll(1, 0)),
        "statements_shuffled": statements_held(examples, true.roll(1, 0)[:, None])}

    examples = eval_examples(split, "image2pose", count, seed)
    out = respond(policy, examples, 2 * SAMPLES, seed)
    forms.append(np.mean([format_reward("image2pose", a) for a in out["answers"]]))
    true = torch.stack([e.rotmats for e in examples]).to(policy.device)
    betas = torch.stack([e.betas for e in examples]).to(policy.device)
    true_vertices, true_joints = body_vertices(body, true, betas)
    mean_vertices, mean_joints = body_vertices(body, out["mean"], betas)
    rest = body.J_regressor @ (body.v_template + torch.einsum("bl,vcl->bvc", betas, body.shapedirs))  # (N, 24, 3)
    joints = forward_kinematics(out["samples"], rest[:, None])[0]  # (N, K, 24, 3)
    errors = mpjpe(joints, true_joints[:, None])  # (N, K)
    result["image2pose"] = {
        "mpjpe_mean": mpjpe(mean_joints, true_joints).mean().item(), "mpjpe_sampled": errors.mean().item(),
        "pa_mpjpe_mean": pa_mpjpe(mean_joints, true_joints).mean().item(),
        "pa_mpjpe_sampled": pa_mpjpe(joints, true_joints[:, None]).mean().item(),
        "pve_mean": 1000 * (mean_vertices - true_vertices).norm(dim=-1).mean().item(),
        "best_of": {str(n): errors[:, :n].amin(1).mean().item() for n in (1, 5, 10, 16)}}

    examples = eval_examples(split, "image2text", count, seed)
    answers = respond(policy, examples, 1, seed)["answers"]
    forms.append(np.mean([format_reward("image2text", a) for a in answers]))
    made = [list(captions.parse(a)) for a in answers]
    held = captions.pose_holds(torch.stack([e.rotmats for e in examples])).double()  # (N, S)
    result["description"] = {
        "statements_held": float(np.mean([held[i, m].mean().item() if m else 0.0 for i, m in enumerate(made)])),
        "statements_made": float(np.mean([len(m) for m in made]))}

    examples = eval_examples(split, "vqa", count, seed, QUESTIONS)
    answers = respond(policy, examples, 1, seed, greedy=True)["answers"]
    forms.append(np.mean([format_reward("vqa", a) for a in answers]))
    result["vqa_accuracy"] = float(np.mean([a == e.answer for a, e in zip(answers, examples)]))
    result["vqa_commonest"] = commonest_answer_accuracy(examples)
    result["format_rate"] = float(np.mean(forms))
    result["n"] = len(split.rotmats[:count])
    return result


def commonest_answer_accuracy(examples: Sequence[Example]) -> float:
    """How often the commonest answer to each question is right: what one can know without looking."""
    counts: dict[str, dict[str, int]] = {}
    for e in examples:
        counts.setdefault(e.prompt, {}).setdefault(e.answer, 0)
        counts[e.prompt][e.answer] += 1
    return sum(max(answers.values()) for answers in counts.values()) / len(examples)


# ---------------------------------------------------------------- the table

ROWS = (  # what it says, where it stands in the result
    ("text to pose: statements held, sampled pose", ("text2pose", "statements_sampled")),
    ("text to pose: statements held, mean pose", ("text2pose", "statements_mean")),
    ("text to pose: R@5 under the judge", ("text2pose", "judge_r5")),
    ("text to pose: FID under the judge", ("text2pose", "fid")),
    ("text to pose: diversity, mm", ("text2pose", "diversity_mm")),
    ("image to pose: MPJPE of the mean pose, mm", ("image2pose", "mpjpe_mean")),
    ("image to pose: MPJPE of sampled poses, mm", ("image2pose", "mpjpe_sampled")),
    ("image to pose: PA-MPJPE of the mean pose, mm", ("image2pose", "pa_mpjpe_mean")),
    ("image to pose: PVE of the mean pose, mm", ("image2pose", "pve_mean")),
    ("image to text: statements of the answer that hold", ("description", "statements_held")),
    ("questions: accuracy", ("vqa_accuracy",)),
    ("answers of the right form", ("format_rate",)))


def table(results: dict[str, dict]) -> str:
    """The metrics of one or several policies side by side, with the protocol of each, as text."""
    lines = [f"{'':52s}" + "".join(f"{name:>10s}" for name in results)]
    for title, keys in ROWS:
        values = [result[keys[0]][keys[1]] if len(keys) == 2 else result[keys[0]] for result in results.values()]
        lines.append(f"{title:52s}" + "".join(f"{value:10.{1 if max(values) > 2 else 3}f}" for value in values))
    first = next(iter(results.values()))
    text = first["text2pose"]
    return "\n".join(lines + [
        f"n = {first['n']} poses never trained on. Errors: SMPL's 24 joints, pelvis aligned. R@5: pool of all n; true "
        f"poses {text['judge_ceiling']['t2p_r5']:.3f}, shuffled {text['judge_floor']['t2p_r5']:.3f}.",
        f"Statements of shuffled true poses: {text['statements_shuffled']:.3f}. {QUESTIONS} questions a picture: the "
        f"commonest answer to each is right in {first['vqa_commonest']:.3f}."])


@dataclass
class EvaluateConfig:
    model: str = field(default="runs/rft", metadata={"help": "folder of a policy"})
    judge: str | None = field(default=None, metadata={"help": "folder of the judge; default: beside the policy"})
    poses: str | None = field(default=None, metadata={"help": "folder of AMASS npz files; default: the built-in poses"})
    eval_poses: int = field(default=500, metadata={"help": "how many poses of the test split"})
    seed: int = field(default=0, metadata={"help": "seed of the data and of the samples"})
    json: str | None = field(default=None, metadata={"help": "file to write the metrics to"})
    device: str | None = field(default=None, metadata={"help": "cuda, mps or cpu; default: the best there is"})


def main() -> None:
    config, = HfArgumentParser(EvaluateConfig, description=__doc__.splitlines()[0]).parse_args_into_dataclasses()
    device = pick_device(config.device)
    policy = PosePolicy.from_pretrained(config.model).to(device)
    judge = Retriever.from_pretrained(config.judge or Path(config.model).parent / "judge").to(device)
    split = load_splits(config.poses, {"test": config.eval_poses}, config.seed, size=policy.picture)["test"]
    result = evaluate(policy, split, judge, load_body().to(device), config.eval_poses, config.seed)
    print(table({Path(config.model).name: result}))
    if config.json:
        Path(config.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
