"""Ask a trained policy: a sentence or a photo in, an answer and a Gaussian over SMPL poses out, as files and a picture.

    python predict.py "kneeling on the left knee, right hand above the head"
    python predict.py --image photo.jpg [--prompt "Which hand is higher?"]
The folder --out gets `picture.png`, `body.obj` (the mean pose in metres, y up, as Blender's importer expects) and
`pose.npz`, float32, in SMPL's own frame (y up; an upright body with the identity at its root looks along +z):
    axis_angle (24, 3)   the mean pose: `global_orient` and `body_pose` of any SMPL implementation, radians
    rot6d (24, 6)        the same rotations, the first two columns of each matrix
    betas (10,)          zeros: the policy says nothing of the body's shape
    mean (144,), covariance (144, 144)   the raw Gaussian over 24 x 6 numbers, before they are made rotations
    samples (K, 24, 3)   poses drawn from it, axis-angle
The built-in policy was taught on rendered people in 64 pixels, so a photo asks much of it: one person, filling it.
Read next: `sample` in model.py, where the answer and the Gaussian come from.
"""

import textwrap
import warnings
from argparse import SUPPRESS
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor
from torch.distributions import Independent
from transformers import HfArgumentParser

import captions
from body import (PALETTE, axis_angle_to_matrix, body_vertices, load_body, matrix_to_axis_angle, matrix_to_rot6d,
                  part_colors, remove_heading, render, rot6d_to_matrix)
from data import INSTRUCTIONS
from model import PosePolicy
from pose_head import POSE_DIM, draw_poses
from scripts import pick_device, run, write_picture

MAX_TOKENS = 80  # of an answer
MAX_PIXELS = 50_000_000  # of a photo; one larger than this would only fill the memory
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # pillow knows more: one, EPS, is a program to be run
SIZE, GHOSTS, SHOWN = 480, 12, 8  # pixels a picture of a body is high; samples painted translucent, and on their own


# ---------------------------------------------------------------- what is asked

def read_image(path: str | Path, size: int = 64) -> np.ndarray:
    """A photo as the policy reads it, (size, size, 3) uint8: upright, white where transparent, only its centre square.

    Raises ValueError, in one sentence, for a file that is missing, broken, no image, or too large."""
    try:
        # Pillow warns of odd notes beside the pixels, and of sizes for which there is a limit here.
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise ValueError(f"{file.width} x {file.height} pixels are too many, make it smaller")
            if file.mode[0] in "IF":  # would be cut at 255
                raise ValueError("its grey has more than 8 bits, save it with 8")
            photo = ImageOps.exif_transpose(file).convert("RGBA")  # cameras note which way is up, and do not turn
    except Exception as error:  # the system, pillow and each of its formats raise their own
        raise ValueError(f"{path} cannot be used as an image: {error}") from error
    if photo.width != photo.height:
        print(f"{path} is {photo.width} x {photo.height} pixels: only its centre square is looked at.")
    photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")
    return np.array(ImageOps.fit(photo, (size, size), Image.Resampling.LANCZOS))


_SUBJECTS = "the a an this that these someone somebody person both each he she they his her their it there".split()
_STATES = {p.split()[3] for s in captions.STATEMENTS for p in s.phrases if p.startswith("the person is ")}  # kneeling


def make_prompt(words: str, image: np.ndarray | None) -> str:
    """What is asked of the policy. Words about an image, and words that ask for an answer, stay as they are. Others are
    made such a sentence as it was taught on, "arms spread" -> "The person has the arms spread.", in an instruction:
    sent as a fragment, many would be answered without a pose."""
    words = " ".join(words.split())
    if not words and image is None:
        raise ValueError('describe a pose, as in python predict.py "kneeling on the left knee", or give --image FILE')
    if image is not None or "?" in words or "smpl pose" in words.lower():
        return words or INSTRUCTIONS["image2pose"][0]
    first = words.split()[0].strip(",.!").lower()
    if first not in _SUBJECTS:
        is_state = first in _STATES or first.endswith("ing")
        words = ("The person is " if is_state else "The person has the ") + words[0].lower() + words[1:]
    return INSTRUCTIONS["text2pose"][0].format(words[0].upper() + words[1:] + "." * (words[-1] not in ".!"))


# ---------------------------------------------------------------- what is answered

class Prediction(NamedTuple):
    answer: str
    has_pose: bool  # False: the answer holds no <POSE>, and the rest means nothing
    mean: Tensor  # (144,) of the raw Gaussian
    covariance: Tensor  # (144, 144)
    rotmats: Tensor  # (1 + K, 24, 3, 3): the mean made rotations, then K samples


