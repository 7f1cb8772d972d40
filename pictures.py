"""Pictures of a run: before and after, the way there, where the Gaussian is wide, and the method itself.

    python pictures.py [--run runs] [--out assets]
Of a run that `train_rft.py` finished. A body is drawn by body.render, everything else by matplotlib. Nothing of the
method depends on this file.
"""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor
from transformers import HfArgumentParser

import captions
from body import (JOINT, PALETTE, axis_angle_to_matrix, body_vertices, forward_kinematics, load_body, part_colors,
                  remove_heading, render, rot6d_to_matrix)
from checkpoint import read_log
from data import Example, Split, load_splits
from evaluate import eval_examples, mpjpe, respond
from model import PosePolicy, pick_device, run

BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"  # told apart by the colour-blind too (Okabe & Ito)
GREY, HOLDS, FAILS = "#444444", "#00684a", "#b3400a"
HALF_SIDE = axis_angle_to_matrix(torch.tensor([0.0, 0.5, 0.0]))  # a sentence has no camera: half from the side


# ---------------------------------------------------------------- bodies

def picture(body, rotmats: Tensor, betas: Tensor, size: int = 256, colors: Tensor | None = None) -> np.ndarray:
    """Posed bodies (B, 24, 3, 3) on white, each filling its picture: uint8 (B, size, size, 3). colors: (B, V, 3)."""
    B = len(rotmats)
    vertices, _ = body_vertices(body, rotmats, betas)
    low, high = vertices[..., :2].amin(1), vertices[..., :2].amax(1)
    reach = 1.1 * (high - low).amax(-1).clamp_min(1.2)
    colors = part_colors(body, PALETTE.expand(B, -1, -1)) if colors is None else colors
    return render(vertices, body.faces_tensor, colors, size, (low + high) / 2, reach,
                  light=torch.tensor([0.4, 0.6, 1.0]).expand(B, 3), background=torch.ones(B, 3), supersample=3).numpy()


def turned(rotmats: Tensor) -> Tensor:
    """A pose (24, 3, 3) of which a sentence told, without its heading, seen half from the side."""
    upright = remove_heading(rotmats)
    return torch.cat([(HALF_SIDE @ upright[0])[None], upright[1:]])


def show(axis: Axes, body, rotmats: Tensor, example: Example, lines: Sequence[tuple[str, str]]) -> None:
    """One pose (24, 3, 3) of an example, cut to the body, and lines of text with their colours below it."""
    told = example.image is None
    pixels = picture(body, (turned(rotmats) if told else rotmats)[None], example.betas[None] * (not told), 320)[0]
    rows, columns = ((pixels < 255).any(-1).any(axis).nonzero()[0] for axis in (1, 0))
    axis.imshow(pixels[rows[0]:rows[-1] + 1, max(0, columns[0] - 8):columns[-1] + 9])
    axis.set_anchor("S")
    for i, (text, color) in enumerate(lines):
        axis.annotate(text, (0.5, 0), (0, -6 - 13 * i), "axes fraction", textcoords="offset points", ha="center",
                      va="top", fontsize=10.5, color=color)


def verdict(example: Example, rotmats: Tensor, true: bool) -> list[tuple[str, str]]:
    """What is to be said of a pose: each statement of the sentence, + where it holds, or the error."""
    if example.image is not None:
        error = mpjpe(forward_kinematics(rotmats)[0], forward_kinematics(example.rotmats)[0])
        return [] if true else [(f"{error:.0f} mm a joint", "black")]
    holds = captions.pose_holds(remove_heading(rotmats))
    short = lambda i: captions.STATEMENTS[i].key.replace("the person is ", "").replace("the ", "").replace(" is ", " ")
    return [(f"+ {short(i)}", HOLDS) if holds[i] else (f"- {short(i)}", FAILS) for i in example.statements]


def head_line(figure: Figure, axes: Sequence[Axes], names: Sequence[str]) -> None:
    """Names above the places of axes, whatever their pictures leave of them."""
    for axis, name in zip(axes, names):
        place = axis.get_subplotspec().get_position(figure)
        figure.text(place.x0 + place.width / 2, place.y1 + 0.012, name, ha="center", fontsize=16, fontweight="bold")


