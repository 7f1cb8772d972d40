"""The method in one figure, with answers and poses that a policy really gave. `python -m lab.pictures` draws it.

The formula is that of hygrpo.py, term by term.
"""

import textwrap
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from body import remove_heading, rot6d_to_matrix
from data import Split
from lab.bodies import picture, turned
from lab.curves import BLUE, ORANGE, write_picture
from lab.metrics import eval_examples
from model import PosePolicy, Rollout

GREY = "#444444"
G, K = 3, 3  # answers and poses shown

BOXES = (  # x, y, width, height, colour, title, text; {prompt} is the one that was asked
    (0.3, 4.5, 3.0, 3.7, GREY, "prompt q", "{prompt}"),
    (4.1, 4.5, 3.0, 3.7, GREY, "policy", "vision-language model\n+ pose-aware encoder\nof images (frozen)\n\n"
     "q is run once\nfor all G answers"),
    (7.9, 4.5, 7.1, 3.7, GREY, f"G = {G} answers, each with K = {K} poses", ""),
    (15.8, 6.65, 3.9, 1.55, BLUE, "advantage F of an answer", "form, similarity, exact\nanswers, descriptions"),
    (15.8, 4.5, 3.9, 1.55, ORANGE, "advantage \u0394 of each joint",
     "of the pose: joints, semantics,\nstatements that hold"),
    (7.3, 0.3, 12.4, 3.35, GREY, "HyGRPO: make this large", ""), (0.3, 0.3, 6.2, 3.35, GREY, "hybrid action", ""))

LINES = (  # x, y, text, colour, size
    (0.6, 2.65, r"$\pi(a, p\,|\,q) = \pi(a\,|\,q)\;\mathcal{N}(p;\, \mu(h),\, \Sigma(h))$", "black", 19),
    (0.6, 1.85, "words a: one distribution a token", BLUE, 14.5),
    (0.6, 1.05, "pose p: D = 144 numbers, 6 for each of 24\njoints, from the hidden state h at <POSE>", ORANGE, 14.5),
    (7.6, 2.72, r"$\dfrac{1}{B G}\,\sum_i\,\dfrac{1}{T_i}\,\sum_t\,[\,\min(r_{it} F_i,\ \mathrm{clip}(r_{it})\,F_i)"
     r"\ -\ \beta_\mathrm{text}\,\mathrm{KL}_{it}\,]$", BLUE, 21),
    (7.6, 2.1, r"i: answers; t: their $T_i$ tokens; $r_{it}$: its probability over that when it was sampled", BLUE, 13),
    (7.6, 1.37, r"$+\ \dfrac{w}{V D}\,\sum_i\,[\,\dfrac{1}{K}\,\sum_k\,\sum_j\,\min(r_{ikj} \Delta_{ikj},\ "
     r"\mathrm{clip}(r_{ikj})\,\Delta_{ikj})\ -\ \beta_\mathrm{pose}\,\mathrm{KL}_i\,]$", ORANGE, 21),
    (7.6, 0.7, r"i: the V answers with a pose; j: joints; $r_{ikj}$: its density over that when it was sampled;"
     "\nKL: from the SFT policy, exact", ORANGE, 13),
    (15.9, 4.07, "each compared within its group", "black", 13), (5.8, 4.05, "gradient", "black", 14),
    (17.95, 6.35, "mean reward\nof its K poses", ORANGE, 12.5))

ARROWS = (  # x, y, dx, dy, colour
    (3.35, 6.35, 0.7, 0, "black"), (7.15, 6.35, 0.7, 0, "black"), (15.05, 7.4, 0.7, 0, BLUE),
    (15.05, 5.3, 0.7, 0, ORANGE), (17.75, 6.1, 0, 0.52, ORANGE), (19.0, 4.45, 0, -0.75, "black"),
    (7.25, 2.0, -0.7, 0, "black"), (5.6, 3.7, 0, 0.75, "black"))


def draw_answers(figure: Figure, canvas: Axes, rollout: Rollout, body) -> None:
    """The answers' words in a column, the poses of each beside them."""
    poses = rot6d_to_matrix(rollout.pose[0].unflatten(-1, (24, 6))).cpu()  # (G, K, 24, 3, 3)
    for g in range(G):
        middle = 7.18 - 1.0 * g
        answer = textwrap.shorten(rollout.answers[0][g], 85, placeholder=" ... <POSE>.")
        canvas.text(8.1, middle, textwrap.fill(answer, 31), va="center", fontsize=13.5, color=BLUE)
        bodies = picture(body, turned(remove_heading(poses[g])), torch.zeros(K, 10), 240)
        for k, pixels in enumerate(bodies if rollout.has_pose[0, g] else ()):
            axis = figure.add_axes(((11.95 + 1.0 * k) / 20, (middle - 0.47) / 8.6, 0.94 / 20, 0.94 / 8.6))
            axis.imshow(pixels)
            axis.axis("off")


def method(path: Path, policy: PosePolicy, split: Split, body, seed: int = 0) -> None:
    """HyGRPO from prompt to update, with answers and poses that the policy really gave."""
    example = eval_examples(split, "image2text", 1, seed)[0]
    rollout = policy.sample(policy.encode([example]), G, K, seeds=[seed])
    figure = Figure(figsize=(20, 8.6))
    canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, 20), ylim=(0, 8.6))
    canvas.axis("off")
    for x, y, width, height, color, title, text in BOXES:
        canvas.add_patch(FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=0.15", facecolor=color + "18",
                                        edgecolor=color, linewidth=2))
        top = {"ha": "center", "va": "top"}
        canvas.text(x + width / 2, y + height - 0.15, title, fontsize=16, fontweight="bold", color=color, **top)
        canvas.text(x + width / 2, y + height - 0.6, text.format(prompt=textwrap.fill(example.prompt, 27)),
                    fontsize=13.5, linespacing=1.45, **top)
    axis = figure.add_axes((0.95 / 20, 4.6 / 8.6, 1.7 / 20, 1.7 / 8.6))
    axis.imshow(example.image)
    axis.axis("off")
    draw_answers(figure, canvas, rollout, body)
    for x, y, text, color, size in LINES:
        canvas.text(x, y, text, fontsize=size, va="center", color=color)
    style = {"arrowstyle": "-|>,head_width=0.35,head_length=0.7", "lw": 2.2}
    for x, y, dx, dy, color in ARROWS:
        canvas.annotate("", (x + dx, y + dy), (x, y), arrowprops=style | {"color": color})
    write_picture(figure, path, dpi=72)
