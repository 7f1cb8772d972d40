"""How good a policy is, by measures that are not its rewards: metrics and a table.

    python evaluate.py --model runs/rft [--poses DIR] [--json FILE]
    python evaluate.py --protocol smpl-24 [--data 3dpw:DIR] [--against runs/sft]
Text to pose: the share of a caption's statements that hold in a sampled pose; recall under a retrieval model that never
gave a reward, beside the recall of true poses (ceiling) and of shuffled ones (floor). Image to pose: joint and vertex
errors after aligning the pelvis, of the mean pose and of sampled poses. All on poses and pictures never trained on.
With --protocol it is measured as the field does (metrics.py), on real data too, with 95 % intervals.
Read next: predict.py, which asks a policy, and pictures.py, which draws what came of a run.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import HfArgumentParser

import captions
from body import (forward_kinematics, load_body, matrix_to_axis_angle, matrix_to_rot6d, remove_heading,
                  rot6d_to_matrix)
from data import Example, Split, load_splits, make_example
from formats import read_data
from metrics import (best_of, bootstrap, calibration, compare, draw_calibration, errors_14, errors_24, frechet_distance,
                     hits, read_regressor, recall, retrieval_beside_truth)
from model import PosePolicy
from poses import turn
from rewards import Retriever, format_reward, load_judge
from scripts import pick_device, run

CHUNK = 100  # prompts run at a time
SAMPLES = 8  # poses drawn for each prompt
QUESTIONS = 4  # asked about each picture


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
    forms.append(np.mean([format_reward("text2pose", a) for a in out["answers"]]))
    texts = judge.encode_text([e.caption for e in examples])
    true = torch.stack([e.rotmats for e in examples]).to(policy.device)
    sampled = remove_heading(out["samples"])
    judged = judge.encode_pose(sampled[:, 0])
    joints = forward_kinematics(sampled)[0]  # (N, K, 24, 3)
    apart = (joints[:, :, None] - joints[:, None]).norm(dim=-1).mean(-1)  # (N, K, K)
    truth = judge.encode_pose(true)
    each["statements_sampled"] = statements_held(examples, sampled)
    each["statements_mean"] = statements_held(examples, out["mean"][:, None])
    each["judge_r5"] = hits(texts @ judged.T)["t2p_r5"].cpu().numpy()
    result["text2pose"] = {
        "statements_sampled": float(np.mean(each["statements_sampled"])),
        "statements_mean": float(np.mean(each["statements_mean"])),
        "judge_r5": float(np.mean(each["judge_r5"])),
        "diversity_mm": 1000 * apart.sum((-1, -2)).div(SAMPLES * (SAMPLES - 1)).mean().item(),
        "fid": frechet_distance(judged, truth),
        "judge": recall(texts, judged), "judge_ceiling": recall(texts, truth),
        "judge_floor": recall(texts, judged.roll(1, 0)),
        "statements_shuffled": float(np.mean(statements_held(examples, true.roll(1, 0)[:, None])))}

    examples = eval_examples(split, "image2pose", count, seed)
    out = respond(policy, examples, 2 * SAMPLES, seed)
    forms.append(np.mean([format_reward("image2pose", a) for a in out["answers"]]))
    true = torch.stack([e.rotmats for e in examples]).to(policy.device)
    betas = torch.stack([e.betas for e in examples]).to(policy.device)
    errors = {name: values.cpu().numpy() for name, values in errors_24(out, true, betas, body).items()}
    best = best_of(out, true, betas, body, (1, 5, 10, 16))
    result["image2pose"] = {name: float(np.mean(values)) for name, values in errors.items()} | {
        "best_of": {n: best[f"best_of_{n}"].mean().item() for n in ("1", "5", "10", "16")}}
    each |= errors

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


# ---------------------------------------------------------------- the field's protocols

# The task each asks, and what it says of itself. A policy gives a pose and no shape: the true one is given to both.
PROTOCOLS = {
    "smpl-24": ("image2pose", "SMPL's 24 joints, root: its pelvis joint; true shape"),
    "3dpw-14": ("image2pose", "14 joints by Human3.6M's regressor, root: its pelvis, joint 0; true shape, no gender"),
    "rpe": ("image2pose", "SMPL's 24 joints, root: its pelvis joint; true shape; RPE-Refined, keyed by id"),
    "best-of-n": ("image2pose", "SMPL's 24 joints, root: its pelvis joint; true shape; the first N of 25 samples"),
    "calibration": ("image2pose", "the 144 raw numbers of the 24 rotations, after the true words"),
    "posescript": ("text2pose", "retrieval by the judge; pools: all, and random ones of 32, 10 times")}


def protocol_examples(config: "EvaluateConfig", policy: PosePolicy,
                      task: str) -> Iterator[tuple[list[str], list[Example]]]:
    """What a protocol asks, and the id of each, CHUNK at a time: 3DPW's bodies at once would fill 27 GB. The test rows
    of --data (all, or --eval_poses of them spread evenly: neighbours are frames of one motion), else the test split."""
    if not config.data:
        count = config.eval_poses or 500
        split = load_splits(config.poses, {"test": count}, config.seed, body_model=load_body(config.body),
                            size=policy.picture)["test"]
        examples = eval_examples(split, task, count, config.seed)
        for i in range(0, len(examples), CHUNK):
            yield [str(j) for j in range(i, min(i + CHUNK, len(examples)))], examples[i:i + CHUNK]
        return
    mixture = read_data(config.data, "test", policy.picture, config.skip_bad)
    rows = [(source, i) for source in mixture.sources if task in source.tasks for i in range(len(source))]
    ids = [source.rows[i].id or source.rows[i].where for source, i in rows]
    if not rows:
        raise ValueError(f"--data {' '.join(config.data)} has no {task} rows, which this protocol asks for")
    if twice := next((name for name, count in Counter(ids).items() if count > 1), None):
        raise ValueError(f"--data {' '.join(config.data)}: two rows have the id {twice}; it must tell them apart")
    chosen = np.linspace(0, len(rows) - 1, min(config.eval_poses or len(rows), len(rows))).astype(int)
    print(f"{len(chosen)} of {len(rows)} {task} rows")
    rng, known = np.random.default_rng([config.seed, 77]), mixture.faults.count
    for start in range(0, len(chosen), CHUNK):
        made = {}
        for source, i, name in ((*rows[j], ids[j]) for j in chosen[start:start + CHUNK]):
            with mixture.faults.at(source.rows[i].where):
                made[name] = source.example(i, task, rng)
        if made:
            yield list(made), list(made.values())
    if mixture.faults.count > known:
        print(f"left out {mixture.faults.count - known} when drawn, the first: {mixture.faults.first}")


@torch.no_grad()
def follow_protocol(name: str, policy: PosePolicy, examples: Sequence[Example], body, given, seed: int) -> dict:
    """A protocol's numbers for each example, name -> (n, ..). given: the regressor of 3dpw-14, posescript's judge."""
    true = torch.stack([e.rotmats for e in examples]).to(policy.device)
    betas = torch.stack([e.betas for e in examples]).to(policy.device)
    if name == "calibration":
        pose = policy.log_prob(policy.encode(examples), *policy.tokenize_answers(examples)).pose  # batch (n, 1)
        return {key: x[:, 0] for key, x in calibration(pose, matrix_to_rot6d(true).flatten(1)[:, None]).items()}
    out = respond(policy, examples, 25, seed, greedy=True)
    each = {"no_pose": torch.tensor([float(captions.POSE_TOKEN not in answer) for answer in out["answers"]])}
    if name == "3dpw-14":
        return each | errors_14(out, true, betas, body, given)
    if name == "best-of-n":
        return each | best_of(out, true, betas, body)
    if name == "posescript":
        upright = remove_heading(out["samples"])
        held = captions.pose_holds(upright)  # (n, K, S); the mean over no statement is NaN
        return each | {"statements": torch.stack([held[i][:, list(e.statements)].float().mean()
                                                  for i, e in enumerate(examples)]),
                       "text": given.encode_text([e.caption for e in examples]),
                       "pose": given.encode_pose(upright[:, 0]), "truth": given.encode_pose(remove_heading(true))}
    if name == "rpe":  # as SMPL's files have it, in the camera's frame
        camera = out["mean"].clone()
        camera[:, 0] = turn(0, torch.tensor(180.0)).to(true) @ camera[:, 0]
        each["predictions"] = matrix_to_axis_angle(camera).flatten(1)  # (n, 72)
    return each | errors_24(out, true, betas, body)


def report_protocol(config: "EvaluateConfig", device: torch.device) -> dict:
    """Print a protocol's numbers, each with its 95 % interval, beside those of --against. Returns them."""
    if config.protocol not in PROTOCOLS:
        raise ValueError(f"--protocol {config.protocol}: choose from {', '.join(PROTOCOLS)}")
    if config.protocol == "rpe" and not all(spec.startswith("rpe:") for spec in config.data or [""]):
        raise ValueError("--protocol rpe asks the questions of RPE-Refined: give --data rpe:FILE.json,IMAGE_DIR")
    if config.plot and config.protocol != "calibration":
        raise ValueError("--plot draws calibration: use it with --protocol calibration")
    task, says = PROTOCOLS[config.protocol]
    body = load_body(config.body).to(device)
    given = read_regressor(config.regressor).to(device) if config.protocol == "3dpw-14" else None
    if config.protocol == "posescript":
        runs = sorted({Path(path).resolve().parent for path in (config.model, config.against) if path})
        given = load_judge(config.judge or Path(config.model).parent / "judge", runs).to(device)
    policies = [PosePolicy.from_pretrained(path).to(device) for path in (config.model, config.against) if path]
    if len({policy.picture for policy in policies}) > 1:
        raise ValueError(f"{config.model} and {config.against} were taught on pictures of different sizes")
    ids, parts = [], [[] for _ in policies]
    for names, examples in protocol_examples(config, policies[0], task):
        for policy, part in zip(policies, parts):
            part.append(follow_protocol(config.protocol, policy, examples, body, given, config.seed + len(ids)))
        ids += names
    if not ids:
        raise ValueError(f"--data {' '.join(config.data or [])}: every row was left out")
    found = [{name: torch.cat([one[name] for one in part]).cpu() for name in part[0]} for part in parts]
    whole = [retrieval_beside_truth(each, config.seed) if config.protocol == "posescript" else {} for each in found]
    result = {"protocol": config.protocol, "says": says, "n": len(ids), "seed": config.seed, "model": config.model,
              "data": config.data or "the test split"}
    print(f"{config.protocol}: {says}. N = {len(ids)}, seed {config.seed}, data: {result['data']}.")
    predictions = [each.pop("predictions", None) for each in found]
    if config.protocol == "rpe":
        result["predictions"] = dict(zip(ids, predictions[0].tolist()))
    for name in found[0]:
        values = [each[name].flatten(1).mean(1) if each[name].dim() > 1 else each[name] for each in found]
        told = np.flatnonzero(~values[0].isnan().numpy())  # a caption may say nothing that captions.py measures
        if not len(told):
            print(f"  {name:16s} of none of the {len(ids)}")
            continue
        values = [value.double().numpy()[told] for value in values]
        low, high = bootstrap(values[0], config.seed)
        result[name] = {"mean": float(values[0].mean()), "interval": [low, high], "n": len(told),
                        "each": {ids[i]: value for i, value in zip(told, values[0].tolist())}}
        line = f"  {name:16s}{values[0].mean():10.3f}   95 % [{low:.3f}, {high:.3f}]"
        line += f", of {len(told)}" * (len(told) < len(ids))
        if config.against:
            pair = compare(*values, config.seed)
            result[name]["against"] = {"model": config.against} | pair
            line += (f"   less that of {config.against}: {pair['difference']:+.3f} [{pair['interval'][0]:+.3f}, "
                     f"{pair['interval'][1]:+.3f}], lower in {pair['lower_in']:.0%}, higher in {pair['higher_in']:.0%}")
        print(line)
    for name in whole[0]:
        print(f"  {name:32s}" + "".join(f"{numbers[name]:10.3f}" for numbers in whole))
    if config.plot:
        draw_calibration(Path(config.plot), found[0]["pit"].numpy())
    return result | whole[0] | ({"against_whole": whole[1]} if config.against and whole[1] else {})


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
        policy, body = PosePolicy.from_pretrained(config.model).to(device), load_body(config.body)
        judge = Retriever.from_pretrained(config.judge or Path(config.model).parent / "judge").to(device)
        split = load_splits(config.poses, {"test": count}, config.seed, body_model=body, size=policy.picture)["test"]
        result = evaluate(policy, split, judge, body.to(device), count, config.seed)
        print(table({Path(config.model).name: result}))
    if config.json:
        Path(config.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
