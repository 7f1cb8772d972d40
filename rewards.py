"""What is good: one reward is one function and one row of the table REWARDS.

    joint       1 / ||J - J_true||_2                                     image tasks         (Pose-RFT eq. 7)
    semantic    cos(phi_text(q), phi_pose(p)), a retrieval model         text to pose        (eq. 8)
    format      1 if the answer has the form its task asks for, else 0   all                 (eq. 9)
    text        cos(E(answer), E(true answer))                           answers in words    (eq. 10)
    statements  share of what the sentence says that holds in the pose   text to pose        (ours: verifiable)
    description what the answer says that holds, beyond a blind guess    image to text       (ours: verifiable)
    correct     1 if the answer is the true one, else 0                  questions           (ours: verifiable)
J: joints of the neutral skeleton, metres, whatever the true shape. E (the paper's is BGE-M3): the retrieval model's own
text tower. A model must not judge what it rewarded: a second retrieval model, of other poses, is used by evaluate.py
alone. How to add a reward: docs/your_own_reward.md. Read next: captions.py, for `statements` and `description`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

import captions
from body import forward_kinematics, remove_heading, rot6d_to_matrix
from builtin.denials import signed
from builtin.joint_credit import joint_by_joint, statements_by_joint
from builtin.retriever import Retriever
from data import Example


@dataclass
class Context:
    """What a reward may look at: n examples of one task, the G answers to each, the K poses of each answer. Metres, y
    up, the pelvis at the origin. What is made of the poses is computed once, when the first reward asks for it."""
    examples: Sequence[Example]  # n
    answers: Sequence[Sequence[str]]  # n x G
    rotmats: Tensor  # (n, G, K, 24, 3, 3), as the camera sees the pose where there is an image
    retriever: Retriever  # phi_text, phi_pose and E
    base_rates: Tensor  # (S,), the share of training pictures in which each statement holds

    @cached_property
    def joints(self) -> Tensor:  # (n, G, K, 24, 3)
        return forward_kinematics(self.rotmats)[0]

    @cached_property
    def true_joints(self) -> Tensor:  # (n, 1, 1, 24, 3)
        return forward_kinematics(torch.stack([e.rotmats for e in self.examples]).to(self.rotmats))[0][:, None, None]

    @cached_property
    def upright(self) -> tuple[Tensor, Tensor, Tensor]:
        """The poses without heading: rotmats, joints (n, G, K, 24, 3) and their orientations (n, G, K, 24, 3, 3)."""
        rotmats = remove_heading(self.rotmats)
        return rotmats, *forward_kinematics(rotmats)

    @cached_property
    def said(self) -> Tensor:  # (n, 2 S), 1 for each statement of the sentence, and each that it denies
        said = torch.zeros(len(self.examples), 2 * captions.S, device=self.rotmats.device)
        for row, example in zip(said, self.examples):
            row[list(example.statements)] = 1.0
        return said

    @cached_property
    def said_and_held(self) -> Tensor:  # (n, G, K, 2 S), 1 for those that hold in the pose
        return signed(captions.holds(*self.upright[1:]).float()) * self.said[:, None, None]


# ---------------------------------------------------------------- the rewards: of a Context, (n, G) or (n, G, K)

POSE_FORM = re.compile(re.escape(captions.POSE_ANSWER))
DESCRIPTION_FORM = re.compile(rf"(?!.*{captions.POSE_TOKEN}.*{captions.POSE_TOKEN})\S.*\. "
                              + re.escape(captions.POSE_ANSWER), re.DOTALL)
WORDS_FORM = re.compile(rf"(?!.*{re.escape(captions.POSE_TOKEN)})\S.*\.", re.DOTALL)
FORM = {"text2pose": POSE_FORM, "image2pose": POSE_FORM, "image2text": DESCRIPTION_FORM, "vqa": WORDS_FORM}


def has_form(task: str, answer: str) -> bool:
    """Whether the whole answer matches the form that its task asks for."""
    return FORM[task].fullmatch(answer) is not None


def format_reward(c: Context) -> list[list[float]]:
    return [[float(has_form(e.task, a)) for a in answers] for e, answers in zip(c.examples, c.answers)]


def words_of(answer: str) -> str:
    """The answer without its sentence about the pose: the description of an image-to-text answer."""
    return answer.replace(captions.POSE_ANSWER, "").strip()


def text_reward(c: Context) -> Tensor:
    truth = c.retriever.encode_text([words_of(e.answer) for e in c.examples])  # (n, dim)
    answers = c.retriever.encode_text([words_of(a) for answers in c.answers for a in answers])  # (n * G, dim)
    return (answers.unflatten(0, (len(truth), -1)) * truth[:, None]).sum(-1)


def informedness(said: Sequence[int], holds: Tensor, base_rates: Tensor) -> float:
    """How much more of what is said holds here than in any picture: sum_s (h_s - p_s) / max(n, 4), in (-1, 1).

    said: n different statements. holds: the h_s of this picture. base_rates: the share p_s of pictures in which each
    holds; both (2 S,), of `signed`. A sum of informedness (Powers 2011): whoever does not look earns 0 on average,
    whatever is said. What is rare counts more. True descriptions make 4; more of them must not pay by number.
    """
    said = list(said)
    return ((holds.to(base_rates) - base_rates)[said].sum() / max(len(said), 4)).item()


def description_reward(c: Context) -> list[list[float]]:
    rates = signed(c.base_rates)
    rows = signed(torch.stack([torch.from_numpy(e.holds) for e in c.examples]).to(rates))  # (n, 2 S)
    return [[informedness(captions.parse(answer), row, rates) for answer in answers]
            for row, answers in zip(rows, c.answers)]


def correct_reward(c: Context) -> list[list[float]]:
    return [[float(a == e.answer) for a in answers] for e, answers in zip(c.examples, c.answers)]


def joint_reward(c: Context) -> Tensor:
    return 1 / (c.joints - c.true_joints).flatten(-2).norm(dim=-1).clamp_min(1e-3)  # finite for a perfect pose


def semantic_reward(c: Context) -> Tensor:
    rotmats, joints, _ = c.upright
    sentences = c.retriever.encode_text([e.caption for e in c.examples])[:, None, None]  # (n, 1, 1, dim)
    return (c.retriever.encode_pose(rotmats, joints) * sentences).sum(-1)


def statements_reward(c: Context) -> Tensor:
    return c.said_and_held.sum(-1) / c.said.sum(-1)[:, None, None]


class Reward(NamedTuple):
    weight: float  # of its advantage, in units of the group's spread: a number of votes, whatever the reward's unit
    of: Literal["words", "poses"]  # one number an answer, (n, G), or one a pose, (n, G, K)
    tasks: tuple[str, ...]  # the tasks that have it
    function: Callable[[Context], Tensor | list]
    needs: Callable[[Example], bool] = lambda example: True  # for an example that lacks it the function gives NaN
    by_joint: Callable[[Context], Tensor] | None = None  # (n, G, K, 24): the part that each joint of a pose decides
    has_slope: bool = False  # torch can differentiate it by the pose, and `--pose_gradient pathwise` follow that


# Little of the form is to be learned, but it must not be lost. As answers half right are similar to true ones, a large
# weight of `text` costs exact ones. --focal_gamma makes the advantage of `statements` smaller; a caption may have none.
REWARDS = {
    "format": Reward(12.0, "words", ("text2pose", "image2pose", "image2text", "vqa"), format_reward),
    "text": Reward(0.5, "words", ("image2text", "vqa"), text_reward),
    "description": Reward(8.0, "words", ("image2text",), description_reward),
    "correct": Reward(1.0, "words", ("vqa",), correct_reward),
    "joint": Reward(3.0, "poses", ("image2pose", "image2text"), joint_reward, by_joint=joint_by_joint, has_slope=True),
    "semantic": Reward(0.5, "poses", ("text2pose",), semantic_reward, has_slope=True),
    "statements": Reward(14.0, "poses", ("text2pose",), statements_reward, lambda e: len(e.statements) > 0,
                         statements_by_joint),
}


def weights(changes: Sequence[str] | None = None, without: str | None = None) -> dict[str, float]:
    """The weight of each reward: the table's, but for `changes`, each "NAME=WEIGHT", and 0 for `without`."""
    result, changed = {}, [(f"--reward_weights {change}", change) for change in changes or ()]
    for flag, change in changed + ([(f"--without {without}", f"{without}=0")] if without is not None else []):
        name, _, number = change.partition("=")
        if name not in REWARDS:
            raise ValueError(f"{flag}: there is no reward {name!r} to weigh; the rewards are {', '.join(REWARDS)}")
        if not re.fullmatch(r"-?(\d+\.?|\d*\.\d+)(e[-+]?\d)?", number):
            raise ValueError(f"{flag}: must be NAME=NUMBER, such as {name}=1.5")
        if name in result:
            raise ValueError(f"{flag}: {name} was given a weight before; give it one")
        result[name] = float(number)
    return {name: reward.weight for name, reward in REWARDS.items()} | result


