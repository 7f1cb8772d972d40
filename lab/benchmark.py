"""How fast a step of HyGRPO is here against the plain way (plain.py), and where its time goes.

    python -m lab.benchmark [--vlm DIR] [--json FILE] [--group_sizes 4 8 16 32] [--prompt_tokens 32 256 1024]
    python -m lab.benchmark --soak 1000 [--json FILE]      # a long run instead: memory, time of a step (soak.py)
    python -m lab.benchmark --against trl [--json FILE]    # a step against that of another trainer (against_trl.py)
Both ways do the same step on the same model: sampling, rewards, reference, training. Ours runs the prompt once a group
and keeps the features of images (model.py). The default model is a LLaVA of 9 M parameters, random weights, 196 tokens
an image. A bias on the logits, the same for both ways, forbids the end token and favours <POSE>, so that every answer
has all its tokens and nearly always a pose. Timed in turn, medians; each ratio is of one run. Floating-point work is
what torch's FlopCounterMode counts (products, convolutions, attention in full), against the rate of a large matrix
product timed in the same run.
Read next: plain.py, the way it is compared with.
"""

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import hygrpo
import rewards
from captions import STATEMENTS
from builtin.splits import make_split
from builtin.tiny import corpus
from model import POSE_DIM, PosePolicy, draw_poses
from lab import against_trl
from lab.plain import PlainWay, SharedPrompt
from lab.problem import build_llava, force_answers, load_policy_or_vlm, make_examples
from builtin.poses import sample_poses
from builtin.retriever import Retriever
from engine.checkpoint import atomic_write
from engine.runtime import pick_device, run
from engine.settings import Count, CountOrNone, Number, OutputFile, read_settings
from lab.soak import peak_memory, reset_peak_memory, soak

PARTS = ("sampling", "rewards", "reference", "training", "rest")
KINDS = {"matrix products": ("mm", "addmm", "bmm", "baddbmm"), "attention": ("scaled_dot_product",),
         "copies": ("cat", "copy_", "index", "masked_scatter", "gather", "fill_", "zero_")}


@dataclass
class BenchmarkConfig:
    group_sizes: list[Count] = field(default_factory=list, metadata={
        "help": "answers a prompt (G); default: 4 8 16 32, with --against 8 16 32"})
    prompt_tokens: list[Count] = field(default_factory=list, metadata={
        "help": "tokens of a prompt (P), those of its image not counted; default: 32 256 1024, --against trl 13"})
    prompts: Count = field(default=4, metadata={"help": "prompts a step (B), each with an image of its own"})
    new_tokens: Count = field(default=12, metadata={"help": "tokens an answer (T)"})
    poses_per_answer: Count = field(default=32, metadata={"help": "poses an answer (K)"})
    repeats: Count = field(default=5, metadata={"help": "timed steps of each way, in turn; medians are shown"})
    patience: Number = field(default=8.0, metadata={"help": "seconds spent on a way after which it is not repeated"})
    plain_tokens: Count = field(default=12_000, metadata={"help": "where its sequences hold more tokens than this, the "
                                                        "plain way runs fewer prompts, and its time is scaled"})
    micro_batch: Count = field(default=16, metadata={"help": "sequences at once in the plain way's log_prob, training"})
    vlm: str | None = field(default=None, metadata={"help": "folder of a transformers checkpoint, or of a policy"})
    dtypes: list[str] = field(default_factory=list, metadata={
        "help": "default: float32, on CUDA also bfloat16; not with --against", "choices": ["float32", "bfloat16"]})
    against: str | None = field(default=None, metadata={
        "help": "time our step against TRL's, or our training pass against prefix_grouper's, instead",
        "choices": ["trl", "prefix_grouper"]})
    soak: CountOrNone = field(default=0, metadata={"help": "steps of a long run to watch instead, 10 or more"})
    device: str | None = field(default=None, metadata={"help": "cuda, mps or cpu; default: the best there is"})
    json: OutputFile | None = field(default=None, metadata={"help": "file to write the figures to"})


# ---------------------------------------------------------------- a step, and what is measured of it

