"""Ask a trained policy: a sentence or a photo in, an answer and a Gaussian over SMPL poses out, as files and a picture.

    python predict.py "kneeling on the left knee, right hand above the head"
    python predict.py --image photo.jpg [--prompt "Which hand is higher?"]
The folder --out gets picture.png, body.obj, pose.npz and, with plotly, body.html; lab/prediction_files.py says what
they hold. The built-in policy was trained on rendered people in 64 pixels: a photo should show one person who fills it.
Read next: demo.py, which asks and shows in a browser.
"""

from argparse import SUPPRESS
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Independent

from body import remove_heading, rot6d_to_matrix
from builtin.free_text import make_prompt
from engine.runtime import pick_device, run
from engine.saving import load_policy
from engine.settings import Count, OutputFolder, Parser, SeedNumber
from lab.body_page import TURNED
from lab.prediction_files import GHOSTS, SHOWN, check_statements, statement_lines, write
from model import POSE_DIM, PosePolicy, draw_poses
from real.photos import read_image
from real.smpl import load_body


class Prediction(NamedTuple):
    answer: str  # with " ..." where it was cut, at the most tokens that an answer gets
    has_pose: bool  # False: the answer holds no <POSE>, and the rest means nothing
    mean: Tensor  # (144,) of the raw Gaussian
    covariance: Tensor  # (144, 144)
    rotmats: Tensor  # (1 + K, 24, 3, 3): the mean made rotations, then K samples


@torch.no_grad()
def predict(policy: PosePolicy, prompt: str, image: np.ndarray | None, samples: int, seed: int = 0) -> Prediction:
    """The likeliest answer to a prompt and the Gaussian at its <POSE>, on the CPU; image: (size, size, 3) uint8."""
    encoded = policy.encode([SimpleNamespace(prompt=prompt, image=image)])
    rollout = policy.sample(encoded, 1, 1, temperature=0.0)
    pose = policy.log_prob(encoded, rollout.tokens, rollout.token_mask).pose  # batch (1, 1)
    noise = torch.randn(samples, POSE_DIM, generator=torch.Generator().manual_seed(seed))
    drawn = draw_poses(pose, noise[None, None].to(policy.device))  # (1, 1, K, 144)
    covariance = pose.variance.diag_embed() if isinstance(pose, Independent) else pose.covariance_matrix
    mean, drawn, covariance = (tensor[0, 0].cpu() for tensor in (pose.mean, drawn, covariance))
    rotmats = rot6d_to_matrix(torch.cat([mean[None], drawn]).unflatten(-1, (24, 6)))
    answer = rollout.answers[0][0] + " ..." * (rollout.tokens[0, 0, -1].item() != policy.tokenizer.eos_token_id)
    return Prediction(answer, bool(rollout.has_pose[0, 0]), mean, covariance, rotmats)


@dataclass
class PredictConfig:
    image: str | None = field(default=None, metadata={"help": "photo of one person"})
    prompt: str = field(default="", metadata={"help": "what to ask, sent as it is; default: for the SMPL pose"})
    body: str | None = field(default=None, metadata={"help": "SMPL: .pkl, .npz or a folder; default: built in"})
    model: str = field(default="runs/rft", metadata={"help": "folder of a policy"})
    out: OutputFolder = field(default="prediction", metadata={"help": "folder for picture.png and the files beside it"})
    samples: Count = field(default=64, metadata={
        "help": f"poses drawn; {GHOSTS} are painted, {SHOWN} on their own, {TURNED} can be turned"})
    interactive: bool = field(default=False, metadata={"help": "read sentences or questions, one a line, until none"})
    seed: SeedNumber = field(default=0, metadata={"help": "seed of the samples"})
    device: str | None = field(default=None, metadata={"help": "cuda, mps or cpu; default: the best there is"})


def respond(policy: PosePolicy, body, prompt: str, image: np.ndarray | None, config: PredictConfig,
            say: Callable[[str], None] = print) -> list[Path]:
    """Ask, say what was answered, and write the files over those of the last time. Returns them, none without pose."""
    prompt = prompt.encode(errors="replace").decode()  # a terminal may send what is no text
    prediction = predict(policy, prompt, image, config.samples, config.seed)
    say(f"asked:  {prompt}\nanswer: {prediction.answer}")
    if not prediction.has_pose:
        say("The answer gives no pose, so no files are written.")
        return []
    rotmats = prediction.rotmats if image is not None else remove_heading(prediction.rotmats)  # words have no heading
    checked = check_statements(prompt if image is None else prediction.answer, rotmats)
    lines = statement_lines(checked)
    level = "" if image is None else ", as if the camera were level,"  # how it was held is not known
    heading = f"What these words say of the pose{level} (+ where it holds of the mean pose, - where not):"
    say("\n  ".join([heading, *lines]) if lines else
        "No statement to check: these words say nothing that captions.py, which reads English, can measure.")
    return write(Path(config.out), body, prediction, prompt, image, checked, rotmats, say)


def main() -> None:
    parser = Parser(PredictConfig, description=__doc__.splitlines()[0])
    parser.add_argument("sentence", nargs="*", default=SUPPRESS, help="a pose in words (with --image: a question)")
    config, *rest = parser.parse_args_into_dataclasses()  # what is no field of the dataclass comes in a namespace
    words = " ".join(rest[0].sentence) if rest else ""
    if bool(words) + bool(config.prompt) + config.interactive > 1:
        raise ValueError("give a sentence, or --prompt, or --interactive: one of them")
    image = read_image(config.image) if config.image is not None else None
    prompt = "" if config.interactive else config.prompt or make_prompt(words, image)
    policy, body = load_policy(config.model).to(pick_device(config.device)), load_body(config.body)
    if image is not None and policy.image_size != len(image):
        image = read_image(config.image, policy.image_size)

    def ask(prompt: str) -> None:
        if files := respond(policy, body, prompt, image, config):
            print("Written:", ", ".join(map(str, files)))

    if not config.interactive:
        return ask(prompt)
    print("Ask about the image" if image is not None else "Describe a pose", "(an empty line ends it).")
    with suppress(EOFError, KeyboardInterrupt):
        while words := input("> ").strip():
            try:
                ask(make_prompt(words, image))
            except ValueError as error:  # a sentence too long, for instance; the next one may do
                print(error)


if __name__ == "__main__":
    run(main)