def ask(axis: Axes, example: Example, width: int) -> None:
    """What was asked: the sentence, or the image."""
    axis.axis("off")
    if example.image is None:
        axis.text(0, 0.5, textwrap.fill(example.caption, width), fontsize=13, va="center", transform=axis.transAxes)
    else:
        axis.imshow(example.image)


def before_after(path: Path, split: Split, policies: dict[str, PosePolicy], body, count: int = 3,
                 seed: int = 0) -> None:
    """`count` sentences on the left, as many images on the right: what was asked, the truth, and a pose sampled by each
    policy; under it the sentence's statements, + where they hold and - where not, or the error in mm."""
    examples = eval_examples(split, "text2pose", count, seed)
    examples += eval_examples(split, "image2pose", 2 * count, seed)[count:]  # of other poses
    columns = {"true pose": torch.stack([e.rotmats for e in examples])}
    for name, policy in policies.items():
        columns[f"{name}, sampled"] = respond(policy, examples, 1, seed)["samples"][:, 0].cpu()
    wide = 1 + len(columns)
    figure = Figure(figsize=(23, 4.2 * count))
    axes = figure.subplots(count, 2 * wide, squeeze=False)
    figure.subplots_adjust(0.01, 0.1, 0.99, 0.94, wspace=0.06, hspace=0.45)
    head_line(figure, axes[0], ["asked", *columns] * 2)
    for i, example in enumerate(examples):
        row = axes[i % count][i // count * wide:][:wide]
        ask(row[0], example, 24)
        for axis, (name, poses) in zip(row[1:], columns.items()):
            axis.axis("off")
            show(axis, body, poses[i], example, verdict(example, poses[i], name == "true pose"))
    figure.savefig(path, dpi=72)


# ---------------------------------------------------------------- the way there

def plot_smoothed(axis: Axes, points: Sequence[tuple[int, float]], width: int, **style) -> None:
    """Points (step, value), each value the mean of the last `width`."""
    x, y = np.array(points, dtype=float).T
    width = min(width, len(y))
    axis.plot(x[width - 1:], np.convolve(y, np.ones(width) / width, "valid"), **style)


def finish(figure: Figure, axes: Sequence[Axes], path: Path) -> None:
    """Legible fonts, a light grid, and write the figure."""
    for axis in axes:
        axis.title.set_fontsize(14)
        axis.xaxis.label.set_fontsize(13)
        axis.tick_params(labelsize=12)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=80)


def curves(path: Path, rows: list[dict]) -> None:
    """Rewards, distances, spread and evaluations over the steps of a run, from the rows of its log."""
    panels = {
        "rewards, text to pose": ("statements", "semantic"), "reward, image to pose (1/m)": ("joint",),
        "rewards of the words": ("format", "description", "correct"), "KL to the SFT policy (nats)": ("pose_kl",),
        "text KL (nats a token)": ("text_kl",), "sigma (of 6D numbers)": ("sigma",),
        "validation: share held, judge's R@5": ("val_statements_sampled", "val_judge_r5"),
        "validation: MPJPE (mm)": ("val_mpjpe_mean", "val_mpjpe_sampled"),
        "validation: diversity (mm)": ("val_diversity_mm",)}
    figure = Figure(figsize=(14, 10), layout="constrained")
    for axis, (title, names) in zip(figure.subplots(3, 3).flat, panels.items()):
        for name, color in zip(names, (BLUE, ORANGE, GREEN)):
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points and name.startswith("val_"):
                plot_smoothed(axis, points, 1, color=color, marker="o", label=name.removeprefix("val_"))
            elif points:
                plot_smoothed(axis, points, 1, color=color, alpha=0.25)
                plot_smoothed(axis, points, 15, color=color, label=name)
        axis.set(title=title, xlabel="HyGRPO step")
        if axis.lines:
            axis.legend(fontsize=12, frameon=False)
    finish(figure, figure.axes, path)


