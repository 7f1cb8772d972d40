"""The field's protocols, on the built-in test split or on real data.

    python -m real.protocols --protocol smpl-24 [--model runs/rft] [--data 3dpw:DIR] [--against runs/sft] [--json FILE]
Each says which joints and which root it takes, and gives a number for each example, so that an interval can say how
sure a mean is, and two policies can be compared example by example. docs/protocols.md lists them.
Read next: ../lab/metrics.py for the measures, formats.py for the files.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

import captions
from body import axis_rotation, matrix_to_axis_angle, matrix_to_rot6d, remove_heading
from builtin.denials import signed
from builtin.retriever import load_judge
from builtin.splits import load_splits
from data import Example
from engine.checkpoint import atomic_write
from engine.runtime import own_seed, pick_device, run
from engine.saving import load_policy
from engine.settings import Count, OutputFile, OutputPicture, SeedNumber, read_settings
from engine.start_from import tell_other_world
from lab.metrics import (CHUNK, RECALL_AT, best_of, bootstrap, compare, errors_24, eval_examples, frechet_distance,
                         hits, pa_mpjpe, respond)
from model import PosePolicy
from real.formats import read_data
from real.smpl import body_vertices, load_body

# Of the 17 joints that Human3.6M's regressor gives, the 14 that 3DPW is measured on, in LSP's order; its joint 0 is the
# pelvis that is the root (Kolotouros et al., SPIN, 2019).
H36M_TO_14 = (6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10)

# The task each asks, and what it says of itself. A policy gives a pose and no shape: the true one is given to both.
PROTOCOLS = {
    "smpl-24": ("image2pose", "SMPL's 24 joints, root: its pelvis joint; true shape"),
    "3dpw-14": ("image2pose", "14 joints by Human3.6M's regressor, root: its pelvis, joint 0; true shape, no gender"),
    "rpe": ("image2pose", "SMPL's 24 joints, root: its pelvis joint; true shape; RPE-Refined, keyed by id"),
    "best-of-n": ("image2pose", "SMPL's 24 joints, root: its pelvis joint; true shape; the first N of 25 samples"),
    "calibration": ("image2pose", "the 144 raw numbers of the 24 rotations, after the true words"),
    "posescript": ("text2pose", "retrieval by the judge; pools: all, and random ones of 32, 10 times")}



@dataclass
class ProtocolConfig:
    protocol: str | None = field(default=None, metadata={"help": ", ".join(PROTOCOLS)})
    model: str = field(default="runs/rft", metadata={"help": "folder of a policy"})
    against: str | None = field(default=None, metadata={"help": "folder of a policy to compare with, pair by pair"})
    data: list[str] | None = field(default=None, metadata={"help": "as of train_sft.py; default: the test split"})
    skip_bad: bool = field(default=False, metadata={"help": "leave out what is wrong in --data instead of stopping"})
    poses: str | None = field(default=None, metadata={"help": "folder of AMASS npz files; default: the built-in poses"})
    eval_poses: Count | None = field(default=None, metadata={"help": "how many; default: 500, or all rows of --data"})
    seed: SeedNumber = field(default=0, metadata={"help": "seed of the data and of the samples"})
    body: str | None = field(default=None, metadata={"help": "SMPL: .pkl, .npz or a folder; default: built in"})
    judge: str | None = field(default=None, metadata={"help": "folder of posescript's judge; default: beside --model"})
    regressor: str | None = field(default=None, metadata={"help": "Human3.6M's joint regressor .npy, for 3dpw-14"})
    json: OutputFile | None = field(default=None, metadata={"help": "file to write the numbers to, each example's too"})
    plot: OutputPicture | None = field(default=None, metadata={"help": "picture to draw of calibration"})
    device: str | None = field(default=None, metadata={"help": "cuda, mps or cpu; default: the best there is"})


# ---------------------------------------------------------------- 3dpw-14

def read_regressor(path: str | None) -> Tensor:
    """Human3.6M's joint regressor (17, V) from a .npy file."""
    try:
        regressor = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))
        if not regressor.isfinite().all():
            raise ValueError("it holds NaN or infinity")
    except Exception as error:  # numpy and the system each raise their own
        raise ValueError(f"--regressor {path}: 3dpw-14 needs J_regressor_h36m.npy, (17, 6890) ({error})") from error
    return regressor