def step(way, examples: Sequence, meter: Callable, config: BenchmarkConfig, reference: PosePolicy, retriever: Retriever,
         optimizer: torch.optim.Optimizer) -> None:
    """One step of HyGRPO, as in train_rft.py. meter(name) is a context around each part."""
    with meter("sampling"):
        rollout = way.sample(config.poses_per_answer, config.new_tokens)
    with meter("rewards"):
        text_rewards, pose_rewards, _ = rewards.score(examples, rollout, retriever, torch.full((len(STATEMENTS),), 0.5))
    with meter("rest"):
        F, Delta = hygrpo.advantages(text_rewards, pose_rewards, rollout.has_pose, rewards.weights())
        batches = way.batches(rollout, F, Delta)
    with meter("reference"), torch.no_grad():
        references = [way.log_prob(reference, rows, rollout) for rows, rollout, _, _ in batches]
    with meter("training"):
        optimizer.zero_grad(set_to_none=True)
        for (rows, rollout, F, Delta), ref in zip(batches, references):
            new = way.log_prob(way.policy, rows, rollout)
            loss, _ = hygrpo.loss(new, *hygrpo.detached(new, rollout.pose), ref, rollout, F, Delta, clip_low=0.2,
                                  clip_high=0.28, beta_text=0.5, beta_pose=0.06)
            (loss / len(batches)).backward()
        torch.nn.utils.clip_grad_norm_([p for p in way.policy.parameters() if p.requires_grad], 1.0)
        optimizer.step()


def step_of(policy: PosePolicy, retriever: Retriever, config: BenchmarkConfig) -> Callable:
    """`step` of this policy, with a reference and an optimizer of its own; way, examples and meter are still free."""
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-6, fused=True)
    return partial(step, config=config, reference=policy.frozen_copy(), retriever=retriever, optimizer=optimizer)


@contextmanager
def timed(seconds: dict[str, float], name: str):
    """Add to seconds[name]; an accelerator works behind our back and must have finished."""
    wait = torch.accelerator.synchronize if torch.accelerator.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    yield
    wait()
    seconds[name] += time.perf_counter() - start


@contextmanager
def counted(operations: dict[str, float], name: str):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the CPU's kernel is not counted
        yield
    operations[name] += counter.get_total_flops()


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """Operations a second of a large matrix product."""
    a, seconds = torch.randn(size, size, device=device, dtype=dtype), defaultdict(float)
    for i in range(5):  # the first warms up
        with timed(seconds, "products" if i else "warm-up"):
            a @ a
    return 4 * 2 * size ** 3 / seconds["products"]


def kinds_of_operation(run_step: Callable[[], None]) -> dict[str, float]:
    """Shares of a step's time on the CPU, by kind of operation."""
    with torch.autograd.profiler.profile(use_kineto=False) as profile:
        run_step()
    shares = dict.fromkeys([*KINDS, "all else"], 0.0)
    for event in profile.key_averages():
        name = event.key.removeprefix("aten::").lstrip("_")
        kind = next((kind for kind, names in KINDS.items() if name.startswith(names)), "all else")
        shares[kind] += event.self_cpu_time_total
    return {kind: time / sum(shares.values()) for kind, time in shares.items()}