def progression(path: Path, rows: list[dict], split: Split, body, seed: int = 0) -> None:
    """The poses that fixed prompts of the validation split were answered with over the steps (the paper's figure 5),
    always with the same luck, so that what moves is the Gaussian. rows: of a log, those with `val_poses`."""
    rows = [row for row in rows if "val_poses" in row]
    examples = followed_examples(split, seed)
    figure = Figure(figsize=(3 * (2 + len(rows)), 3.9 * len(examples)))
    axes = figure.subplots(len(examples), 2 + len(rows), squeeze=False)
    figure.subplots_adjust(0.01, 0.06, 0.99, 0.955, wspace=0.06, hspace=0.45)
    names = ["asked", "true pose", *(f"step {row['step']}" for row in rows)]
    head_line(figure, axes[0], names)
    poses = torch.tensor([row["val_poses"] for row in rows]).unflatten(-1, (24, 6))  # (steps, n, 24, 6)
    poses = rot6d_to_matrix(poses)
    for i, (line, example) in enumerate(zip(axes, examples)):
        ask(line[0], example, 24)
        for axis, name, rotmats in zip(line[1:], names[1:], (example.rotmats, *poses[:, i])):
            axis.axis("off")
            show(axis, body, rotmats, example, verdict(example, rotmats, name == "true pose"))
    figure.savefig(path, dpi=60)


def followed_examples(split: Split, seed: int) -> list[Example]:
    """Two sentences and two images, of different poses."""
    return eval_examples(split, "text2pose", 2, seed) + eval_examples(split, "image2pose", 4, seed)[2:]


# ---------------------------------------------------------------- where the Gaussian is wide, and why

LIMBS = {f"{side} {limb}": [JOINT[f"{side}_{joint}"] for joint in joints] for side in ("left", "right")
         for limb, joints in {"hand": ("elbow", "wrist", "hand"), "foot": ("knee", "ankle", "foot")}.items()}


TITLES = {"images": "what the camera does not see", "sentences": "what the sentence leaves open"}


def visible_shares(body, rotmats: Tensor, betas: Tensor, size: int = 96) -> Tensor:
    """How much of each limb's outline the camera sees, (B, 4) in [0, 1]: its pixels that no other part covers."""
    B, vertices = len(rotmats), body_vertices(body, rotmats, betas)[0]
    low, high = vertices[..., :2].amin(1), vertices[..., :2].amax(1)
    owner = body.lbs_weights.argmax(-1)  # (V,)

    def pixels(own: Tensor, faces: Tensor) -> Tensor:  # (B,) how many show a vertex of `own` (V,) bool
        colors = torch.stack([own.float(), torch.zeros_like(own.float()), torch.zeros_like(own.float())], -1)
        seen = render(vertices, faces, colors.expand(B, -1, -1), size, (low + high) / 2, 1.1 * (high - low).amax(-1),
                      light=torch.tensor([0.0, 0.0, 1.0]).expand(B, 3), background=torch.zeros(B, 3))
        return (seen[..., 0] > 40).sum((1, 2)).float()

    shares = []
    for joints in LIMBS.values():
        own = torch.isin(owner, torch.tensor(joints))
        shares.append(pixels(own, body.faces_tensor) / pixels(own, body.faces_tensor[own[body.faces_tensor].all(1)]))
    return torch.stack(shares, -1).clamp_max(1)


def limb_spread(out: dict, true: Tensor, heading: bool) -> tuple[Tensor, Tensor]:
    """Of each limb's end, (N, 4) in cm: the standard deviation over samples, and the error of the mean pose."""
    keep = (lambda x: x) if heading else remove_heading
    ends = [joints[-1] for joints in LIMBS.values()]
    place = lambda rotmats: 100 * forward_kinematics(keep(rotmats))[0][..., ends, :]
    samples = place(out["samples"])  # (N, K, 4, 3)
    return samples.var(1).sum(-1).sqrt(), (place(out["mean"]) - place(true)).norm(dim=-1)