def check_regressor(regressor: Tensor, body) -> Tensor:
    """The regressor. ValueError where it is for another body."""
    if regressor.shape != (17, len(body.v_template)):
        raise ValueError(f"the regressor must be (17, {len(body.v_template)}), a column a vertex of the body, "
                         f"found {tuple(regressor.shape)}; Human3.6M's is for SMPL itself (--body)")
    return regressor


def errors_14(out: dict, true: Tensor, betas: Tensor, body, regressor: Tensor) -> dict[str, Tensor]:
    """3DPW's protocol: 14 joints that Human3.6M's regressor (17, V) finds among the vertices, its pelvis the root."""
    check_regressor(regressor, body)
    joints, true_joints = (regressor @ body_vertices(body, rotmats, betas)[0] for rotmats in (out["mean"], true))
    joints, true_joints = ((j - j[:, :1])[:, H36M_TO_14] for j in (joints, true_joints))  # (N, 14, 3)
    return {"mpjpe_mean": 1000 * (joints - true_joints).norm(dim=-1).mean(-1),
            "pa_mpjpe_mean": pa_mpjpe(joints, true_joints)}


# ---------------------------------------------------------------- posescript

def retrieval(texts: Tensor, poses: Tensor, seed: int = 0, pool: int = 32,
              repeats: int = 10) -> tuple[dict[str, Tensor], dict[str, float]]:
    """PoseScript's recall of unit vectors (N, dim) of sentences and poses, both ways, and mRecall, the mean over
    K = 1, 5, 10 and both ways: in the full pool, for each example (N,), and in random pools of 32, hits averaged over
    `repeats` ways to part the set. With the latter R-precision, in the same pools, at 1, 2 and 3 (Guo et al. 2022)."""
    mean = lambda of: sum(of[f"{way}_r{k}"] for way in ("t2p", "p2t") for k in (1, 5, 10)) / 6
    full = hits(texts @ poses.T)
    rng, found = np.random.default_rng([seed, 80]), []
    for _ in range(repeats):
        order = rng.permutation(len(texts))
        for start in range(0, max(1, len(order) - pool + 1), pool):  # pools of one size; what is left over waits
            rows = torch.from_numpy(order[start:start + pool]).to(texts.device)
            found.append(hits(texts[rows] @ poses[rows].T, (*RECALL_AT, 2, 3)))
    pools = {name: torch.cat([of[name] for of in found]).mean().item() for name in found[0]}
    whole = {f"pools_{name}": pools[name] for name in full} | {"pools_mrecall": mean(pools)}
    return ({f"full_{name}": values for name, values in full.items()} | {"full_mrecall": mean(full)},
            whole | {f"r_precision_{k}": pools[f"t2p_r{k}"] for k in (1, 2, 3)})


def retrieval_beside_truth(each: dict[str, Tensor], seed: int) -> dict[str, float]:
    """Retrieval from a whole set's vectors, which leave `each`; what it gives for each example stays there. Beside it
    that of the true poses (ceiling) and of shuffled ones (floor)."""
    texts, poses, truth = (each.pop(name) for name in ("text", "pose", "truth"))
    full, whole = retrieval(texts, poses, seed)
    each |= full
    for name, others in (("true_", truth), ("shuffled_", poses.roll(1, 0))):
        full, pools = retrieval(texts, others, seed)
        whole |= {name + key: float(value.mean()) for key, value in full.items()}
        whole |= {name + key: value for key, value in pools.items()}
    return whole | ({"fid": frechet_distance(poses, truth)} if len(poses) > 1 else {})  # one pose has no spread


# ---------------------------------------------------------------- calibration

def calibration(pose: Distribution, true: Tensor) -> dict[str, Tensor]:
    """Does sigma tell the truth? pose: N Gaussians; true: (N, D) raw. `nll`: nats a number; `inside_50`, `inside_90`:
    is the truth in the smallest region of that probability; `pit` (N, D): the share of each number's Gaussian below it,
    uniform if all is well."""
    D = true.shape[-1]
    if isinstance(pose, Independent):
        white = (true - pose.mean) / pose.stddev
    else:
        white = torch.linalg.solve_triangular(pose.scale_tril, (true - pose.mean)[..., None], upper=False)[..., 0]
    far = white.square().sum(-1).cpu().double()  # (N,) squared Mahalanobis distance, chi-square of D degrees of freedom
    nearer = torch.special.gammainc(torch.full_like(far, D / 2), far / 2).to(true)  # (N,) probability of what is nearer
    inside = {f"inside_{share}": (nearer < share / 100).float() for share in (50, 90)}
    pit = Normal(pose.mean, pose.stddev, validate_args=False).cdf(true)
    return {"nll": -pose.log_prob(true) / D, **inside, "pit": pit}


