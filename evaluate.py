"""How good a policy is, by measures that are not its rewards: metrics and a table.

    python evaluate.py --model runs/rft [--poses DIR] [--json FILE]
    python evaluate.py --protocol smpl-24 [--data 3dpw:DIR] [--against runs/sft]
Text to pose: the share of a caption's statements that hold in a sampled pose; recall under a retrieval model that never
gave a reward, beside the recall of true poses (ceiling) and of shuffled ones (floor). Image to pose: joint and vertex
errors after aligning the pelvis, of the mean pose and of sampled poses. All on poses and pictures never trained on.
With --protocol it is measured as the field does (protocols.py), on real data too, with 95 % intervals.
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
from body import forward_kinematics, remove_heading
from engine.saving import load_policy
from real.smpl import load_body
from data import Example, Split, load_splits
from lab.metrics import best_of, bootstrap, errors_24, eval_examples, frechet_distance, hits, recall, respond
from model import PosePolicy
from real.protocols import PROTOCOLS, report_protocol
from rewards import has_form
from builtin.retriever import Retriever
from engine.runtime import pick_device, run

SAMPLES = 8  # poses drawn for each prompt
QUESTIONS = 4  # asked about each picture


# ---------------------------------------------------------------- the evaluation

def statements_held(examples: Sequence[Example], rotmats: Tensor) -> np.ndarray:
    """The share of each example's statements that hold in (N, K, 24, 3, 3), for those that make any."""
    held = captions.pose_holds(rotmats)  # (N, K, S)
    return np.array([held[i][:, list(e.statements)].float().mean().item() for i, e in enumerate(examples)
                     if len(e.statements)])  # a caption from outside may say nothing that can be measured