def uncertainty(path: Path, policy: PosePolicy, split: Split, body, count: int = 300, seed: int = 0) -> dict:
    """Where sigma is large: limbs that the camera does not see, and limbs of which a sentence says nothing. Bars over
    `count` images and as many sentences; beside them an image and a sentence, the mean pose coloured by its standard
    deviation. Returns the numbers of the bars."""
    seen, told = (eval_examples(split, task, count, seed) for task in ("image2pose", "text2pose"))
    out_seen, out_told = respond(policy, seen, 32, seed, greedy=True), respond(policy, told, 32, seed, greedy=True)
    stack = lambda examples: torch.stack([e.rotmats for e in examples])
    shares = visible_shares(body, stack(seen), torch.stack([e.betas for e in seen]))  # (N, 4)
    spread, error = limb_spread(out_seen, stack(seen), True)
    wide, wrong = limb_spread(out_told, stack(told), False)
    speaks = torch.tensor([[any(limb in f"{s.measure} {s.key}".replace("elbow", "hand").replace("knee", "foot").replace(
        "thigh", "foot") for s in (captions.STATEMENTS[i] for i in e.statements)) for limb in LIMBS] for e in told])
    partly = (shares >= 1 / 3) & (shares < 2 / 3)
    groups = {"images": (("hidden: under 1/3 seen", shares < 1 / 3), ("1/3 to 2/3", partly),
                         ("in view: over 2/3", shares >= 2 / 3)),
              "sentences": (("says nothing of it", ~speaks), ("speaks of it", speaks))}
    numbers = {"count": count}
    figure = Figure(figsize=(18, 10), layout="constrained")
    grid = figure.add_gridspec(2, 5, width_ratios=[1, 1, 1, 0.06, 1.6])
    scale = ScalarMappable(Normalize(0, 35), "viridis")
    for row, (kind, examples, out, std, miss) in enumerate((("images", seen, out_seen, spread, error),
                                                            ("sentences", told, out_told, wide, wrong))):
        axis = figure.add_subplot(grid[row, 4])
        bars = {}
        for limb, columns in (("hand", [0, 2]), ("foot", [1, 3])):
            for name, group in groups[kind]:
                inside = group[:, columns]
                n = int(inside.sum())
                bars[f"{limb}, {name}"] = {
                    "n": n, "std_cm": std[:, columns][inside].mean().item(),
                    "error_cm": miss[:, columns][inside].mean().item(),
                    "standard_error_cm": (std[:, columns][inside].std() / n ** 0.5).item()}
        # Does sigma know where the mean is wrong? Rank correlation over the examples, of each limb, then the mean.
        ranks = torch.stack([std, miss.to(std)]).argsort(1).argsort(1).double()  # (2, N, 4)
        centred = ranks - ranks.mean(1, keepdim=True)
        agree = (centred.prod(0).sum(0) / centred.square().sum(1).prod(0).sqrt()).mean().item()
        numbers[kind] = bars | {"rank_correlation": agree}
        y = np.arange(len(bars))[::-1]
        axis.barh(y + 0.2, [bar["std_cm"] for bar in bars.values()], 0.38, color=BLUE, label="standard deviation",
                  xerr=[bar["standard_error_cm"] for bar in bars.values()])
        axis.barh(y - 0.2, [bar["error_cm"] for bar in bars.values()], 0.38, color=ORANGE,
                  label="error of the mean pose")
        axis.set_yticks(y, [f"{name}\n(n = {bar['n']})" for name, bar in bars.items()], fontsize=12)
        axis.set_xlabel("cm", fontsize=13)
        axis.tick_params(axis="x", labelsize=12)
        axis.legend(frameon=False, fontsize=12, ncols=2, loc="upper center", bbox_to_anchor=(0.4, -0.16))
        axis.set_title(f"{TITLES[kind]}\nrank correlation of the two over examples: {agree:.2f}", fontsize=14)
        # The example, of those not lying, whose hands differ most.
        height = forward_kinematics(out["mean"])[0][:, JOINT["head"], 1].to(std)  # metres above the pelvis
        i = int(((std[:, 0] - std[:, 2]).abs() * (height > 0.4)).argmax())
        rotmats = torch.cat([out["mean"][i:i + 1], out["samples"][i]]).cpu()
        rotmats = rotmats if kind == "images" else remove_heading(rotmats)
        vertices = body_vertices(body, rotmats, torch.zeros(len(rotmats), 10))[0]
        colors = scale.to_rgba(100 * vertices[1:].var(0).sum(-1).sqrt().numpy())[None, :, :3]
        ask(figure.add_subplot(grid[row, 0]), examples[i], 26)
        for column, turn in enumerate((0.0, -1.2)):
            view = axis_angle_to_matrix(torch.tensor([0.0, turn, 0.0]))
            pose = torch.cat([(view @ rotmats[0, 0])[None], rotmats[0, 1:]])[None]
            axis = figure.add_subplot(grid[row, 1 + column])
            axis.imshow(picture(body, pose, torch.zeros(1, 10), 400, torch.from_numpy(colors).float())[0])
            axis.axis("off")
            axis.set_title(("front", "from its left")[column], fontsize=13)
        bar = figure.colorbar(scale, cax=figure.add_subplot(grid[row, 3]))
        bar.ax.tick_params(labelsize=12)
        bar.set_label("standard deviation, cm", fontsize=12)
    figure.savefig(path, dpi=72)
    return numbers


