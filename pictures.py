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
from data import Example, Split, load_splits
from metrics import eval_examples, mpjpe, respond
from model import PosePolicy
from scripts import pick_device, run, write_picture

BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"  # told apart by the colour-blind too (Okabe & Ito)
GREY, HOLDS, FAILS = "#444444", "#00684a", "#b3400a"


# ---------------------------------------------------------------- bodies

def picture(body, rotmats: Tensor, betas: Tensor, size: int = 256, colors: Tensor | None = None,
            faces: Tensor | None = None, supersample: int = 3) -> np.ndarray:
    """Posed bodies (B, 24, 3, 3) on white, each filling its picture: uint8 (B, size, size, 3). colors (B, V, 3):
    default their clothes. faces (F, 3): those drawn, default all."""
    B = len(rotmats)
    vertices, _ = body_vertices(body, rotmats, betas)
    low, high = vertices[..., :2].amin(1), vertices[..., :2].amax(1)
    return render(vertices, body.faces_tensor if faces is None else faces,
                  part_colors(body, PALETTE.expand(B, -1, -1)) if colors is None else colors, size, (low + high) / 2,
                  1.1 * (high - low).amax(-1).clamp_min(1.2), light=torch.tensor([0.4, 0.6, 1.0]).expand(B, 3),
                  background=torch.ones(B, 3), supersample=supersample).numpy()


def turned(rotmats: Tensor, angle: float = 0.5) -> Tensor:
    """Poses (..., 24, 3, 3) turned about the vertical, radians: half from the side shows most without a camera."""
    rotmats = rotmats.clone()
    rotmats[..., 0, :, :] = axis_angle_to_matrix(torch.tensor([0.0, angle, 0.0])) @ rotmats[..., 0, :, :]
    return rotmats


def show(axis: Axes, body, rotmats: Tensor, example: Example, is_true: bool) -> None:
    """One pose (24, 3, 3) of an example, cut to the body. Below it each statement of the sentence, + where it holds and
    - where not, or the error of a pose that is not the true one."""
    told = example.image is None
    rotmats = remove_heading(rotmats) if told else rotmats
    pixels = picture(body, (turned(rotmats) if told else rotmats)[None], example.betas[None] * (not told), 320)[0]
    rows, columns = ((pixels < 255).any(-1).any(axis).nonzero()[0] for axis in (1, 0))
    axis.imshow(pixels[rows[0]:rows[-1] + 1, max(0, columns[0] - 8):columns[-1] + 9])
    axis.set_anchor("S")
    error, holds = mpjpe(*(forward_kinematics(x)[0] for x in (rotmats, example.rotmats))), captions.pose_holds(rotmats)
    lines = [] if told or is_true else [(f"{error:.0f} mm a joint", "black")]
    for i in example.statements if told else ():
        key = captions.STATEMENTS[i].key.replace("the person is ", "").replace("the ", "").replace(" is ", " ")
        lines += [(f"+ {key}", HOLDS) if holds[i] else (f"- {key}", FAILS)]
    for i, (text, color) in enumerate(lines):
        axis.annotate(text, (0.5, 0), (0, -6 - 13 * i), "axes fraction", textcoords="offset points", ha="center",
                      va="top", fontsize=10.5, color=color)


def ask(axis: Axes, example: Example) -> None:
    """What was asked: the sentence, or the image."""
    axis.axis("off")
    if example.image is None:
        axis.text(0, 0.5, textwrap.fill(example.caption, 24), fontsize=13, va="center", transform=axis.transAxes)
    else:
        axis.imshow(example.image)