@torch.no_grad()
def predict(policy: PosePolicy, prompt: str, image: np.ndarray | None, samples: int, seed: int = 0) -> Prediction:
    """The likeliest answer to a prompt and the Gaussian at its <POSE>, on the CPU; image: (size, size, 3) uint8."""
    encoded = policy.encode([SimpleNamespace(prompt=prompt, image=image)])
    length, room = encoded.ids.shape[1], policy.vlm.config.get_text_config().max_position_embeddings - MAX_TOKENS
    if length > room:
        raise ValueError(f"the prompt has {length} tokens, and the policy reads at most {room}: make it shorter")
    rollout = policy.sample(encoded, 1, 1, max_tokens=MAX_TOKENS, temperature=0.0)
    pose = policy.log_prob(encoded, rollout.tokens, rollout.token_mask).pose  # batch (1, 1)
    noise = torch.randn(samples, POSE_DIM, generator=torch.Generator().manual_seed(seed))
    drawn = draw_poses(pose, noise[None, None].to(policy.device))  # (1, 1, K, 144)
    covariance = pose.variance.diag_embed() if isinstance(pose, Independent) else pose.covariance_matrix
    mean, drawn, covariance = (tensor[0, 0].cpu() for tensor in (pose.mean, drawn, covariance))
    rotmats = rot6d_to_matrix(torch.cat([mean[None], drawn]).unflatten(-1, (24, 6)))
    return Prediction(rollout.answers[0][0], bool(rollout.has_pose[0, 0]), mean, covariance, rotmats)


def statement_lines(text: str, rotmats: Tensor) -> list[str]:
    """A line for each statement of a text: whether it holds of the mean pose, + or -, and in how many samples.

    rotmats: (1 + K, 24, 3, 3), the mean pose first."""
    holds, K = captions.pose_holds(rotmats), len(rotmats) - 1  # (1 + K, S)
    return [f"{'+' if holds[0, i] else '-'} {captions.STATEMENTS[i].key}: {holds[1:, i].sum()} of {K} samples"
            for i in captions.parse(text)]


# ---------------------------------------------------------------- what is written

def write_pose(folder: Path, body, prediction: Prediction) -> None:
    """`pose.npz` and `body.obj`, as the top of this file says."""
    _, _, mean, covariance, rotmats = prediction
    axis_angle, betas = matrix_to_axis_angle(rotmats), torch.zeros(10)
    np.savez(folder / "pose.npz", axis_angle=axis_angle[0], rot6d=matrix_to_rot6d(rotmats[0]), betas=betas, mean=mean,
             covariance=covariance, samples=axis_angle[1:])
    vertices = body_vertices(body, rotmats[:1], betas[None])[0][0]
    lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in vertices.tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (body.faces_tensor + 1).tolist()]  # Wavefront counts from 1
    (folder / "body.obj").write_text("\n".join(lines) + "\n")


def draw(path: Path, body, asked: str, image: np.ndarray | None, answer: str, lines: list[str],
         rotmats: Tensor) -> None:
    """The picture: the mean pose before translucent samples, from two sides; the mean pose coloured by how far each
    part varies; samples on their own; beside them the words. rotmats: (1 + K, 24, 3, 3), the mean pose first."""
    vertices = body_vertices(body, rotmats, torch.zeros(len(rotmats), 10))[0]  # (1 + K, V, 3), pelvis at the origin
    spread = 100 * vertices[1:].var(0, correction=0).sum(-1).sqrt()  # (V,) cm
    front, quarter = vertices[:1 + GHOSTS], axis_angle_to_matrix(torch.tensor([0.0, -np.pi / 2, 0.0]))
    views = torch.stack([front, front @ quarter.mT])  # (2, 1 + n, V, 3)
    low, high = views[..., :2].amin((0, 1, 2)), views[..., :2].amax((0, 1, 2))
    reach, white = 1.04 * (high - low).max(), torch.ones(1, 1, 1, 3)
    wide = 1.04 * ((high - low)[0] / reach).item()  # the share of a picture's columns that is not empty

    def paint(vertices: Tensor, colors: Tensor, background: Tensor, fine: int = 2) -> Tensor:  # (B, SIZE, SIZE, 3)
        B, light = len(vertices), torch.tensor([0.3, 0.5, 1.0])
        return render(vertices, body.faces_tensor, colors.expand(B, -1, -1), SIZE, ((low + high) / 2).expand(B, 2),
                      reach.expand(B), light=light.expand(B, 3), background=background, supersample=fine) / 255

    clothes = part_colors(body, PALETTE[None])
    ghosts = paint(views[:, 1:].flatten(0, 1), clothes, white, 1).unflatten(0, (2, -1))  # (2, n, SIZE, SIZE, 3)
    cloud = (1 - 0.3 * (1 - ghosts)).prod(1)  # stacked like films, so that their order does not matter
    means = 0.85 * paint(views[:, 0], clothes, cloud) + 0.15 * cloud
    scale = ScalarMappable(Normalize(0, max(1, spread.max().item())), "viridis")
    heat = paint(front[:1], torch.from_numpy(scale.to_rgba(spread.numpy())[None, :, :3]).float(), white)
    figure = Figure(figsize=(16, 9))

    def show(place: tuple[float, ...], pixels: Tensor | np.ndarray, title: str = "") -> None:
        axis = figure.add_axes(place, frame_on=False, xticks=[], yticks=[], title=title)
        axis.title.set_size(18)
        axis.imshow(np.asarray(pixels))
        if len(pixels) == SIZE:  # leave out the empty columns on either side
            axis.set_xlim(SIZE / 2 * (1 - wide), SIZE / 2 * (1 + wide))

    seen = ("front", "from its left") if image is None else ("as the camera sees it", "from the side")
    for i, (title, pixels) in enumerate(zip((*seen, "standard deviation, cm"), (*means, *heat))):
        show((0.23 + 0.24 * i, 0.33, 0.235, 0.6), pixels, title)
    bar = figure.colorbar(scale, cax=figure.add_axes((0.955, 0.38, 0.008, 0.5)))
    bar.ax.tick_params(labelsize=13)
    figure.text(0.23, 0.28, "samples (above: translucent, behind the mean pose)", fontsize=15)
    for i, pixels in enumerate(ghosts[0, :SHOWN]):
        show((0.23 + 0.095 * i, 0.02, 0.094, 0.25), pixels)
    if image is not None:
        show((0.015, 0.62, 0.19, 0.31), image)
    top = 0.93 if image is None else 0.58
    texts = [textwrap.fill(textwrap.shorten(text, 250, placeholder=" ..."), 32) for text in (asked, answer, *lines)]
    step = min(0.031, (top - 0.03) / sum(text.count("\n") + 1.7 for text in texts))  # small print where there is much
    for i, text in enumerate(texts):
        color = "black" if i < 2 else "#00684a" if text[0] == "+" else "#b3400a"
        figure.text(0.015, top, text, va="top", fontsize=450 * step, linespacing=1.25, parse_math=False, color=color)
        top -= step * (text.count("\n") + 1.7)
    write_picture(figure, path, dpi=100)