# ---------------------------------------------------------------- the method in one figure

def method(path: Path, policy: PosePolicy, split: Split, body, seed: int = 0) -> None:
    """HyGRPO from prompt to update, with answers and poses that the policy really gave."""
    example = eval_examples(split, "text2pose", 1, seed)[0]
    G, K = 3, 3
    rollout = policy.sample(policy.encode([example]), G, K, seeds=[seed])
    poses = rot6d_to_matrix(rollout.pose[0].unflatten(-1, (24, 6))).cpu()  # (G, K, 24, 3, 3)
    figure = Figure(figsize=(20, 8.6))
    canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, 20), ylim=(0, 8.6))
    canvas.axis("off")

    def box(x: float, y: float, width: float, height: float, title: str, text: str, color: str) -> None:
        canvas.add_patch(FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=0.15", facecolor=color + "18",
                                        edgecolor=color, linewidth=2))
        canvas.text(x + width / 2, y + height - 0.18, title, ha="center", va="top", fontsize=16, fontweight="bold",
                    color=color)
        canvas.text(x + width / 2, y + height - 0.62, text, ha="center", va="top", fontsize=13.5, linespacing=1.45)

    box(0.3, 4.5, 3.0, 3.7, "prompt q", textwrap.fill(example.prompt, 27) + "\n\nor an image, or both", GREY)
    box(4.1, 4.5, 3.0, 3.7, "policy", "vision-language model\n+ pose-aware encoder\nof images (frozen)\n\n"
        "q is run once\nfor all G answers", GREY)
    box(7.9, 4.5, 7.1, 3.7, f"G = {G} answers, each with K = {K} poses", "", GREY)
    box(15.8, 6.45, 3.9, 1.75, "words: F", "form, similarity, exact\nanswers, statements", BLUE)
    box(15.8, 4.5, 3.9, 1.75, "poses: \u0394", "joints, semantics,\nstatements that hold", ORANGE)
    box(8.2, 0.4, 11.5, 3.1, "HyGRPO", "", GREY)
    box(0.3, 0.4, 6.8, 3.1, "hybrid action", "", GREY)
    for g in range(G):
        middle = 7.18 - 1.0 * g
        canvas.text(8.1, middle, textwrap.fill(textwrap.shorten(rollout.answers[0][g], 70), 30), va="center",
                    fontsize=13.5, color=BLUE)
        bodies = picture(body, torch.stack([turned(pose) for pose in poses[g]]), torch.zeros(K, 10), 240)
        for k, pixels in enumerate(bodies if rollout.has_pose[0, g] else ()):
            axis = figure.add_axes(((11.95 + 1.0 * k) / 20, (middle - 0.47) / 8.6, 0.94 / 20, 0.94 / 8.6))
            axis.imshow(pixels)
            axis.axis("off")
    for x, y, text, color, size in (
            (0.6, 2.55, r"$\pi(a, p\,|\,q) = \pi(a\,|\,q)\;\mathcal{N}(p;\, \mu(h),\, \Sigma(h))$", "black", 20),
            (0.6, 1.75, "words a: one distribution a token", BLUE, 15),
            (0.6, 1.25, "pose p: 24 rotations of 6 numbers, from", ORANGE, 15),
            (0.6, 0.8, "the hidden state h at the token <POSE>", ORANGE, 15),
            (8.5, 2.6, r"$\frac{1}{G}\,\sum_i\,\min(r_d F_i,\ \mathrm{clip}(r_d)\,F_i)$", BLUE, 20),
            (8.5, 1.7, r"$+\ \frac{1}{V K}\,\sum_{i,k}\,\min(r_c \Delta_{ik},\ \mathrm{clip}(r_c)\,\Delta_{ik})$",
             ORANGE, 20),
            (8.5, 0.85, r"$-\ \beta\ \mathrm{KL}(\pi\ ||\ \pi_\mathrm{SFT})$", "black", 20),
            (14.6, 2.6, "ratio of a token, new to old", BLUE, 15),
            (14.6, 1.7, "ratio of a joint; V answers hold a pose", ORANGE, 15),
            (14.6, 0.85, "exact, a weight for each half", "black", 15),
            (17.55, 4.0, "compared within the group", "black", 14), (5.8, 4.0, "gradient", "black", 14)):
        canvas.text(x, y, text, fontsize=size, va="center", color=color, ha="right" if x == 17.55 else "left")
    for start, end, color in (
            ((3.35, 6.35), (4.05, 6.35), "black"), ((7.15, 6.35), (7.85, 6.35), "black"),
            ((15.05, 7.35), (15.75, 7.35), BLUE), ((15.05, 5.35), (15.75, 5.35), ORANGE),
            ((17.75, 4.45), (17.75, 3.55), "black"), ((8.15, 2.0), (7.15, 2.0), "black"),
            ((5.6, 3.55), (5.6, 4.45), "black")):
        canvas.annotate("", end, start, arrowprops={"arrowstyle": "-|>,head_width=0.35,head_length=0.7", "lw": 2.2,
                                                    "color": color})
    figure.savefig(path, dpi=72)


