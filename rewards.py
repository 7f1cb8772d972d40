"""What is good: the paper's four rewards, one that needs no model at all, and the text-pose retrieval model.

    joint       1 / ||J - J_true||_2                                     image tasks         (Pose-RFT eq. 7)
    semantic    cos(phi_text(q), phi_pose(p)), a retrieval model         text to pose        (eq. 8)
    format      1 if the answer has the form its task asks for, else 0   all                 (eq. 9)
    text        cos(E(answer), E(true answer))                           answers in words    (eq. 10)
    statements  share of what the sentence says that holds in the pose   text to pose        (ours: verifiable)
    description share of what the answer says that holds in the image    image to text       (ours: verifiable)
    correct     1 if the answer is the true one, else 0                  questions           (ours: verifiable)
E of eq. 10 (the paper's is BGE-M3) is the retrieval model's own text tower. A reward must not judge itself: a second
retrieval model, trained on other poses, is used by evaluate.py alone.
Read next: hygrpo.py, which turns rewards into advantages.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

import captions
from body import forward_kinematics, remove_heading, rot6d_to_matrix
from builtin.retriever import Retriever

# The tasks that have each reward.
TASKS = {"joint": ("image2pose", "image2text"), "semantic": ("text2pose",), "statements": ("text2pose",),
         "format": ("text2pose", "image2pose", "image2text", "vqa"), "text": ("image2text", "vqa"),
         "description": ("image2text",), "correct": ("vqa",)}
# Of the form little is to be learned, but it must not be lost. An answer half right is already similar to the true one,
# so that a large weight of `text` costs exact answers.
WEIGHTS = {"joint": 2.0, "semantic": 0.5, "format": 12.0, "text": 0.5, "statements": 3.5, "description": 1.0,
           "correct": 1.0}


# ---------------------------------------------------------------- the text-pose retrieval model

# ---------------------------------------------------------------- the rewards

POSE_FORM = re.compile(re.escape(captions.POSE_ANSWER))
DESCRIPTION_FORM = re.compile(r"\S.*\. " + re.escape(captions.POSE_ANSWER), re.DOTALL)
WORDS_FORM = re.compile(rf"(?!.*{re.escape(captions.POSE_TOKEN)})\S.*\.", re.DOTALL)
FORM = {"text2pose": POSE_FORM, "image2pose": POSE_FORM, "image2text": DESCRIPTION_FORM, "vqa": WORDS_FORM}


def words_of(answer: str) -> str:
    """The answer without its sentence about the pose: the description of an image-to-text answer."""
    return answer.replace(captions.POSE_ANSWER, "").strip()


def format_reward(task: str, answer: str) -> float:
    """Pose-RFT eq. 9: 1 if the whole answer matches its task's form, else 0."""
    return float(FORM[task].fullmatch(answer) is not None)


def joint_reward(joints: Tensor, true_joints: Tensor) -> Tensor:
    """Pose-RFT eq. 7: (..., 24, 3) in metres, pelvis at the origin, to (...); finite for a perfect pose."""
    return 1 / (joints - true_joints).flatten(-2).norm(dim=-1).clamp_min(1e-3)


@contextmanager
def blame(name: str, examples: Sequence) -> Iterator[None]:
    """Whatever fails inside is said to be the fault of the reward `name` of these examples."""
    try:
        yield
    except Exception as error:
        others = f" (or one of {len(examples) - 1} others)" if len(examples) > 1 else ""
        raise ValueError(f"the reward `{name}` failed on the {examples[0].task} example {examples[0].prompt!r}"
                         f"{others}: {type(error).__name__}: {error}") from error


def broken(examples: Sequence, rollout, text: dict[str, Tensor], pose: dict[str, Tensor]) -> list[str]:
    """The names of those rewards that are not finite where their task has them (and the answer has a pose)."""
    found = []
    for name, reward in (text | pose).items():
        has = torch.tensor([e.task in TASKS[name] and (name != "statements" or len(e.statements) > 0)
                            for e in examples], device=reward.device)  # (B,)
        if not reward[rollout.has_pose & has[:, None] if reward.dim() == 3 else has].isfinite().all():
            found.append(name)
    return found


@torch.no_grad()
def score(examples: Sequence, rollout, retriever: Retriever) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All rewards of a rollout: of text, name -> (B, G), and of poses, name -> (B, G, K); NaN where a task has none.

    Kinematics run once for all B x G x K poses; every term is one tensor operation over them.
    """
    B, G, K = rollout.pose.shape[:3]
    device = rollout.pose.device
    rows = lambda name: [i for i, example in enumerate(examples) if example.task in TASKS[name]]
    empty = lambda *shape: torch.full(shape, torch.nan, device=device)

    text = {name: empty(B, G) for name in ("format", "text", "description", "correct")}
    for i, (example, answers) in enumerate(zip(examples, rollout.answers)):
        with blame("format", [example]):
            text["format"][i] = torch.tensor([format_reward(example.task, a) for a in answers])
    if said := rows("text"):
        with blame("text", [examples[i] for i in said]):
            truth = retriever.encode_text([words_of(examples[i].answer) for i in said])  # (n, dim)
            answers = retriever.encode_text([words_of(a) for i in said for a in rollout.answers[i]])
            text["text"][said] = (answers.unflatten(0, (-1, G)) * truth[:, None]).sum(-1)
    for i in rows("description"):
        with blame("description", [examples[i]]):
            holds = captions.pose_holds(examples[i].rotmats).double()  # (S,)
            made = [list(captions.parse(a)) for a in rollout.answers[i]]
            text["description"][i] = torch.tensor([holds[m].mean().item() if m else 0.0 for m in made])
    for i in rows("correct"):
        with blame("correct", [examples[i]]):
            text["correct"][i] = torch.tensor([float(a == examples[i].answer) for a in rollout.answers[i]])

    pose = {name: empty(B, G, K) for name in ("joint", "semantic", "statements")}
    rotmats = rot6d_to_matrix(rollout.pose.unflatten(-1, (24, 6)))  # (B, G, K, 24, 3, 3)
    if seen := rows("joint"):
        with blame("joint", [examples[i] for i in seen]):
            true = torch.stack([examples[i].rotmats for i in seen]).to(device)
            true_joints = forward_kinematics(true)[0][:, None, None]  # (n, 1, 1, 24, 3)
            pose["joint"][seen] = joint_reward(forward_kinematics(rotmats[seen])[0], true_joints)
    if told := rows("semantic"):
        with blame("semantic", [examples[i] for i in told]):
            upright = remove_heading(rotmats[told])
            joints, orientations = forward_kinematics(upright)
            truth = retriever.encode_text([examples[i].caption for i in told])[:, None, None]  # (n, 1, 1, dim)
            pose["semantic"][told] = (retriever.encode_pose(upright, joints) * truth).sum(-1)
        with blame("statements", [examples[i] for i in told]):
            made = torch.zeros(len(told), len(captions.STATEMENTS), device=device)  # (n, S)
            for row, i in zip(made, told):
                row[list(examples[i].statements)] = 1.0
            held = captions.holds(joints, orientations).float()  # (n, G, K, S)
            held = torch.einsum("ngks,ns->ngk", held, made)
            # A caption from outside may say nothing that can be measured: 0 / 0 is NaN, no reward.
            pose["statements"][told] = held / made.sum(-1)[:, None, None]
    return text, pose
