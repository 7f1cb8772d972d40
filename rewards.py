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

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

import captions
from body import forward_kinematics, matrix_to_rot6d, remove_heading, rot6d_to_matrix
from engine.checkpoint import TrainingState, whole_folder

# The tasks that have each reward.
TASKS = {"joint": ("image2pose", "image2text"), "semantic": ("text2pose",), "statements": ("text2pose",),
         "format": ("text2pose", "image2pose", "image2text", "vqa"), "text": ("image2text", "vqa"),
         "description": ("image2text",), "correct": ("vqa",)}
# Of the form little is to be learned, but it must not be lost. An answer half right is already similar to the true one,
# so that a large weight of `text` costs exact answers.
WEIGHTS = {"joint": 2.0, "semantic": 0.5, "format": 12.0, "text": 0.5, "statements": 3.5, "description": 1.0,
           "correct": 1.0}


# ---------------------------------------------------------------- the text-pose retrieval model

class Retriever(nn.Module):
    """Sentences and poses on one unit sphere, near each other where they fit (Delmas et al., PoseScript, 2022)."""

    def __init__(self, tokenizer: Tokenizer, width: int = 96, layers: int = 1, dim: int = 256, max_tokens: int = 128):
        super().__init__()
        self.config = {"width": width, "layers": layers, "dim": dim, "max_tokens": max_tokens}
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self.tokenizer.enable_padding(pad_id=0)
        self.tokenizer.enable_truncation(max_tokens)
        self.embed = nn.Embedding(self.tokenizer.get_vocab_size(), width)
        self.position = nn.Parameter(0.02 * torch.randn(max_tokens, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.text_tower = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.text_out = nn.Linear(width, dim)
        self.pose_tower = nn.Sequential(nn.Linear(24 * 9, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
                                        nn.Linear(256, dim))
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Sentences to unit vectors (N, dim)."""
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        device = self.position.device
        ids = torch.tensor([e.ids or [0] for e in encoded], device=device)  # (N, T)
        padding = torch.tensor([e.attention_mask or [0] for e in encoded], device=device) == 0
        padding[:, 0] = False  # an empty sentence is one padding token
        hidden = self.text_tower(self.embed(ids) + self.position[:ids.shape[1]], src_key_padding_mask=padding)
        hidden = hidden.masked_fill(padding[..., None], 0.0).sum(1) / (~padding).sum(1, keepdim=True)
        return nn.functional.normalize(self.text_out(hidden), dim=-1)

    def encode_pose(self, rotmats: Tensor, joints: Tensor | None = None) -> Tensor:
        """Poses (..., 24, 3, 3) without heading, with their joints if at hand, to unit vectors (..., dim)."""
        joints = forward_kinematics(rotmats)[0] if joints is None else joints
        features = torch.cat([matrix_to_rot6d(rotmats).flatten(-2), joints.flatten(-2)], -1)  # (..., 24 * 9)
        return nn.functional.normalize(self.pose_tower(features), dim=-1)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config, weights and tokenizer to `folder`."""
        with whole_folder(folder) as partial:
            (partial / "config.json").write_text(json.dumps(self.config))
            self.tokenizer.save(str(partial / "tokenizer.json"))
            save_file(self.state_dict(), partial / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Retriever":
        """Read what `save_pretrained` wrote."""
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no retrieval model: python train_rft.py trains one")
        try:
            config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            if not 0 < config["layers"] < len(tensors) or not all(t.isfinite().all() for t in tensors.values()):
                raise ValueError("not the weights of this config.json, or NaN among them")
            with torch.device("meta"):  # sizes first: a broken file may ask for more than there is memory
                sizes = {name: t.shape for name, t in cls(tokenizer, **config).state_dict().items()}
            if sizes != {name: t.shape for name, t in tensors.items()}:
                raise ValueError("model.safetensors does not fit config.json and tokenizer.json")
            retriever = cls(tokenizer, **config)
            retriever.load_state_dict(tensors)
        except Exception as error:  # json, safetensors, tokenizers and torch each raise their own
            raise ValueError(f"{folder} cannot be read as a retrieval model, train it again: {error!r}") from error
        return retriever.eval().requires_grad_(False)


def load_judge(folder: str | Path, runs: Sequence[str | Path]) -> Retriever:
    """The retrieval model that judges. ValueError if it is, of whatever name, that in the reward/ of one of `runs`."""
    judge, rewards = Retriever.from_pretrained(folder), [Path(run) / "reward" for run in runs]
    rewards = [path for path in rewards if (path / "config.json").exists()]
    for path in rewards:
        theirs = Retriever.from_pretrained(path).state_dict()
        if all(name in theirs and torch.equal(x, theirs[name]) for name, x in judge.state_dict().items()):
            raise ValueError(f"--judge {folder} is the retrieval model that gave the rewards; it must not judge them")
    if not rewards:
        print(f"there is no reward/ in {' or '.join(map(str, runs))}: whether {folder} gave the rewards cannot be told")
    return judge


def train_retriever(rotmats: Tensor, tokenizer: Tokenizer, steps: int, seed: int, device: torch.device,
                    name: str = "", batch_size: int = 96, kept: Path | None = None) -> Retriever:
    """A retrieval model of poses (N, 24, 3, 3) and sentences written for them anew at each step: symmetric InfoNCE.

    One text in five is the answer to a question about the pose, so that short answers have a place on the sphere too.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    retriever = Retriever(tokenizer).to(device).train()
    rotmats = remove_heading(rotmats).to(device)
    joints = forward_kinematics(rotmats)[0]
    holds = captions.pose_holds(rotmats).cpu().numpy()
    optimizer = torch.optim.AdamW(retriever.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    state = TrainingState(kept, retriever, optimizer, schedule, rng)
    for bar in state.steps(steps, f"retrieval model: {name}"):
        rows = rng.choice(len(holds), batch_size, replace=len(holds) < batch_size)
        texts = [captions.questions(holds[i], rng)[1] if rng.random() < 0.2 else captions.describe(holds[i], rng)[0]
                 for i in rows]
        rows = torch.from_numpy(rows).to(device)
        similarity = retriever.encode_text(texts) @ retriever.encode_pose(rotmats[rows], joints[rows]).T  # (N, N)
        logits = similarity * retriever.log_scale.exp().clamp_max(100)
        target = torch.arange(batch_size, device=device)
        loss = (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
        loss.backward()
        state.update(loss.item())
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return retriever.eval().requires_grad_(False)


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
