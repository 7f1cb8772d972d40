"""The paper's claims, tried on the built-in world. Prints a table a claim (docs/claims.md).

    python -m lab.experiments [--claims 1 4 7] [--seeds 0 1 2] [--out runs_experiments] [--quick]
    python -m lab.experiments --stability stability.png      # ten times the steps, with and without KL; no table
    python -m lab.experiments --claims 11 --seeds 0 1 --start_from runs_0 runs_1     # from SFT policies that are there
Arms of one seed share their pictures, image encoders, SFT start and retrieval models, so that they differ in what is
asked and in nothing else. A comparison is made seed by seed (paired); it holds when every seed agrees. The retrieval
model that judges is not the one that rewards.

Each finished arm leaves OUT/seed_N/ARM.json and is not run again, so that a broken call goes on where it stopped, and
calls for different seeds can share the work: `OMP_NUM_THREADS=1 python -m lab.experiments --seeds 0 & ...`. With one
thread an arm's seconds are those of its own processor, which busy neighbours lengthen by up to a fifth: arms of equal
time need equal neighbours. With more threads they are the clock's.
Read next: claims.py, which lists claims and arms.
"""

import json
import shutil
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from matplotlib.figure import Figure

import evaluate
import rewards
import train_rft as stage_two
import train_sft as stage_one
from body import remove_heading
from builtin.retriever import load_or_train_retrievers
from builtin.tiny import PoseEncoder
from builtin.tiny_encoders import train_encoders
from data import Split
from engine.checkpoint import atomic_folder, atomic_write, check_folder, constants, read_note
from engine.lock import hold
from engine.runtime import own_seed, pick_device, run
from engine.saving import load_policy, save_policy
from engine.settings import Count, OutputFile, OutputFolder, OutputPicture, SeedNumber, read_settings
from engine.world import WorldConfig, build_policy, keep_features, load_world
from lab import agreement, claims_figure, discrete
from lab.claims import ARMS, BASE, BESIDE, CLAIMS, EQUAL_TIME, LONG, MEASURES, SIDE_BY_SIDE, arm_settings, value
from lab.claims_table import compare, side_by_side, summary, table
from lab.continued_sft import ContinuedConfig
from lab.curves import BLUE, ORANGE, finish, plot_smoothed
from lab.metrics import eval_examples, recall, respond
from lab.validation import validate
from model import PoseHead, PosePolicy
from real.smpl import load_body
from train_rft import RFTConfig, train_rft
from train_sft import SFTConfig, train_sft

CURVES = ("statements", "semantic", "joint", "correct", "sigma", "pose_kl", "val_statements_sampled", "val_judge_r5",
          "val_diversity_mm", "val_mpjpe_mean")  # kept of an arm


@dataclass
class ExperimentConfig:
    claims: list[int] = field(default_factory=lambda: list(CLAIMS), metadata={"help": "numbers of the claims to try"})
    seeds: list[SeedNumber] = field(default_factory=lambda: [0, 1, 2],
                                    metadata={"help": "seeds of data, training, samples"})
    out: OutputFolder = field(default="runs_experiments", metadata={"help": "folder of finished arms"})
    start_from: list[str] | None = field(default=None, metadata={
        "help": "a run of train_rft.py for each seed, whose encoders, SFT policy and retrieval models are taken"})
    rft_steps: Count = field(default=RFTConfig.rft_steps, metadata={"help": "steps of HyGRPO (4 with --quick)"})
    eval_poses: Count = field(default=150, metadata={"help": "poses that judge an arm (16 with --quick)"})
    json: OutputFile | None = field(default=None, metadata={"help": "file to write the table's numbers to"})
    figure: OutputPicture | None = field(default=None, metadata={"help": "picture to draw of claims 2, 5 and 6"})
    stability: OutputPicture | None = field(default=None, metadata={
        "help": "picture to draw of HyGRPO for ten times its default number of steps, with KL and floor and without"})
    quick: bool = field(default=False, metadata={"help": "a world so small that the numbers mean nothing"})
    device: str | None = field(default=None, metadata={"help": "cuda, mps or cpu; default: the best there is"})