# ---------------------------------------------------------------- what is asked, and what is measured of it

def protocol_examples(config: ProtocolConfig, policy: PosePolicy,
                      task: str) -> Iterator[tuple[list[str], list[Example]]]:
    """What a protocol asks, and the id of each, CHUNK at a time: 3DPW's bodies at once would fill 27 GB. The test rows
    of --data (all, or --eval_poses of them spread evenly: neighbours are frames of one motion), else the test split."""
    if not config.data:
        count = config.eval_poses or 500
        split = load_splits(config.poses, {"test": count}, config.seed, body_model=load_body(config.body),
                            size=policy.image_size)["test"]
        examples = eval_examples(split, task, count, config.seed)
        for i in range(0, len(examples), CHUNK):
            yield [str(j) for j in range(i, min(i + CHUNK, len(examples)))], examples[i:i + CHUNK]
        return
    mixture = read_data(config.data, "test", policy.image_size, config.skip_bad)
    mixture.meet(policy)
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
def follow_protocol(name: str, policy: PosePolicy, examples: Sequence[Example], body, instrument, seed: int) -> dict:
    """A protocol's numbers for each example, name -> (n, ..). instrument: what 3dpw-14 (a regressor) and posescript
    (the judge) measure with."""
    true = torch.stack([e.rotmats for e in examples]).to(policy.device)
    betas = torch.stack([e.betas for e in examples]).to(policy.device)
    if name == "calibration":
        pose = policy.log_prob(policy.encode(examples), *policy.tokenize_answers(examples)).pose  # batch (n, 1)
        return {key: x[:, 0] for key, x in calibration(pose, matrix_to_rot6d(true).flatten(1)[:, None]).items()}
    out = respond(policy, examples, 25, seed, greedy=True)
    each = {"no_pose": torch.tensor([float(captions.POSE_TOKEN not in answer) for answer in out["answers"]])}
    if name == "3dpw-14":
        return each | errors_14(out, true, betas, body, instrument)
    if name == "best-of-n":
        return each | best_of(out, true, betas, body)
    if name == "posescript":
        upright = remove_heading(out["samples"])
        held = signed(captions.pose_holds(upright).float())  # (n, K, 2 S); the mean over no statement is NaN
        return each | {"statements": torch.stack([held[i][:, list(e.statements)].mean()
                                                  for i, e in enumerate(examples)]),
                       "text": instrument.encode_text([e.caption for e in examples]),
                       "pose": instrument.encode_pose(upright[:, 0]),
                       "truth": instrument.encode_pose(remove_heading(true))}
    if name == "rpe":  # as SMPL's files have it, in the camera's frame
        camera = out["mean"].clone()
        camera[:, 0] = axis_rotation(0, torch.tensor(180.0)).to(true) @ camera[:, 0]
        each["predictions"] = matrix_to_axis_angle(camera).flatten(1)  # (n, 72)
    return each | errors_24(out, true, betas, body)


def report_number(name: str, values: Sequence[Tensor], ids: Sequence[str], config: ProtocolConfig) -> dict:
    """Print the mean over examples of values (n, ..), one tensor a policy, with its 95 % interval; return both with the
    number of each example under `name`, nothing where no example has any (NaN)."""
    values = [value.flatten(1).mean(1) if value.dim() > 1 else value for value in values]  # (n,)
    measured = np.flatnonzero(~values[0].isnan().numpy())  # a caption may say nothing that captions.py measures
    if not len(measured):
        print(f"  {name:16s} of none of the {len(ids)}")
        return {}
    values = [value.double().numpy()[measured] for value in values]
    low, high = bootstrap(values[0], config.seed)
    result = {"mean": float(values[0].mean()), "interval": [low, high], "n": len(measured),
              "each": {ids[i]: value for i, value in zip(measured, values[0].tolist())}}
    line = f"  {name:16s}{values[0].mean():10.3f}   95 % [{low:.3f}, {high:.3f}]"
    line += f", of {len(measured)}" * (len(measured) < len(ids))
    if config.against:
        pair = compare(*values, config.seed)
        result["against"] = {"model": config.against} | pair
        line += (f"   less that of {config.against}: {pair['difference']:+.3f} [{pair['interval'][0]:+.3f}, "
                 f"{pair['interval'][1]:+.3f}], lower in {pair['lower_in']:.0%}, higher in {pair['higher_in']:.0%}")
    print(line)
    return {name: result}