def evaluate(policy: PosePolicy, split: Split, judge: Retriever, body, count: int = 500, seed: int = 0) -> dict:
    """All metrics of a policy on a split. An answer without a pose counts with the pose head's guess at its place
    (and against `format_rate`, the mean of the four tasks'). Lengths in mm, shares in [0, 1]."""
    policy.eval()
    result, forms, each = {}, [], {}  # each: name -> a number an example, for the intervals

    examples = eval_examples(split, "text2pose", count, seed)
    out = respond(policy, examples, SAMPLES, seed)
    forms.append(np.mean([has_form("text2pose", a) for a in out["answers"]]))
    texts = judge.encode_text([e.caption for e in examples])
    true = torch.stack([e.rotmats for e in examples]).to(policy.device)
    sampled = remove_heading(out["samples"])
    judged = judge.encode_pose(sampled[:, 0])
    joints = forward_kinematics(sampled)[0]  # (N, K, 24, 3)
    apart = (joints[:, :, None] - joints[:, None]).norm(dim=-1).mean(-1)  # (N, K, K)
    truth = judge.encode_pose(true)
    each["statements_sampled"] = statements_held(examples, sampled)
    each["statements_mean"] = statements_held(examples, out["mean"][:, None])
    found = hits(texts @ judged.T)
    each["judge_r5"] = found["t2p_r5"].cpu().numpy()
    result["text2pose"] = {
        "statements_sampled": float(np.mean(each["statements_sampled"])),
        "statements_mean": float(np.mean(each["statements_mean"])),
        "judge_r5": float(np.mean(each["judge_r5"])),
        "diversity_mm": 1000 * apart.sum((-1, -2)).div(SAMPLES * (SAMPLES - 1)).mean().item(),
        "fid": frechet_distance(judged, truth),
        "judge": {name: hit.mean().item() for name, hit in found.items()}, "judge_ceiling": recall(texts, truth),
        "judge_floor": recall(texts, judged.roll(1, 0)),
        "statements_shuffled": float(np.mean(statements_held(examples, true.roll(1, 0)[:, None])))}

    examples = eval_examples(split, "image2pose", count, seed)
    out = respond(policy, examples, 2 * SAMPLES, seed)
    forms.append(np.mean([has_form("image2pose", a) for a in out["answers"]]))
    true = torch.stack([e.rotmats for e in examples]).to(policy.device)
    betas = torch.stack([e.betas for e in examples]).to(policy.device)
    errors = {name: values.cpu().numpy() for name, values in errors_24(out, true, betas, body).items()}
    best = best_of(out, true, betas, body, (1, 5, 10, 16))
    result["image2pose"] = {name: float(np.mean(values)) for name, values in errors.items()} | {
        "best_of": {n: best[f"best_of_{n}"].mean().item() for n in ("1", "5", "10", "16")}}
    each |= errors

    examples = eval_examples(split, "image2text", count, seed)
    answers = respond(policy, examples, 1, seed)["answers"]
    forms.append(np.mean([has_form("image2text", a) for a in answers]))
    made = [list(captions.parse(a)) for a in answers]
    held = captions.pose_holds(torch.stack([e.rotmats for e in examples])).double()  # (N, S)
    result["description"] = {
        "statements_held": float(np.mean([held[i, m].mean().item() if m else 0.0 for i, m in enumerate(made)])),
        "statements_made": float(np.mean([len(m) for m in made]))}

    examples = eval_examples(split, "vqa", count, seed, QUESTIONS)
    answers = respond(policy, examples, 1, seed, greedy=True)["answers"]
    forms.append(np.mean([has_form("vqa", a) for a in answers]))
    right = [a == e.answer for a, e in zip(answers, examples)]
    each["vqa_accuracy"] = np.array(right, dtype=float).reshape(-1, QUESTIONS).mean(1)  # not independent
    result["vqa_accuracy"] = float(np.mean(right))
    result["vqa_commonest"] = commonest_answer_accuracy(examples)
    result["format_rate"] = float(np.mean(forms))
    result["n"] = len(split.rotmats[:count])
    result["intervals"] = {name: bootstrap(values, seed) for name, values in each.items()}  # 95 %
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
    eval_poses: int | None = field(default=None, metadata={"help": "how many; default: 500, or all rows of --data"})
    seed: int = field(default=0, metadata={"help": "seed of the data and of the samples"})
    json: str | None = field(default=None, metadata={"help": "file to write the metrics to"})
    protocol: str | None = field(default=None, metadata={"help": f"of the field: {', '.join(PROTOCOLS)}"})
    data: list[str] | None = field(default=None, metadata={"help": "real data for --protocol, as in train_sft.py"})
    skip_bad: bool = field(default=False, metadata={"help": "leave out what is wrong in --data instead of stopping"})
    body: str | None = field(default=None, metadata={"help": "SMPL: .pkl, .npz or a folder; default: built in"})
    regressor: str | None = field(default=None, metadata={"help": "Human3.6M's joint regressor .npy, for 3dpw-14"})
    against: str | None = field(default=None, metadata={"help": "folder of a policy to compare with, pair by pair"})
    plot: str | None = field(default=None, metadata={"help": "picture to draw of --protocol calibration"})
    device: str | None = field(default=None, metadata={"help": "cuda, mps or cpu; default: the best there is"})


def main() -> None:
    config, = HfArgumentParser(EvaluateConfig, description=__doc__.splitlines()[0]).parse_args_into_dataclasses()
    device, count = pick_device(config.device), 500 if config.eval_poses is None else config.eval_poses
    if count < 1:
        raise ValueError(f"--eval_poses {count}: must be 1 or more")
    if config.protocol:
        result = report_protocol(config, device)
    elif config.data or config.against or config.plot:
        raise ValueError("--data, --against and --plot need a --protocol")
    else:
        policy, body = load_policy(config.model).to(device), load_body(config.body)
        judge = Retriever.from_pretrained(config.judge or Path(config.model).parent / "judge").to(device)
        split = load_splits(config.poses, {"test": count}, config.seed, body_model=body, size=policy.image_size)["test"]
        result = evaluate(policy, split, judge, body.to(device), count, config.seed)
        print(table({Path(config.model).name: result}))
    if config.json:
        Path(config.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
