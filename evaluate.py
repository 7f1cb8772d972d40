"""How good a policy is on poses never trained on, beside what one has without looking: one table.

    python evaluate.py --model runs/rft [--poses DIR] [--json FILE]
Text to pose: the share of a caption's statements that hold in a sampled pose; recall under a retrieval model that gave
no reward, beside that of true poses (ceiling) and of the sampled ones shuffled (floor). Image to pose: joint errors,
pelvis aligned, of mean and sampled poses, vertex errors of the mean. Descriptions and questions: is it true, what is
said? Statements, descriptions, form and answers were rewards, too; the judge was none. lab/floors.py fills `blind`,
lab/metrics.py has the measures; the field's protocols: python -m real.protocols. Read next: predict.py.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from body import forward_kinematics, remove_heading
from builtin.retriever import Retriever, load_judge
from builtin.splits import load_splits
from data import Split
from engine.checkpoint import atomic_write
from engine.runtime import pick_device, run
from engine.saving import load_policy
from engine.settings import Count, OutputFile, SeedNumber, read_settings
from engine.start_from import tell_other_world
from engine.world import WorldConfig
from lab.floors import floors
from lab.metrics import (QUESTIONS, best_of, bootstrap, commonest_answer_accuracy, description_scores, errors_24,
                         eval_examples, frechet_distance, frechet_interval, hits, recall, respond, right_form,
                         statements_held)
from lab.table import table
from model import PosePolicy
from real.smpl import load_body

SAMPLES = 8  # poses drawn for each prompt

# ---------------------------------------------------------------- four tasks: their numbers, and those of each example

def means(each: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(np.mean(values)) for name, values in each.items()}


def text_to_pose(policy: PosePolicy, split: Split, judge: Retriever, count: int, seed: int) -> tuple[dict, dict]:
    """Does the pose do what the sentence says, does the judge find it, and how different are samples of one prompt?"""
    examples = eval_examples(split, "text2pose", count, seed)
    out = respond(policy, examples, SAMPLES, seed)
    sampled = remove_heading(out["samples"])  # (N, K, 24, 3, 3)
    true = torch.stack([e.rotmats for e in examples]).to(policy.device)
    texts, judged, truth = (judge.encode_text([e.caption for e in examples]), judge.encode_pose(sampled[:, 0]),
                            judge.encode_pose(true))  # (N, dim) each
    found = hits(texts @ judged.T)
    own, others = statements_held(examples, sampled)
    joints = forward_kinematics(sampled)[0]  # (N, K, 24, 3)
    apart = (joints[:, :, None] - joints[:, None]).norm(dim=-1).mean(-1)  # (N, K, K) metres
    each = {"statements_sampled": own, "statements_mean": statements_held(examples, out["mean"][:, None])[0],
            "own_minus_others": own - others, "judge_r5": found["t2p_r5"].cpu().numpy(),
            "diversity_mm": 1000 * apart.sum((-1, -2)).div(SAMPLES * (SAMPLES - 1)).cpu().numpy()}
    numbers = means(each) | {
        "fid": frechet_distance(judged, truth), "fid_interval": frechet_interval(judged, truth),
        "judge": {name: hit.mean().item() for name, hit in found.items()}, "judge_ceiling": recall(texts, truth),
        "judge_floor": recall(texts, judged.roll(1, 0)),
        "statements_shuffled": float(np.mean(statements_held(examples, true.roll(1, 0)[:, None])[0]))}
    return numbers, each | right_form(examples, out["answers"])


def image_to_pose(policy: PosePolicy, split: Split, body, count: int, seed: int) -> tuple[dict, dict]:
    """Errors in mm of the mean pose, of sampled poses, and of the best among several."""
    examples = eval_examples(split, "image2pose", count, seed)
    out = respond(policy, examples, 2 * SAMPLES, seed)
    true = torch.stack([e.rotmats for e in examples]).to(policy.device)
    betas = torch.stack([e.betas for e in examples]).to(policy.device)
    each = {name: values.cpu().numpy() for name, values in errors_24(out, true, betas, body).items()}
    best = best_of(out, true, betas, body, (1, 5, 10, 16))
    numbers = means(each) | {"best_of": {n: best[f"best_of_{n}"].mean().item() for n in ("1", "5", "10", "16")}}
    return numbers, each | right_form(examples, out["answers"])


def descriptions(policy: PosePolicy, split: Split, count: int, seed: int) -> tuple[dict, dict]:
    """What a description says of the picture: how much of it holds, and how much more than a blind guess would."""
    examples = eval_examples(split, "image2text", count, seed)
    answers = respond(policy, examples, 1, seed)["answers"]
    each = description_scores(examples, answers)
    return means(each), each | right_form(examples, answers)


def questions(policy: PosePolicy, split: Split, count: int, seed: int) -> tuple[dict, dict]:
    """Are answers the true ones, word for word? Those about one picture are not independent: its mean is one number."""
    examples = eval_examples(split, "vqa", count, seed, QUESTIONS)
    out = respond(policy, examples, 1, seed, greedy=True)
    right = {"vqa_accuracy": np.array([float(a == truth) for a, truth in zip(out["answers"], out["truths"])])}
    numbers = means(right) | {"vqa_commonest": commonest_answer_accuracy(examples)}
    each = right | right_form(examples, out["answers"])  # (N QUESTIONS,) each, then (N,)
    return numbers, {name: values.reshape(-1, QUESTIONS).mean(1) for name, values in each.items()}


def evaluate(policy: PosePolicy, split: Split, judge: Retriever, body, count: int = 500, seed: int = 0) -> dict:
    """All metrics of a policy on a split, with the 95 % `intervals` of those in the table. An answer without a pose
    counts with what the pose head makes of a hidden state of zeros (and against `format_rate`, the mean of the four
    tasks'). Lengths in mm, shares in [0, 1]."""
    policy.eval()
    (text, image, said, asked), parts = zip(
        text_to_pose(policy, split, judge, count, seed), image_to_pose(policy, split, body, count, seed),
        descriptions(policy, split, count, seed), questions(policy, split, count, seed))
    form = {"format_rate": np.mean([part["format_rate"] for part in parts], 0)}  # (N,)
    each = {name: values for part in (*parts, form) for name, values in part.items()}
    intervals = {"fid": text.pop("fid_interval")} | {name: bootstrap(x, seed) for name, x in each.items()}
    return {"text2pose": text, "image2pose": image, "description": said, **asked, **means(form),
            "n": len(split.rotmats[:count]), "intervals": intervals}


# ---------------------------------------------------------------- the command

@dataclass
class EvaluateConfig:
    model: str = field(default="runs/rft", metadata={"help": "folder of a policy"})
    judge: str | None = field(default=None, metadata={"help": "folder of the judge; default: beside the policy"})
    poses: str | None = field(default=None, metadata={"help": "folder of AMASS npz files; default: the built-in poses"})
    eval_poses: Count = field(default=500, metadata={"help": "how many poses of the test split"})
    seed: SeedNumber = field(default=0, metadata={"help": "seed of the data and of the samples"})
    body: str | None = field(default=None, metadata={"help": "SMPL: .pkl, .npz or a folder; default: built in"})
    json: OutputFile | None = field(default=None, metadata={"help": "file to write the metrics to"})
    device: str | None = field(default=None, metadata={"help": "cuda, mps or cpu; default: the best there is"})


def main() -> None:
    config, = read_settings(__doc__, EvaluateConfig)
    poses = tell_other_world(config).get("train_poses", WorldConfig.train_poses)
    device, count, seed = pick_device(config.device), config.eval_poses, config.seed
    policy, body = load_policy(config.model).to(device), load_body(config.body)
    judge = load_judge(config.judge or Path(config.model).parent / "judge", [Path(config.model).parent]).to(device)
    train = load_splits(config.poses, {"train": poses}, seed, images=False)["train"]
    test = load_splits(config.poses, {"test": count}, seed, body_model=body, size=policy.image_size)["test"]
    result = evaluate(policy, test, judge, body.to(device), count, seed)
    blind = result["floors"] = floors(policy, train, test, judge, body, count, seed)
    print(table({"blind": blind, Path(config.model).name: result}))
    if config.json:
        atomic_write(Path(config.json), json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