def measure(policy: PosePolicy, retriever: Retriever, P: int, G: int, config: BenchmarkConfig) -> dict:
    """One row of the tables: both ways in turn on prompts of P tokens and groups of G answers."""
    device, dtype, B = policy.device, next(policy.vlm.parameters()).dtype, config.prompts
    run_step = step_of(policy, retriever, config)
    examples = make_examples(policy, B, P)
    images, work, one_row = defaultdict(float), defaultdict(float), defaultdict(float)
    policy.frozen_features.clear()
    with timed(images, "once"):  # what images never seen before cost us
        length = policy.encode(examples).ids.shape[1]
    plain_prompts = min(B, max(1, config.plain_tokens // (G * length)))
    ways = {"ours": (SharedPrompt(policy, examples, G), examples), "plain": (
        PlainWay(policy, examples[:plain_prompts], G, config.micro_batch), examples[:plain_prompts])}
    one_each = PlainWay(policy, examples, 1)  # a single answer a prompt, for `generate`
    one_each.prepare()
    run_step(*ways["ours"], partial(counted, work))  # warms up as well
    run_step(PlainWay(policy, examples[:1], 1), examples[:1], partial(counted, one_row))  # all rows are the same work
    runs, rates, peaks = {"ours": [], "plain": [], "others": []}, [], {}
    for repeat in range(config.repeats):
        for name, (way, prompts) in ways.items():
            if sum(seconds["step"] for seconds in runs[name]) > config.patience:
                continue
            reset_peak_memory(device)
            seconds = defaultdict(float)
            with timed(seconds, "step"):
                run_step(way, prompts, partial(timed, seconds))
            seconds["rest"] = seconds["step"] - sum(seconds[part] for part in PARTS if part != "rest")
            runs[name].append(seconds)
            peaks[name] = peak_memory(device)
        runs["others"].append(defaultdict(float))
        with timed(runs["others"][-1], "generate"):
            one_each.generate(config.new_tokens)
        with timed(runs["others"][-1], "poses"), torch.no_grad():
            noise = torch.randn(B, G, config.poses_per_answer, POSE_DIM, device=device)
            draw_poses(policy.pose_head(torch.zeros(B, G, policy.pose_projector[1].out_features, device=device)), noise)
        rates.append(matrix_rate(device, dtype))
    median = lambda runs: {name: statistics.median(seconds[name] for seconds in runs) for name in runs[0]}
    ours, others, rate = median(runs["ours"]), median(runs["others"]), statistics.median(rates)
    plain = {name: seconds * B / plain_prompts for name, seconds in median(runs["plain"]).items()}
    row = {"dtype": str(dtype).removeprefix("torch."), "P": P, "G": G, "length": length, "ours": ours, "plain": plain,
           "speedup": plain["step"] / ours["step"], "plain_prompts": plain_prompts, "matrix_rate": rate,
           "runs": {name: len(runs[name]) for name in ways}, "answers_per_second": B * G / ours["step"],
           "peak_mb": peaks, "images": images["once"], "generate_one": others["generate"],
           "poses_and_rewards": (others["poses"] + ours["rewards"]) / ours["step"],
           "gflop": {"ours": sum(work.values()) / 1e9, "plain": sum(one_row.values()) * B * G / 1e9},
           "of_rate": {part: work[part] / ours[part] / rate for part in ("sampling", "reference", "training")}}
    row["of_rate"]["step"] = sum(work.values()) / ours["step"] / rate
    if device.type == "cpu":
        row["kinds"] = kinds_of_operation(lambda: run_step(*ways["ours"], partial(timed, defaultdict(float))))
    return row


# ---------------------------------------------------------------- what is printed

def table(rows: Sequence[dict], columns: dict[str, Callable[[dict], str]]) -> str:
    lines = [columns, ["---:"] * len(columns), *([show(row) for show in columns.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(rows: Sequence[dict], config: BenchmarkConfig) -> str:
    """The tables, and below them, for groups of 16, the figures that this project aims at."""
    some = lambda r: "*" * (r["plain_prompts"] < config.prompts)
    percent = lambda share: f"{100 * share:.0f} %"
    where = {name: lambda r, name=name: f"{r[name]}" for name in ("dtype", "P", "G")}
    texts = [table(rows, where | {
        "step, s": lambda r: f"{r['ours']['step']:.2f}",
        "plain way, s": lambda r: f"{r['plain']['step']:.1f}{some(r)}",
        "times as fast": lambda r: f"{r['speedup']:.1f}",
        "answers a second, ours / plain": lambda r: f"{r['answers_per_second']:.0f} / "
                                                    f"{r['answers_per_second'] / r['speedup']:.1f}",
        "GFLOP, ours / plain": lambda r: f"{r['gflop']['ours']:.0f} / {r['gflop']['plain']:.0f}",
        "peak MB, ours / plain": lambda r: f"{r['peak_mb']['ours']:.0f} / {r['peak_mb']['plain']:.0f}{some(r)}"})]
    texts += [f"Each way {config.repeats} times in turn, or until {config.patience:.0f} s are spent on it. * The plain "
              "way on fewer prompts: its time is scaled to all, its memory is as measured.",
              "Where our time goes, and at what share of the measured matrix rate:", table(rows, where | {
        part: lambda r, part=part: percent(r["ours"][part] / r["ours"]["step"])
        + (f", at {percent(r['of_rate'][part])}" if part in r["of_rate"] else "") for part in PARTS} | {
        "whole step": lambda r: f"at {percent(r['of_rate']['step'])} of {r['matrix_rate'] / 1e9:.0f} GFLOP/s"})]
    if "kinds" in rows[0]:
        texts += ["The same time by kind of operation:", table(rows, where | {
            kind: lambda r, kind=kind: percent(r["kinds"][kind]) for kind in rows[0]["kinds"]})]
    for row in rows:
        half = [r["ours"]["step"] for r in rows if (r["dtype"], r["P"], r["G"]) == (row["dtype"], row["P"], 8)]
        if row["G"] == 16 and half:
            texts.append(
                f"{row['dtype']}, P = {row['P']}, G = 16: {row['speedup']:.1f} times as fast as the plain way; "
                f"{row['ours']['step'] / half[0]:.2f} times the step of G = 8; the poses and all rewards "
                f"{100 * row['poses_and_rewards']:.1f} % of a step; sampling {config.prompts * 16} answers takes "
                f"{row['ours']['sampling'] / row['generate_one']:.2f} times `generate` of {config.prompts}; images not "
                f"seen before add {row['images']:.2f} s")
    return "\n\n".join(texts)


def prepare(config: BenchmarkConfig, device: torch.device) -> tuple[PosePolicy, Retriever, dict]:
    """The policy, the retrieval model and what the JSON says of both and of the machine."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    policy = load_policy_or_vlm(config.vlm) if config.vlm else PosePolicy(
        *build_llava(corpus(make_split(sample_poses(200, rng), rng), 1000, rng)))
    policy = policy.to(device).eval()
    force_answers(policy)
    retriever = Retriever(policy.tokenizer.backend_tokenizer).to(device).eval().requires_grad_(False)
    size = sum(p.numel() for p in policy.vlm.parameters()) / 1e6
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{device}, {torch.get_num_threads()} threads"
    print(f"{type(policy.vlm).__name__} of {size:.1f} M parameters on {machine}; {config.prompts} prompts of P tokens "
          f"and an image; G answers of {config.new_tokens} tokens", flush=True)
    return policy, retriever, {
        "model": type(policy.vlm).__name__, "million_parameters": round(size, 1), "machine": machine,
        "torch": torch.__version__, "transformers": transformers.__version__, "config": asdict(config)}


def compare(config: BenchmarkConfig, device: torch.device) -> dict:
    """Time both ways over the grid of P and G, print the tables, and return what the JSON holds."""
    policy, retriever, about = prepare(config, device)
    rows = []
    for dtype in config.dtypes or ["float32"] + ["bfloat16"] * (device.type == "cuda"):
        policy.vlm.to(getattr(torch, dtype))
        for P in config.prompt_tokens or [32, 256, 1024]:
            for G in config.group_sizes or [4, 8, 16, 32]:
                rows.append(measure(policy, retriever, P, G, config))
                print(f"{dtype}, P = {P}, G = {G}: {rows[-1]['ours']['step']:.2f} s a step, {rows[-1]['speedup']:.1f} "
                      "times as fast as the plain way", flush=True)
    print("\n" + report(rows, config))
    return about | {"rows": rows}


def race(config: BenchmarkConfig, device: torch.device) -> dict:
    """Time what --against names and our own in turn, print the table, and return what the JSON holds. Our steps see
    their images for the first time: nothing of them is kept from one step to the next."""
    tried = against_trl.installed(config.against)
    policy, retriever, about = prepare(config, device)
    run_step, rows = step_of(policy, retriever, config), []
    for P in config.prompt_tokens or ([13] if config.against == "trl" else [32, 256, 1024]):
        examples = make_examples(policy, config.prompts, P)
        for G in config.group_sizes or [8, 16, 32]:
            def ours() -> None:
                policy.frozen_features.clear()
                run_step(SharedPrompt(policy, examples, G), examples, partial(timed, defaultdict(float)))
            row = against_trl.time_trl(policy, examples, G, config, ours) if config.against == "trl" else \
                against_trl.time_grouper(policy, examples, G, config)
            rows.append(against_trl.finish(row, P, policy.encode(examples).ids.shape[1], config))
            print(f"P = {P}, G = {G}: {rows[-1]['ratio']:.2f} times as fast as {config.against} {tried}", flush=True)
    print("\n" + table(rows, against_trl.columns(config.against)))
    return about | {"version": tried, "rows": rows}


def main() -> None:
    config, = read_settings(__doc__, BenchmarkConfig)
    device = pick_device(config.device)
    if config.soak and (config.against or config.soak < 10):
        raise ValueError(f"--soak {config.soak}: must be 10 or more, and without --against")
    made = soak(config.soak, device) if config.soak else (race if config.against else compare)(config, device)
    if config.json:
        atomic_write(Path(config.json), json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