def sizes(config: ExperimentConfig) -> SimpleNamespace:
    """How large everything is: as in `python train_rft.py`, unless --quick or --rft_steps say less."""
    if config.quick:
        return SimpleNamespace(poses=64, eval=16, encoder=4, sft=6, retriever=4, most=8, gradients=1, rft={
            "rft_steps": 4, "prompts": 4, "poses_per_answer": 4, "group_size": 2, "eval_every": 4})
    return SimpleNamespace(poses=WorldConfig.train_poses, eval=config.eval_poses, encoder=SFTConfig.encoder_steps,
                           sft=SFTConfig.sft_steps, retriever=RFTConfig.retriever_steps, most=10**6, gradients=8,
                           rft={"rft_steps": config.rft_steps})


def clock() -> float:
    """Seconds: with one thread those that this process has computed, without those in which it waited for a core."""
    return time.process_time() if torch.get_num_threads() == 1 else time.time()


# ---------------------------------------------------------------- one seed: what its arms share, and an arm

class Seed:
    """The world of one seed: splits, retrieval models and starts, made when first asked for and kept."""

    def __init__(self, config: ExperimentConfig, seed: int):
        self.seed, self.size, self.device = seed, sizes(config), pick_device(config.device)
        self.folder = Path(config.out) / f"seed_{seed}"
        self.world = WorldConfig(out=str(self.folder), seed=seed, device=config.device, train_poses=self.size.poses,
                                 eval_poses=self.size.eval)
        self.config = SFTConfig(encoder_steps=self.size.encoder, sft_steps=self.size.sft)
        check_folder(self.folder, "settings.json", vars(self.size) | {
            "rft": asdict(RFTConfig(**self.size.rft | BASE)), "REWARDS": rewards.weights(),
            "SFT": constants(vars(stage_one)), "RFT": constants(vars(stage_two))})
        self.features = {}  # of pictures, by the encoders they come from
        if config.start_from:
            self.take(Path(config.start_from[config.seeds.index(seed)]))

    def take(self, run: Path) -> None:
        """Copy what a run of this seed has made before stage two. ValueError where it was made with other settings."""
        names = {"encoders": "encoders", "sft": "start, gaussian", "reward": "reward", "judge": "judge"}
        missing = [str(run / name) for name in ("sft_config.json", *names) if not (run / name).exists()]
        if missing:
            raise ValueError(f"--start_from {run}: {missing[0]} is not there; name a run of train_rft.py that has come "
                             "to stage two")
        asked = asdict(replace(self.world, eval_poses=0)) | asdict(self.config) | constants(vars(stage_one))
        noted = read_note(run / "sft_config.json") | {"eval_poses": 0}
        other = [f"{name} {noted.get(name)}, not {value}" for name, value in asked.items()
                 if name not in ("out", "device", "skip_bad") and noted.get(name) != value]
        if other:
            raise ValueError(f"--start_from {run}: it was made with {'; '.join(other)}")
        for name, own in names.items():
            if not (self.folder / own).exists():
                with atomic_folder(self.folder / own) as partial:
                    shutil.copytree(run / name, partial, dirs_exist_ok=True)

    @cached_property
    def splits(self) -> dict[str, Split]:
        return load_world(self.world, self.config)

    def encoders(self) -> PosePolicy:
        """A policy with image encoders and nothing else taught."""
        folder = self.folder / "encoders"
        if not folder.exists():
            policy = build_policy(self.world, self.config, self.splits)
            train_encoders(policy, self.splits["train"], self.size.encoder, self.seed)
            save_policy(policy, folder)
        return load_policy(folder).to(self.device)

    def start(self, name: str) -> PosePolicy:
        """The SFT policy `gaussian`, `lowrank`, `full`, `deterministic` (sigma is the floor), `no pose encoder`, or
        `discrete` (lab/discrete.py)."""
        folder = self.folder / f"start, {name}"
        if not folder.exists():
            policy = self.encoders()
            if name == "no pose encoder":
                policy.pose_encoder = PoseEncoder(tokens=0).eval().requires_grad_(False).to(self.device)
            if name in ("lowrank", "full"):
                torch.manual_seed(own_seed(self.seed, 15))  # whichever arms came before
                policy.pose_head = PoseHead(policy.pose_projector[1].out_features, name).to(self.device)
            if name == "deterministic":
                policy.pose_head.sigma.requires_grad_(False).bias.fill_(-50.0)  # softplus leaves nothing of it
            if name == "discrete":
                policy = discrete.DiscretePolicy(policy, self.splits["train"], self.seed)
            self.share_features(policy, name)
            train_sft(policy, self.splits["train"], self.config, self.seed)
            save_policy(policy, folder)
        policy = load_policy(folder).to(self.device)
        if name == "discrete":  # from here on with the codes of its words
            policy = discrete.DiscretePolicy(policy, self.splits["train"], self.seed)
        self.share_features(policy, name)
        return policy

    def share_features(self, policy: PosePolicy, name: str) -> None:
        """Encode the train split's pictures, once for all starts that have the same encoders."""
        policy.frozen_features = self.features.setdefault(name == "no pose encoder", {})
        keep_features(policy, self.splits)

    def run(self, arm: str) -> dict:
        """The result of an arm: evaluate's metrics, `seconds` of its training, and the rewards of every step."""
        file = self.folder / f"{arm}.json"
        if file.exists():
            return json.loads(file.read_text())
        start, changes = ARMS[arm]
        policy, rows, body = self.start(start), [], load_body().to(self.device)
        retrievers = load_or_train_retrievers(policy, self.world, self.size.retriever)
        began, steps, prompts = clock(), 0, 0
        if changes == "sft":  # as long as HyGRPO took
            steps = max(1, round(ContinuedConfig.steps * self.size.rft["rft_steps"] / RFTConfig.rft_steps))
            prompts = steps * SFTConfig.sft_batch
            train_sft(policy, self.splits["train"], SFTConfig(sft_steps=steps), own_seed(self.seed, 14))
        elif changes is not None:
            settings = self.size.rft | arm_settings(changes)
            if arm in EQUAL_TIME:
                seconds, others = (self.run(name)["seconds"] for name in EQUAL_TIME[arm])
                settings["rft_steps"] = max(1, round(settings["rft_steps"] * others / seconds))
                began = clock()
            steps = min(settings["rft_steps"], self.size.most)
            settings = RFTConfig(**settings | {"rft_steps": steps})
            validation = lambda policy: validate(policy, self.splits["val"], retrievers["judge"], body, self.seed,
                                            self.size.eval)
            rows = train_rft(policy, self.splits["train"], retrievers["reward"], settings, self.seed,
                             validation if arm.startswith("long, ") else lambda policy: {})
            prompts = sum(stage_two.sizes(row["task"], settings)[0] for row in rows if "task" in row)
        seconds = clock() - began
        test, n = self.splits["test"], self.size.eval
        result = evaluate.evaluate(policy, test, retrievers["judge"], body, n, self.seed)
        examples = eval_examples(test, "text2pose", n, self.seed)  # and under the model that rewarded
        poses = remove_heading(respond(policy, examples, 1, self.seed)["samples"][:, 0])
        texts = retrievers["reward"].encode_text([example.caption for example in examples])
        result["text2pose"]["reward_r5"] = recall(texts, retrievers["reward"].encode_pose(poses))["t2p_r5"]
        if start == "discrete":
            result["quantisation"] = discrete.quantisation(policy.codebook, test, body, n, self.seed)
        curves = {name: [(row["step"], row[name]) for row in rows if name in row] for name in CURVES}
        result |= {"seconds": seconds, "steps": steps, "prompts": prompts, "curves": curves}
        atomic_write(file, json.dumps(result))
        return result

    def agreement(self) -> dict[str, dict]:
        """How far the gradients of the rewards agree where HyGRPO starts: of lab/agreement.py, kept like an arm."""
        file = self.folder / "agreement.json"
        if not file.exists():
            policy = self.start("gaussian")
            retriever = load_or_train_retrievers(policy, self.world, self.size.retriever)["reward"]
            atomic_write(file, json.dumps(agreement.agreement(
                policy, self.splits["train"], retriever, RFTConfig(**self.size.rft), self.seed, self.size.gradients)))
        return json.loads(file.read_text())