def grid(path: Path, examples: Sequence[Example], columns: dict[str, Tensor], body, blocks: int = 1) -> None:
    """A row an example, in `blocks` beside each other: what was asked, the true pose, and that of each column (name ->
    (n, 24, 3, 3))."""
    columns = {"true pose": torch.stack([e.rotmats for e in examples])} | columns
    wide, tall = 1 + len(columns), len(examples) // blocks
    figure = Figure(figsize=(2.9 * wide * blocks, 4.0 * tall))
    axes = figure.subplots(tall, wide * blocks, squeeze=False)
    figure.subplots_adjust(0.01, 0.1, 0.99, 0.95, wspace=0.06, hspace=0.45)
    for axis, name in zip(axes[0], ["asked", *columns] * blocks):
        place = axis.get_subplotspec().get_position(figure)  # whatever its picture leaves of it
        figure.text(place.x0 + place.width / 2, place.y1 + 0.012, name, ha="center", fontsize=16, fontweight="bold")
    for i, example in enumerate(examples):
        row = axes[i % tall][i // tall * wide:]
        ask(row[0], example)
        for axis, (name, poses) in zip(row[1:], columns.items()):
            axis.axis("off")
            show(axis, body, poses[i], example, name == "true pose")
    figure.savefig(path, dpi=68)


def before_after(path: Path, split: Split, policies: dict[str, PosePolicy], body, seed: int = 0) -> None:
    """Three sentences on the left, as many images on the right, each with a pose sampled by each policy."""
    examples = eval_examples(split, "text2pose", 3, seed)
    examples += eval_examples(split, "image2pose", 6, seed)[3:]  # of other poses
    grid(path, examples, {f"{name}, sampled": respond(policy, examples, 1, seed)["samples"][:, 0].cpu()
                          for name, policy in policies.items()}, body, blocks=2)


# ---------------------------------------------------------------- the way there

def plot_smoothed(axis: Axes, points: Sequence[tuple[int, float]], width: int, **style) -> None:
    """Points (step, value), each value the mean of the last `width`."""
    x, y = np.array(points, dtype=float).T
    width = min(width, len(y))
    axis.plot(x[width - 1:], np.convolve(y, np.ones(width) / width, "valid"), **style)


def finish(figure: Figure, path: Path) -> None:
    """Legible fonts, a light grid, and write the figure."""
    for axis in figure.axes:
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
    finish(figure, path)


def progression(path: Path, rows: list[dict], split: Split, body, seed: int = 0) -> None:
    """The poses that fixed prompts of the validation split were answered with over the steps (the paper's figure 5),
    always with the same luck, so that what moves is the Gaussian. rows: of a log, those with `val_poses`."""
    examples, columns = followed_examples(split, seed), {}
    rows = [row for row in rows if "val_poses" in row]
    for i in np.linspace(0, len(rows) - 1, 5).round().astype(int):  # a picture of a long run would hold too many
        columns[f"step {rows[i]['step']}"] = rot6d_to_matrix(torch.tensor(rows[i]["val_poses"]).unflatten(-1, (24, 6)))
    grid(path, examples, columns, body)


def followed_examples(split: Split, seed: int) -> list[Example]:
    """Two sentences and two images, of different poses."""
    return eval_examples(split, "text2pose", 2, seed) + eval_examples(split, "image2pose", 4, seed)[2:]


# ---------------------------------------------------------------- where the Gaussian is wide, and why

# A limb: the joints that move it, its end last, and how the topics of statements about it begin.
LIMBS = [([JOINT[f"{side}_{joint}"] for joint in joints], tuple(f"{side} {word}" for word in words) + both)
         for joints, words, both in ((("elbow", "wrist", "hand"), ("hand", "elbow"), ("hand to hand",)),
                                     (("knee", "ankle", "foot"), ("foot", "knee", "thigh"), ("foot to foot", "ankles")))
         for side in ("left", "right")]


def visible_shares(body, rotmats: Tensor, betas: Tensor) -> Tensor:
    """How much of each limb's outline the camera sees, (B, 4) in [0, 1]: its pixels that no other part covers."""
    owner, shares = body.lbs_weights.argmax(-1), []  # (V,)
    for joints, _ in LIMBS:
        own = torch.isin(owner, torch.tensor(joints))
        colors = (~own).float()[:, None].expand(len(rotmats), -1, 3)  # the limb black, the others white, in any light
        seen, alone = ((picture(body, rotmats, betas, 96, colors, faces, 1) < 40).all(-1).sum((1, 2)) for faces in
                       (body.faces_tensor, body.faces_tensor[own[body.faces_tensor].all(1)]))
        shares.append(torch.from_numpy(seen / alone))
    return torch.stack(shares, -1).clamp_max(1)


def limb_spread(out: dict, true: Tensor) -> tuple[Tensor, Tensor]:
    """Of each limb's end, (N, 4) in cm: the standard deviation over samples, and the error of the mean pose."""
    place = lambda rotmats: 100 * forward_kinematics(rotmats)[0][..., [joints[-1] for joints, _ in LIMBS], :]
    samples = place(out["samples"])  # (N, K, 4, 3)
    return samples.var(1).sum(-1).sqrt(), (place(out["mean"]) - place(true)).norm(dim=-1)


def spread_by_group(std: Tensor, miss: Tensor, groups: dict[str, Tensor]) -> dict:
    """Means of std and miss (N, 4) over groups (N, 4) bool, hands and feet apart; and whether sigma knows where the
    mean is wrong: Spearman's rank correlation of the two over the examples, mean over limbs."""
    numbers = {}
    for limb, columns in (("hand", [0, 1]), ("foot", [2, 3])):
        for name, group in groups.items():
            spread, error = (x[:, columns][group[:, columns]] for x in (std, miss))
            std_error = (spread.std() / len(spread) ** 0.5).item() if len(spread) > 1 else float("nan")
            numbers[f"{limb}, {name}"] = {
                "n": len(spread), "std_cm": spread.mean().item(), "error_cm": error.mean().item(),
                "standard_error_cm": std_error}
    ranks = torch.stack([std, miss]).argsort(1).argsort(1).double()  # (2, N, 4)
    centred = ranks - ranks.mean(1, keepdim=True)
    agree = centred.prod(0).sum(0) / centred.square().sum(1).prod(0).sqrt()  # (4,)
    return numbers | {"rank_correlation": agree.mean().item()}


def draw_bars(axis: Axes, title: str, numbers: dict) -> None:
    bars = {name: bar for name, bar in numbers.items() if name != "rank_correlation"}
    y = np.arange(len(bars))[::-1]
    axis.barh(y + 0.2, [bar["std_cm"] for bar in bars.values()], 0.38, color=BLUE, label="standard deviation",
              xerr=[bar["standard_error_cm"] for bar in bars.values()])
    axis.barh(y - 0.2, [bar["error_cm"] for bar in bars.values()], 0.38, color=ORANGE, label="error of the mean pose")
    axis.set(yticks=y, yticklabels=[f"{name}\n(n = {bar['n']})" for name, bar in bars.items()], xlabel="cm",
             title=f"{title}\nrank correlation over examples: {numbers['rank_correlation']:.2f}")
    axis.legend(frameon=False, fontsize=12, ncols=2, loc="upper center", bbox_to_anchor=(0.4, -0.16))


def uncertainty(path: Path, policy: PosePolicy, split: Split, body, count: int = 300, seed: int = 0) -> dict:
    """Where sigma is large: limbs that the camera does not see, or of which a sentence says nothing. Bars over `count`
    of each; beside them one of each, its mean pose coloured by standard deviation. Returns the numbers of the bars."""
    figure, scale, report = Figure(figsize=(18, 10), layout="constrained"), ScalarMappable(Normalize(0, 35)), {}
    places = figure.add_gridspec(2, 5, width_ratios=[1, 1, 1, 0.06, 1.6])
    for row, (kind, task, title) in enumerate((("images", "image2pose", "what the camera does not see"),
                                               ("sentences", "text2pose", "what the sentence leaves open"))):
        examples = eval_examples(split, task, count, seed)
        out, true = respond(policy, examples, 32, seed, greedy=True), torch.stack([e.rotmats for e in examples])
        out = {name: out[name].cpu() if kind == "images" else remove_heading(out[name].cpu())
               for name in ("mean", "samples")}
        if kind == "images":
            shares = visible_shares(body, true, torch.stack([e.betas for e in examples]))  # (N, 4)
            groups = {"hidden: under 1/3 seen": shares < 1 / 3, "1/3 to 2/3": (shares - 0.5).abs() <= 1 / 6,
                      "in view: over 2/3": shares > 2 / 3}
        else:
            speaks = torch.tensor([[any(captions.STATEMENTS[i].topic.startswith(words) for i in e.statements)
                                    for _, words in LIMBS] for e in examples])  # (N, 4)
            groups = {"says nothing of it": ~speaks, "speaks of it": speaks}
        std, miss = limb_spread(out, true)
        report[kind] = spread_by_group(std, miss, groups)
        draw_bars(figure.add_subplot(places[row, 4]), title, report[kind])
        # The example, of those not lying, whose hands differ most.
        height = forward_kinematics(out["mean"])[0][:, JOINT["head"], 1]  # metres above the pelvis
        i = int(((std[:, 0] - std[:, 1]).abs() * (height > 0.4)).argmax())
        ask(figure.add_subplot(places[row, 0]), examples[i])
        vertices = body_vertices(body, out["samples"][i], torch.zeros(32, 10))[0]
        colors = torch.from_numpy(scale.to_rgba(100 * vertices.var(0).sum(-1).sqrt().numpy())[None, :, :3]).float()
        for column, (angle, name) in enumerate(((0.0, "front"), (-1.2, "from its left")), 1):
            axis = figure.add_subplot(places[row, column])
            axis.imshow(picture(body, turned(out["mean"][i:i + 1], angle), torch.zeros(1, 10), 400, colors)[0])
            axis.axis("off")
            axis.set_title(name)
        figure.colorbar(scale, figure.add_subplot(places[row, 3])).set_label("standard deviation, cm", fontsize=12)
    finish(figure, path)
    return report | {"count": count}


# ---------------------------------------------------------------- the method in one figure

def method(path: Path, policy: PosePolicy, split: Split, body, seed: int = 0) -> None:
    """HyGRPO from prompt to update, with answers and poses that the policy really gave."""
    example = eval_examples(split, "text2pose", 1, seed)[0]
    rollout = policy.sample(policy.encode([example]), (G := 3), (K := 3), seeds=[seed])
    poses = rot6d_to_matrix(rollout.pose[0].unflatten(-1, (24, 6))).cpu()  # (G, K, 24, 3, 3)
    figure = Figure(figsize=(20, 8.6))
    canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, 20), ylim=(0, 8.6))
    canvas.axis("off")
    for x, y, width, height, color, title, text in (
            (0.3, 4.5, 3.0, 3.7, GREY, "prompt q", textwrap.fill(example.prompt, 27) + "\n\nor an image, or both"),
            (4.1, 4.5, 3.0, 3.7, GREY, "policy", "vision-language model\n+ pose-aware encoder\nof images (frozen)\n\n"
             "q is run once\nfor all G answers"),
            (7.9, 4.5, 7.1, 3.7, GREY, f"G = {G} answers, each with K = {K} poses", ""),
            (15.8, 6.45, 3.9, 1.75, BLUE, "words: F", "form, similarity, exact\nanswers, statements"),
            (15.8, 4.5, 3.9, 1.75, ORANGE, "poses: \u0394", "joints, semantics,\nstatements that hold"),
            (8.2, 0.4, 11.5, 3.1, GREY, "HyGRPO", ""), (0.3, 0.4, 6.8, 3.1, GREY, "hybrid action", "")):
        canvas.add_patch(FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=0.15", facecolor=color + "18",
                                        edgecolor=color, linewidth=2))
        top = {"ha": "center", "va": "top"}
        canvas.text(x + width / 2, y + height - 0.18, title, fontsize=16, fontweight="bold", color=color, **top)
        canvas.text(x + width / 2, y + height - 0.62, text, fontsize=13.5, linespacing=1.45, **top)
    for g in range(G):
        middle = 7.18 - 1.0 * g
        canvas.text(8.1, middle, textwrap.fill(textwrap.shorten(rollout.answers[0][g], 70), 30), va="center",
                    fontsize=13.5, color=BLUE)
        bodies = picture(body, turned(remove_heading(poses[g])), torch.zeros(K, 10), 240)
        for k, pixels in enumerate(bodies if rollout.has_pose[0, g] else ()):
            axis = figure.add_axes(((11.95 + 1.0 * k) / 20, (middle - 0.47) / 8.6, 0.94 / 20, 0.94 / 8.6))
            axis.imshow(pixels)
            axis.axis("off")
    for x, y, text, color, size in (
            (0.6, 2.55, r"$\pi(a, p\,|\,q) = \pi(a\,|\,q)\;\mathcal{N}(p;\, \mu(h),\, \Sigma(h))$", "black", 20),
            (0.6, 1.75, "words a: one distribution a token", BLUE, 15),
            (0.6, 1.0, "pose p: 24 rotations of 6 numbers, from\nthe hidden state h at the token <POSE>", ORANGE, 15),
            (8.5, 2.6, r"$\frac{1}{G}\,\sum_i\,\min(r_d F_i,\ \mathrm{clip}(r_d)\,F_i)$", BLUE, 20),
            (8.5, 1.7, r"$+\ \frac{1}{V K}\,\sum_{i,k}\,\min(r_c \Delta_{ik},\ \mathrm{clip}(r_c)\,\Delta_{ik})$",
             ORANGE, 20),
            (8.5, 0.85, r"$-\ \beta\ \mathrm{KL}(\pi\ ||\ \pi_\mathrm{SFT})$", "black", 20),
            (14.6, 2.6, "ratio of a token, new to old", BLUE, 15),
            (14.6, 1.7, "ratio of a joint; V answers hold a pose", ORANGE, 15),
            (14.6, 0.85, "exact, a weight for each half", "black", 15),
            (15.0, 4.0, "compared within the group", "black", 14), (5.8, 4.0, "gradient", "black", 14)):
        canvas.text(x, y, text, fontsize=size, va="center", color=color)
    style = {"arrowstyle": "-|>,head_width=0.35,head_length=0.7", "lw": 2.2}
    for x, y, dx, dy, color in (
            (3.35, 6.35, 0.7, 0, "black"), (7.15, 6.35, 0.7, 0, "black"), (15.05, 7.35, 0.7, 0, BLUE),
            (15.05, 5.35, 0.7, 0, ORANGE), (17.75, 4.45, 0, -0.9, "black"), (8.15, 2.0, -1, 0, "black"),
            (5.6, 3.55, 0, 0.9, "black")):
        canvas.annotate("", (x + dx, y + dy), (x, y), arrowprops=style | {"color": color})
    write_picture(figure, path, dpi=72)


# ---------------------------------------------------------------- the command

@dataclass
class PicturesConfig:
    run: str = field(default="runs", metadata={"help": "folder of a run that train_rft.py finished"})
    out: str = field(default="assets", metadata={"help": "folder to write the pictures and uncertainty.json to"})


def main() -> None:
    config, = HfArgumentParser(PicturesConfig, description=__doc__.splitlines()[0]).parse_args_into_dataclasses()
    folder, out = Path(config.run), Path(config.out)
    if not (folder / "metrics.json").exists():
        raise FileNotFoundError(f"{folder} holds no finished run (no metrics.json): python train_rft.py --out {folder}")
    settings = json.loads((folder / "sft_config.json").read_text())
    seed, count, body = settings["seed"], settings["eval_poses"], load_body(settings["body"])
    splits = load_splits(settings["poses"], {"val": count, "test": count}, seed, body_model=body,
                         size=settings["picture"])
    policies = {name: PosePolicy.from_pretrained(folder / name.lower()).to(pick_device()) for name in ("SFT", "RFT")}
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
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