# ---------------------------------------------------------------- the command

@dataclass
class PredictConfig:
    image: str | None = field(default=None, metadata={"help": "photo of one person"})
    prompt: str = field(default="", metadata={"help": "what to ask, sent as it is; default: for the SMPL pose"})
    body: str | None = field(default=None, metadata={"help": "SMPL: .pkl, .npz or a folder; default: built in"})
    model: str = field(default="runs/rft", metadata={"help": "folder of a policy"})
    out: str = field(default="prediction", metadata={"help": "folder to write picture.png, pose.npz and body.obj to"})
    samples: int = field(default=64, metadata={"help": f"poses drawn; {GHOSTS} are painted, {SHOWN} on their own"})
    interactive: bool = field(default=False, metadata={
        "help": "read sentences (with --image: questions) from the terminal, one a line, until an empty one"})
    seed: int = field(default=0, metadata={"help": "seed of the samples"})
    device: str | None = field(default=None, metadata={"help": "cuda, mps or cpu; default: the best there is"})


def respond(policy: PosePolicy, body, prompt: str, image: np.ndarray | None, config: PredictConfig) -> None:
    """Ask, print, and write the files of one prediction over those of the last."""
    prompt = prompt.encode(errors="replace").decode()  # a terminal may send what is no text
    prediction = predict(policy, prompt, image, config.samples, config.seed)
    print(f"asked:  {prompt}\nanswer: {prediction.answer}")
    if not prediction.has_pose:
        print("The answer gives no pose, so no files are written.")
        return
    rotmats = prediction.rotmats if image is not None else remove_heading(prediction.rotmats)  # words have no heading
    lines = statement_lines(prompt if image is None else prediction.answer, rotmats)
    print("What these words say of the pose (+ where it holds of the mean pose, - where not):" if lines else
          "No statement to check: these words say nothing that captions.py can measure.", *lines, sep="\n  ")
    folder = Path(config.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_pose(folder, body, prediction)
        draw(folder / "picture.png", body, prompt, image, prediction.answer, lines, rotmats)
    except OSError as error:
        raise ValueError(f"--out {folder} cannot be written to: {error}") from error
    print(f"Written: {folder / 'picture.png'}, pose.npz, body.obj")


def main() -> None:
    parser = HfArgumentParser(PredictConfig, description=__doc__.splitlines()[0])
    parser.add_argument("sentence", nargs="*", default=SUPPRESS, help="a pose in words (with --image: a question)")
    config, *rest = parser.parse_args_into_dataclasses()  # what is no field of the dataclass comes in a namespace
    words = " ".join(rest[0].sentence) if rest else ""
    if words and (config.prompt or config.interactive):
        raise ValueError("give a sentence, or --prompt, or --interactive: one of them")
    if config.samples < 1:
        raise ValueError(f"--samples must be 1 or more, not {config.samples}")
    image = read_image(config.image) if config.image is not None else None
    prompt = "" if config.interactive else config.prompt or make_prompt(words, image)
    policy, body = PosePolicy.from_pretrained(config.model).to(pick_device(config.device)), load_body(config.body)
    if image is not None and policy.picture != len(image):
        image = read_image(config.image, policy.picture)
    if not config.interactive:
        return respond(policy, body, prompt, image, config)
    print("Ask about the image" if image is not None else "Describe a pose", "(an empty line ends it).")
    with suppress(EOFError, KeyboardInterrupt):
        while words := input("> ").strip():
            respond(policy, body, make_prompt(words, image), image, config)


if __name__ == "__main__":
    run(main)
