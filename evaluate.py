"""How good a policy is, by measures that are not its rewards: one table.

    python evaluate.py --model runs/rft [--poses DIR] [--json FILE]
Text to pose: the share of a caption's statements that hold in a sampled pose; recall under a retrieval model that never
gave a reward, beside the recall of true poses (ceiling) and of shuffled ones (floor). Image to pose: joint and vertex
errors, pelvis aligned, of the mean pose and of sampled poses. Descriptions and questions: is it true, what is said? All
on poses and pictures never trained on; beside each row stands what one has without looking (lab/floors.py).
The field's protocols, on real data too, are a command of their own: python -m real.protocols.
Read next: predict.py, which asks a policy. The measures themselves are in lab/metrics.py.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from body import forward_kinematics, remove_heading
from builtin.retriever import Retriever
from data import Split, load_splits
from engine.checkpoint import atomic_write
from engine.runtime import pick_device, run
from engine.saving import load_policy
from engine.settings import Count, OutputFile, SeedNumber, read_settings
from lab.floors import floors
from lab.metrics import (best_of, bootstrap, commonest_answer_accuracy, description_scores, errors_24, eval_examples,
                         frechet_distance, frechet_interval, hits, recall, respond, right_form, statements_held)
from model import PosePolicy
from real.smpl import load_body

SAMPLES = 8  # poses drawn for each prompt
QUESTIONS = 4  # asked about each picture

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
    counts with the pose head's guess at its place (and against `format_rate`, the mean of the four tasks'). Lengths in
    mm, shares in [0, 1]."""
    policy.eval()
    (text, image, said, asked), parts = zip(
        text_to_pose(policy, split, judge, count, seed), image_to_pose(policy, split, body, count, seed),
        descriptions(policy, split, count, seed), questions(policy, split, count, seed))
    form = {"format_rate": np.mean([part["format_rate"] for part in parts], 0)}  # (N,)
    each = {name: values for part in (*parts, form) for name, values in part.items()}
    intervals = {"fid": text.pop("fid_interval")} | {name: bootstrap(x, seed) for name, x in each.items()}
    return {"text2pose": text, "image2pose": image, "description": said, **asked, **means(form),
            "n": len(split.rotmats[:count]), "intervals": intervals}


# ---------------------------------------------------------------- the table

ROWS = (  # what it says, where it stands in the result
    ("text to pose: statements held, sampled pose", ("text2pose", "statements_sampled")),
    ("text to pose: statements held, mean pose", ("text2pose", "statements_mean")),
    ("text to pose: statements held, own minus others'", ("text2pose", "own_minus_others")),
    ("text to pose: R@5 under the judge", ("text2pose", "judge_r5")),
    ("text to pose: FID under the judge", ("text2pose", "fid")),
    ("text to pose: diversity, mm", ("text2pose", "diversity_mm")),
    ("image to pose: MPJPE of the mean pose, mm", ("image2pose", "mpjpe_mean")),
    ("image to pose: MPJPE of sampled poses, mm", ("image2pose", "mpjpe_sampled")),
    ("image to pose: PA-MPJPE of the mean pose, mm", ("image2pose", "pa_mpjpe_mean")),
    ("image to pose: PVE of the mean pose, mm", ("image2pose", "pve_mean")),
    ("image to text: statements of the answer that hold", ("description", "statements_held")),
    ("image to text: said beyond a blind guess (truth: 1)", ("description", "informed")),
    ("questions: accuracy", ("vqa_accuracy",)),
    ("answers of the right form", ("format_rate",)))


def table(results: dict[str, dict]) -> str:
    """The metrics of policies side by side, and how they were measured, as text. The last one is a policy; of `blind`
    (lab/floors.py), if it is among them, not every row is filled."""
    lines = [f"{'':52s}" + "".join(f"{name:>10s}" for name in results)]
    for title, keys in ROWS:
        values = [result[keys[0]] if len(keys) == 1 else result[keys[0]].get(keys[1]) for result in results.values()]
        digits = 1 if max(value for value in values if value is not None) > 2 else 3
        lines.append(f"{title:52s}" + "".join(f"{'-':>10s}" if v is None else f"{v:10.{digits}f}" for v in values))
    last, blind = list(results.values())[-1], results.get("blind")
    text = last["text2pose"]
    lines += [f"n = {last['n']} poses never trained on. Errors: SMPL's 24 joints, pelvis aligned. R@5: pool of all n; "
              f"true poses {text['judge_ceiling']['t2p_r5']:.3f}, shuffled {text['judge_floor']['t2p_r5']:.3f}.",
              f"Statements of shuffled true poses: {text['statements_shuffled']:.3f}. {QUESTIONS} questions a picture: "
              f"the commonest answer to each is right in {last['vqa_commonest']:.3f}."]
    if blind:
        lines.append("blind: the best one pose for all sentences, one pose for all pictures, one description. "
                     f"FID of as many true training poses: {blind['fid_true']:.3f}.")
    if blind and "probe" in blind:
        lines.append(f"A linear probe of the frozen image features: MPJPE {blind['probe']['mpjpe_mean']:.1f} mm, "
                     f"PA-MPJPE {blind['probe']['pa_mpjpe_mean']:.1f} mm.")
    return "\n".join(lines)


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
    device, count, seed = pick_device(config.device), config.eval_poses, config.seed
    policy, body = load_policy(config.model).to(device), load_body(config.body)
    judge = Retriever.from_pretrained(config.judge or Path(config.model).parent / "judge").to(device)
    train = load_splits(config.poses, {"train": 8000}, seed, images=False)["train"]
    test = load_splits(config.poses, {"test": count}, seed, body_model=body, size=policy.image_size)["test"]
    result = evaluate(policy, test, judge, body.to(device), count, seed)
    blind = result["floors"] = floors(policy, train, test, judge, body, count, seed)
    print(table({"blind": blind, Path(config.model).name: result}))
    if config.json:
        atomic_write(Path(config.json), json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
