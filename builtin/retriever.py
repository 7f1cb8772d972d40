"""The text-pose retrieval model: sentences and poses as unit vectors, near each other where they fit.

Two of them are trained, on poses that they do not share: one gives the reward `semantic` (Pose-RFT eq. 8) and reads the
answers of `text` (eq. 10), the other only judges (evaluate.py). Read next: rewards.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

import captions
from body import forward_kinematics, matrix_to_rot6d, mirror, remove_heading
from builtin.poses import sample_poses
from builtin.questions import draw_question
from builtin.sentences import describe
from engine.checkpoint import TrainingState, atomic_folder
from engine.muon import MuonAdamW
from engine.distributed import is_first, wait
from engine.runtime import own_seed
from model import PosePolicy
from real.amass import amass_files, read_amass, subjects
from engine.world import WorldConfig

RETRIEVERS = {"lr": 3e-3, "muon_lr": 0.02}  # rates


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
        """Sentences to unit vectors (N, dim). One of more than max_tokens is read in parts of as many, and the mean is
        taken over all of its tokens: nothing is cut off."""
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        parts = [(n, part) for n, e in enumerate(encoded) for part in (e, *e.overflowing)]  # M of N sentences
        device = self.position.device
        sentence = torch.tensor([n for n, _ in parts], device=device)  # (M,)
        ids = torch.tensor([part.ids or [0] for _, part in parts], device=device)  # (M, T)
        padding = torch.tensor([part.attention_mask or [0] for _, part in parts], device=device) == 0
        padding[:, 0] = False  # an empty sentence is one padding token
        hidden = self.text_tower(self.embed(ids) + self.position[:ids.shape[1]], src_key_padding_mask=padding)
        hidden = hidden.masked_fill(padding[..., None], 0.0).sum(1)  # (M, width)
        whole = lambda x: x.new_zeros(len(encoded), x.shape[1]).index_add(0, sentence, x)
        return nn.functional.normalize(self.text_out(whole(hidden) / whole((~padding).sum(1, keepdim=True))), dim=-1)

    def encode_pose(self, rotmats: Tensor, joints: Tensor | None = None) -> Tensor:
        """Poses (..., 24, 3, 3) without heading, with their joints if at hand, to unit vectors (..., dim)."""
        joints = forward_kinematics(rotmats)[0] if joints is None else joints
        features = torch.cat([matrix_to_rot6d(rotmats).flatten(-2), joints.flatten(-2)], -1)  # (..., 24 * 9)
        return nn.functional.normalize(self.pose_tower(features), dim=-1)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config, weights and tokenizer to `folder`."""
        with atomic_folder(folder) as partial:
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
            raise ValueError(f"{folder} cannot be read as a retrieval model: {error!r}; if it was copied, copy "
                             "it again, else move it elsewhere and train_rft.py makes it anew") from error
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
                    name: str = "", batch_size: int = 96, state_file: Path | None = None) -> Retriever:
    """A retrieval model of poses (N, 24, 3, 3) and sentences written for them anew at each step: symmetric InfoNCE.

    One text in five is the answer to a question about the pose, so that short answers have a place on the sphere too.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    retriever = Retriever(tokenizer).to(device).train()
    rotmats = remove_heading(rotmats).to(device)
    joints = forward_kinematics(rotmats)[0]
    holds = captions.pose_holds(rotmats).cpu().numpy()
    matrices = [p for tower in (retriever.text_tower, retriever.text_out, retriever.pose_tower)
                for p in tower.parameters() if p.dim() == 2]
    optimizer = MuonAdamW([{"params": list(retriever.parameters())}], matrices, muon_lr=RETRIEVERS["muon_lr"],
                          muon_decay=0.01, iterations=3, lr=RETRIEVERS["lr"], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    state = TrainingState(state_file, retriever, optimizer, schedule, rng)
    for bar in state.steps(steps, f"retrieval model: {name}"):
        rows = rng.choice(len(holds), batch_size, replace=len(holds) < batch_size)
        texts = [draw_question(holds[i], rng)[1] if rng.random() < 0.2 else describe(holds[i], rng)[0]
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


def retrieval_files(poses_dir: str | Path, rng: np.random.Generator) -> tuple[list[Path], list[Path]]:
    """The train files of `poses_dir` in two halves that share no subject. ValueError where there is one file alone."""
    groups, halves = subjects(amass_files(poses_dir, "train"), 2), ([], [])
    if len(groups) < 2:
        raise ValueError(f"{poses_dir}: two retrievers need at least two train files, found one")
    for i in rng.permutation(len(groups)):
        min(halves, key=len).extend(groups[i])  # to the one with fewer files
    return halves


def retrieval_poses(poses_dir: str | Path | None, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two sets of at most `count` poses (N, 24, 3, 3) that share none: for the retriever that rewards, for the judge.

    Made-up poses are drawn afresh. Of motion capture the train split's subjects (its files, where there is one subject)
    are dealt out, about as many files to each set, and mirrored too: neighbouring frames are nearly the same pose.
    """
    if poses_dir is None:
        return tuple(sample_poses(count, np.random.default_rng([seed, 3 + i])) for i in range(2))
    rng, made = np.random.default_rng([seed, 3]), []
    for half in retrieval_files(poses_dir, rng):
        rotmats = remove_heading(torch.cat([read_amass(path) for path in half]))
        rotmats = torch.cat([rotmats, mirror(rotmats)])
        made.append(rotmats[rng.permutation(len(rotmats))[:count]])
    return tuple(made)


def load_or_train_retrievers(policy: PosePolicy, world: WorldConfig, steps: int) -> dict[str, Retriever]:
    """The retrieval model that rewards (`reward`) and the one that only judges (`judge`), trained on poses that they do
    not share; read from `world.out` where they are there."""
    out, poses = Path(world.out), None
    for i, name in enumerate(("reward", "judge")):
        if is_first() and not (out / name).exists():
            poses = poses or retrieval_poses(world.poses, world.train_poses, world.seed)
            state_file = out / f"{name}.state"
            train_retriever(poses[i], policy.tokenizer.backend_tokenizer, steps, own_seed(world.seed, 5 + i),
                            policy.device, name, state_file=state_file).save_pretrained(out / name)
            state_file.unlink(missing_ok=True)
    wait()
    return {name: Retriever.from_pretrained(out / name).to(policy.device) for name in ("reward", "judge")}
