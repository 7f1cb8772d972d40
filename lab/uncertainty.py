"""Where the Gaussian is wide, and why: limbs that the camera does not see, or of which a sentence says nothing.

`python -m lab.pictures` draws it.
"""

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

import captions
from body import JOINT, forward_kinematics, remove_heading
from data import Split
from lab.bodies import ask, picture, turned
from lab.curves import BLUE, ORANGE, finish
from lab.metrics import eval_examples, respond
from model import PosePolicy
from real.smpl import body_vertices


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
        visible, alone = ((picture(body, rotmats, betas, 96, colors, faces, 1) < 40).all(-1).sum((1, 2)) for faces in
                       (body.faces_tensor, body.faces_tensor[own[body.faces_tensor].all(1)]))
        shares.append(torch.from_numpy(visible / alone))
    return torch.stack(shares, -1).clamp_max(1)


def limb_spread(out: dict, true: Tensor) -> tuple[Tensor, Tensor]:
    """Of each limb's end, (N, 4) in cm: the standard deviation over samples, and the error of the mean pose."""
    place = lambda rotmats: 100 * forward_kinematics(rotmats)[0][..., [joints[-1] for joints, _ in LIMBS], :]
    samples = place(out["samples"])  # (N, K, 4, 3)
    return samples.var(1).sum(-1).sqrt(), (place(out["mean"]) - place(true)).norm(dim=-1)


def spread_by_group(std: Tensor, error: Tensor, groups: dict[str, Tensor]) -> dict:
    """Means of std and error (N, 4) over groups (N, 4) bool, hands and feet apart; and whether sigma knows where the
    mean is wrong: Spearman's rank correlation of the two over the examples, mean over limbs."""
    numbers = {}
    for limb, columns in (("hand", [0, 1]), ("foot", [2, 3])):
        for name, group in groups.items():
            inside = group[:, columns]
            spread = std[:, columns][inside]
            numbers[f"{limb}, {name}"] = {
                "n": len(spread), "std_cm": spread.mean().item(), "error_cm": error[:, columns][inside].mean().item(),
                "standard_error_cm": (spread.std() / len(spread) ** 0.5).item() if len(spread) > 1 else 0.0}
    ranks = torch.stack([std, error]).argsort(1).argsort(1).double()  # (2, N, 4)
    centred = ranks - ranks.mean(1, keepdim=True)
    agree = centred.prod(0).sum(0) / centred.square().sum(1).prod(0).sqrt()  # (4,)
    return numbers | {"rank_correlation": agree.mean().item()}


def draw_bars(axis: Axes, title: str, numbers: dict) -> None:
    bars = {name: bar for name, bar in numbers.items() if name != "rank_correlation"}
    y = np.arange(len(bars))[::-1]
    axis.barh(y + 0.2, [bar["std_cm"] for bar in bars.values()], 0.38, color=BLUE,
              label="standard deviation (and its error)",
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
        std, error = limb_spread(out, true)
        report[kind] = spread_by_group(std, error, groups)
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