# ---------------------------------------------------------------- the long runs, and the claims

def stability(world: Seed, path: Path) -> dict:
    """Run the LONG arms and draw reward, judge, statements and spread over their steps. Returns the curves, with the
    furthest that the statements held on validation poses ever fell below their best before."""
    report = {}
    panels = {"semantic": "reward: cosine to the sentence", "val_judge_r5": "judge: R@5, validation poses",
              "val_statements_sampled": "statements held, validation poses",
              "val_diversity_mm": "diversity (mm), validation poses"}
    figure = Figure(figsize=(19, 4.8), layout="constrained")
    axes = figure.subplots(1, 4)
    for name, color in zip(LONG, (BLUE, ORANGE)):
        curves = world.run(f"long, {name}")["curves"]
        shares = [share for _, share in curves["val_statements_sampled"]]
        lost = max(max(shares[:i + 1]) - share for i, share in enumerate(shares))
        thin = {measure: points[::max(1, len(points) // 150)] for measure, points in curves.items()}
        report[name] = {"lost": lost, "curves": thin}
        print(f"{name}: {curves['val_statements_sampled'][-1][0]} steps; statements held {shares[0]:.3f} before, at "
              f"best {max(shares):.3f}, at the end {shares[-1]:.3f}; never more than {lost:.3f} below the best before")
        for axis, (measure, title) in zip(axes, panels.items()):
            if curves[measure]:  # a very short run may not have drawn this task
                plot_smoothed(axis, curves[measure], 1 if measure.startswith("val_") else 30, color=color, label=name)
            axis.set(title=title, xlabel="HyGRPO step")
    for axis in axes:  # when all is drawn: it ends the scaling
        axis.set_ylim(bottom=0)
    axes[0].legend(frameon=False, fontsize=13)
    finish(figure, path)
    return report


def try_claims(config: ExperimentConfig, worlds: list[Seed]) -> dict:
    """Run the arms of the claims that were asked for, print and draw what came of it, and return its numbers."""
    of = {number: dict.fromkeys(arm for c in CLAIMS[number][1] for arm in c[:2]) for number in config.claims}
    for number in set(of) & set(BESIDE):
        of[number] |= dict.fromkeys(BESIDE[number])
    arms = list({arm: None for names in of.values() for arm in names})
    if 5 in config.claims:
        arms += ["KL 0.02", "KL 0.2"]  # for the figure
    results = {arm: [world.run(arm) for world in worlds] for arm in arms}
    claims = {number: [compare(results, *c) for c in CLAIMS[number][1]] for number in config.claims}
    print(f"{summary(claims)}\n\n{table(claims)}")
    numbers = {arm: {m: [value(r, m) for r in results[arm]] for m in MEASURES} |
               {"seconds": [round(r["seconds"]) for r in results[arm]], "steps": [r["steps"] for r in results[arm]],
                "prompts": [r["prompts"] for r in results[arm]]}
               for arm in arms}
    for number in (n for n in config.claims if n in SIDE_BY_SIDE):
        print(f"\nEvery arm of claim {number}:\n\n{side_by_side({arm: numbers[arm] for arm in of[number]})}")
    report = {"seeds": config.seeds, "claims": claims, "arms": numbers}
    if 12 in config.claims:
        report["agreement"] = [world.agreement() for world in worlds]
        print("\n" + agreement.table(report["agreement"]))
    if 13 in config.claims:
        report["quantisation"] = [result["quantisation"] for result in results["discrete"]]
        print("\n" + discrete.sentence(report["quantisation"]))
    if config.figure:
        claims_figure.draw(Path(config.figure), results)
    return report


def main() -> None:
    config, = read_settings(__doc__, ExperimentConfig)
    unknown = set(config.claims) - set(CLAIMS)
    if unknown:
        raise ValueError(f"--claims {' '.join(map(str, unknown))}: choose from {', '.join(map(str, CLAIMS))}")
    if config.start_from and len(config.start_from) != len(config.seeds):
        raise ValueError(f"--start_from: name one run for each of the {len(config.seeds)} seeds")
    seeds = config.seeds[:1] if config.stability else config.seeds
    with ExitStack() as locks:
        for seed in dict.fromkeys(seeds):
            locks.enter_context(hold(Path(config.out) / f"seed_{seed}"))
        worlds = [Seed(config, seed) for seed in seeds]
        report = stability(worlds[0], Path(config.stability)) if config.stability else try_claims(config, worlds)
    if config.json:
        atomic_write(Path(config.json), json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
