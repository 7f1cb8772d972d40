"""HyGRPO on a problem one can see, in seconds: `python toy.py` trains, prints rewards and draws toy.png.

The prompt q is a target in the plane. The answer is two words a, "left" or "right" and "down" or "up", and after them
a point p of D = 2 numbers, from a Gaussian that depends on prompt and words: pi(a, p | q) = pi(a | q) pi(p | q, a).
Words are rewarded for saying where the target lies, points for lying near it. There is no language model, no body and
no SFT. The rest is the method: the functions of hygrpo.py, in the seven steps of the loop in train_rft.py.
Shapes: B prompts, G answers each, K points an answer, T words an answer, W words in the vocabulary.
Read next: hygrpo.py, which holds advantages and loss.
"""

import copy
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

import hygrpo
from engine.runtime import run
from engine.settings import Count, SeedNumber, read_settings
from lab.toy_picture import draw

WORDS = ("left", "right", "down", "up")
B, T, W, D = 32, 2, len(WORDS), 2


@dataclass
class ToyConfig:
    steps: Count = field(default=120, metadata={"help": "steps of HyGRPO"})
    group_size: Count = field(default=4, metadata={"help": "answers a prompt (G)"})
    points: Count = field(default=16, metadata={"help": "points an answer (K)"})
    inner_epochs: Count = field(default=2, metadata={"help": "updates on the same answers; with 1 the ratio stays 1"})
    seed: SeedNumber = field(default=0, metadata={"help": "seed of the network, the targets and the answers"})


class Policy(nn.Module):
    """What model.py is for real: it samples answers to prompts, and says how likely given answers are."""
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(D, 64), nn.Tanh())
        self.words = nn.Linear(64, T * W)
        self.point = nn.Sequential(nn.Linear(64 + T * W, 64), nn.Tanh(), nn.Linear(64, 2 * D))

    def log_prob(self, prompt: Tensor, tokens: Tensor) -> SimpleNamespace:
        """prompt: (B, D). tokens: (B, G, T). Log-probabilities (B, G, T), and the Gaussian of each answer: (B, G)."""
        hidden = self.trunk(prompt)[:, None].expand(-1, tokens.shape[1], -1)  # (B, G, 64)
        log_softmax = self.words(hidden).unflatten(-1, (T, W)).log_softmax(-1)  # (B, G, T, W)
        said = nn.functional.one_hot(tokens, W).flatten(-2)  # (B, G, T W): the point comes after the words
        mean, raw = self.point(torch.cat([hidden, said], -1)).chunk(2, -1)  # (B, G, D) each
        pose = Independent(Normal(mean, nn.functional.softplus(raw) + 0.05), 1)  # sigma stays above 0.05
        log_prob = log_softmax.gather(-1, tokens[..., None])[..., 0]  # (B, G, T)
        return SimpleNamespace(log_prob=log_prob, log_softmax=log_softmax, pose=pose)

    @torch.no_grad()
    def sample(self, prompt: Tensor, G: int, K: int) -> SimpleNamespace:
        """G answers to each prompt, and K points after the words of each."""
        probs = self.log_prob(prompt, torch.zeros(len(prompt), G, T, dtype=torch.long)).log_softmax.exp()
        tokens = probs.flatten(0, 2).multinomial(1).view(len(prompt), G, T)
        pose = self.log_prob(prompt, tokens).pose.sample((K,)).movedim(0, -2)  # (B, G, K, D)
        always = torch.ones_like(tokens, dtype=torch.bool)  # all answers have T words and a point
        return SimpleNamespace(tokens=tokens, token_mask=always, pose=pose, has_pose=always[..., 0])


def score(prompt: Tensor, rollout: SimpleNamespace) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The rewards by name: of words (B, G), the share that is right; of points (B, G, K), minus the distance."""
    truth = (prompt > 0).long() + torch.tensor([0, 2])  # (B, T), numbers of WORDS
    return ({"words": (rollout.tokens == truth[:, None]).float().mean(-1)},
            {"nearness": -(rollout.pose - prompt[:, None, None]).norm(dim=-1)})


def train(config: ToyConfig, variant: str = "HyGRPO") -> tuple[Policy, Policy, list[dict]]:
    """The policy before and after, and a row of numbers a step. variant: what words and points learn from."""
    torch.manual_seed(config.seed)
    policy, rows = Policy(), []
    reference = copy.deepcopy(policy).requires_grad_(False)  # for real, the SFT policy
    optimizer = torch.optim.Adam(policy.parameters(), lr=2e-3)
    for step in range(config.steps):
        prompt = 2 * torch.rand(B, D) - 1  # 1. draw targets (B, D)
        rollout = policy.sample(prompt, config.group_size, config.points)  # 2. answer: (B, G, T), (B, G, K, D)
        words, points = score(prompt, rollout)  # 3. reward: names -> (B, G), names -> (B, G, K)
        F, Delta = hygrpo.advantages(words, points, rollout.has_pose, {"words": 1.0, "nearness": 1.0})  # 4. compare
        F, Delta = {"HyGRPO": (F, Delta), "F alone": (F, 0 * Delta), "Delta alone": (0 * F, Delta),
                    "F for both": (F, F[..., None].expand_as(Delta))}[variant]  # (B, G), (B, G, K)
        ref = reference.log_prob(prompt, rollout.tokens)  # 5. the reference scores the same answers
        for epoch in range(config.inner_epochs):
            new = policy.log_prob(prompt, rollout.tokens)  # 6. the policy scores them, anew for each update
            if epoch == 0:
                old = hygrpo.detached(new, rollout.pose)  # of the policy that sampled: the first ratio is 1
            loss, metrics = hygrpo.loss(new, *old, ref, rollout, F, Delta, clip_low=0.2, clip_high=0.28, beta_text=0.02,
                                        beta_pose=0.02, pose_ratio="joint")  # 7. eq. 6, negated, and an update
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        rows.append({"words": words["words"].mean().item(), "distance": -points["nearness"].mean().item(),
                     "sigma": new.pose.stddev.mean().item(), "pose_clip_high": metrics["pose_clip_high"].item()})
        if step % 40 == 0 or step == config.steps - 1:
            print(f"{variant:12s}step {step:3d}   " + "   ".join(f"{name} {x:.3f}" for name, x in rows[-1].items()))
    return reference, policy, rows


def main() -> None:
    config, = read_settings(__doc__, ToyConfig)
    runs = {variant: train(config, variant) for variant in ("HyGRPO", "F alone", "Delta alone", "F for both")}
    draw("toy.png", WORDS, runs)
    print("In toy.png: answers to four targets before and after, and curves of the four ways to teach.")


if __name__ == "__main__":
    run(main)