def check_flags(config: ProtocolConfig) -> None:
    """ValueError for flags that do not go together, before anything is loaded."""
    if config.protocol not in PROTOCOLS:
        raise ValueError(f"--protocol {config.protocol or 'NAME'}: choose from {', '.join(PROTOCOLS)}")
    if config.protocol == "rpe" and not all(spec.startswith("rpe:") for spec in config.data or [""]):
        raise ValueError("--protocol rpe asks the questions of RPE-Refined: give --data rpe:FILE.json,IMAGE_DIR")
    if config.data and config.poses:
        raise ValueError("--poses and --data are two sources of examples: give one of them")
    if config.plot and config.protocol != "calibration":
        raise ValueError("--plot draws calibration: use it with --protocol calibration")


def measure(config: ProtocolConfig, device: torch.device) -> tuple[list[str], list[dict[str, Tensor]]]:
    """The ids of the examples, and each policy's numbers for them: name -> (n, ..). --against comes second."""
    body = load_body(config.body).to(device)
    instrument = None
    if config.protocol == "3dpw-14":
        instrument = check_regressor(read_regressor(config.regressor), body).to(device)
    if config.protocol == "posescript":
        runs = sorted({Path(path).resolve().parent for path in (config.model, config.against) if path})
        instrument = load_judge(config.judge or Path(config.model).parent / "judge", runs).to(device)
    policies = [load_policy(path).to(device) for path in (config.model, config.against) if path]
    if len({policy.image_size for policy in policies}) > 1:
        raise ValueError(f"{config.model} and {config.against} were taught on pictures of different sizes")
    ids, parts = [], [[] for _ in policies]
    for names, examples in protocol_examples(config, policies[0], PROTOCOLS[config.protocol][0]):
        seed = own_seed(config.seed, 81, len(ids))  # no chunk has the samples of another, nor those of another seed
        for policy, part in zip(policies, parts):
            part.append(follow_protocol(config.protocol, policy, examples, body, instrument, seed))
        ids += names
    if not ids:
        raise ValueError(f"--data {' '.join(config.data or [])}: every row was left out")
    return ids, [{name: torch.cat([chunk[name] for chunk in part]).cpu() for name in part[0]} for part in parts]


def report(config: ProtocolConfig, ids: Sequence[str], found: list[dict[str, Tensor]]) -> dict:
    """Print what was measured, --against beside it, and return it."""
    whole = [retrieval_beside_truth(each, config.seed) if config.protocol == "posescript" else {} for each in found]
    says = PROTOCOLS[config.protocol][1]
    result = {"protocol": config.protocol, "says": says, "n": len(ids), "seed": config.seed, "model": config.model,
              "data": config.data or "the test split"}
    print(f"{config.protocol}: {says}. N = {len(ids)}, seed {config.seed}, data: {result['data']}.")
    predictions = [each.pop("predictions", None) for each in found]
    if config.protocol == "rpe":
        result["predictions"] = dict(zip(ids, predictions[0].tolist()))
    for name in found[0]:
        result |= report_number(name, [each[name] for each in found], ids, config)
    for name in whole[0]:
        print(f"  {name:32s}" + "".join(f"{numbers[name]:10.3f}" for numbers in whole))
    return result | whole[0] | ({"against_whole": whole[1]} if config.against and whole[1] else {})


def main() -> None:
    config, = read_settings(__doc__, ProtocolConfig)
    check_flags(config)
    if not config.data:
        tell_other_world(config)
    ids, found = measure(config, pick_device(config.device))
    result = report(config, ids, found)
    if config.json:
        atomic_write(Path(config.json), json.dumps(result, indent=1) + "\n")
    if config.plot:
        from lab import calibration_picture  # matplotlib only where something is drawn
        calibration_picture.draw(Path(config.plot), found[0]["pit"].numpy())


if __name__ == "__main__":
    run(main)