def run_reward(name: str, function: Callable[[Context], Tensor | list], context: Context,
               size: Sequence[int]) -> Tensor:
    """What a reward gives, a tensor of this size. Whatever fails becomes a ValueError that names it."""
    try:
        given = torch.as_tensor(function(context), device=context.rotmats.device).float()
        if given.shape != size:
            raise ValueError(f"it gave a tensor {tuple(given.shape)} where {tuple(size)} is due")
        return given
    except Exception as error:
        first = context.examples[0]
        raise ValueError(f"the reward `{name}` failed on the {first.task} example {first.prompt!r} or one beside it: "
                         f"{type(error).__name__}: {error}") from error


@torch.no_grad()
def score(examples: Sequence[Example], rollout, retriever: Retriever,
          base_rates: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """All rewards of a rollout: of words, name -> (B, G), and poses, name -> (B, G, K), and of those that are made of
    parts what each joint decides, name -> (B, G, K, 24); NaN where a task has no such reward, a joint no such part.

    base_rates: (S,), in what share of the training pictures each statement holds: `base_rates` of Split and Mixture."""
    rotmats = rot6d_to_matrix(rollout.pose.unflatten(-1, (24, 6)))  # (B, G, K, 24, 3, 3)
    scored = {name: torch.full(rotmats.shape[:2 if reward.of == "words" else 3], torch.nan, device=rotmats.device)
              for name, reward in REWARDS.items()}
    by_joint = {name: torch.full(rotmats.shape[:4], torch.nan, device=rotmats.device)
                for name, reward in REWARDS.items() if reward.by_joint}
    for task in dict.fromkeys(e.task for e in examples):
        rows = [i for i, e in enumerate(examples) if e.task == task]
        context = Context([examples[i] for i in rows], [rollout.answers[i] for i in rows], rotmats[rows], retriever,
                          base_rates)
        for name, reward in REWARDS.items():
            if task in reward.tasks:
                scored[name][rows] = run_reward(name, reward.function, context, (len(rows), *scored[name].shape[1:]))
                if reward.by_joint:
                    by_joint[name][rows] = run_reward(name, reward.by_joint, context, context.rotmats.shape[:4])
    return *({name: x for name, x in scored.items() if REWARDS[name].of == of} for of in ("words", "poses")), by_joint