# ---------------------------------------------------------------- the command

@dataclass
class PicturesConfig:
    run: str = field(default="runs", metadata={"help": "folder of a run that train_rft.py finished"})
    out: str = field(default="assets", metadata={"help": "folder to write the pictures and uncertainty.json to"})
    device: str | None = field(default=None, metadata={"help": "cuda, mps or cpu; default: the best there is"})


def main() -> None:
    config, = HfArgumentParser(PicturesConfig, description=__doc__.splitlines()[0]).parse_args_into_dataclasses()
    folder, out, device = Path(config.run), Path(config.out), pick_device(config.device)
    if not (folder / "metrics.json").exists():
        raise FileNotFoundError(f"{folder} holds no finished run (no metrics.json): python train_rft.py --out {folder}")
    settings = json.loads((folder / "sft_config.json").read_text())
    seed, count = settings["seed"], settings["eval_poses"]
    splits = load_splits(settings["poses"], {"val": count, "test": count}, seed)
    policies = {name: PosePolicy.from_pretrained(folder / name.lower()).to(device) for name in ("SFT", "RFT")}
    body, rows = load_body(), read_log(folder / "log.jsonl", 10 ** 9)
    out.mkdir(parents=True, exist_ok=True)
    method(out / "method.png", policies["SFT"], splits["test"], body, seed)
    before_after(out / "before_after.png", splits["test"], policies, body, seed=seed)
    curves(out / "curves.png", rows)
    progression(out / "progression.png", rows, splits["val"], body, seed)
    numbers = uncertainty(out / "uncertainty.png", policies["RFT"], splits["test"], body, seed=seed)
    (out / "uncertainty.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(f"In {out}: method.png, before_after.png, curves.png, progression.png, uncertainty.png, uncertainty.json")


if __name__ == "__main__":
    run(main)
