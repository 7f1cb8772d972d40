"""HyGRPO on a problem one can see, in seconds: `python toy.py` teaches 500 numbers, and draws toy.png.

A prompt q asks to put a hand to the left, to the right or to either side, down or up. The answer is a word a, "left" or
"right", and a point p in the plane, from a Gaussian that depends on both: pi(a, p | q) = pi(a | q) N(p; mu, sigma).
Words are rewarded for fitting the prompt, points for being near the corner on the side that was named. There is no VLM,
no body and no SFT. The rest is the method: hygrpo.py as it is, in the steps of train_rft.py. Read next: hygrpo.py.
Shapes: B prompts, G answers each, K points an answer, T = 1 word an answer, W = 2 words, D = 2 numbers of a point.
"""

import copy
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from types import SimpleNamespace

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal

import hygrpo

PROMPTS = torch.arange(6)  # a prompt is a number, 2 * side + height: left down, left up, right down, ... either up
B, G, T, W, D = 24, 4, 1, 2, 2


class Policy(nn.Module):
    """What model.py is for real: it samples answers to prompts, and says how likely given answers are."""
    def __init__(self):
        super().__init__()
        self.prompt, self.word = nn.Embedding(len(PROMPTS), 16), nn.Linear(16, T * W, bias=False)
        nn.init.zeros_(self.word.weight)  # before training both words are as likely
        self.point = nn.Sequential(nn.Linear(16 + T * W, 16), nn.Tanh(), nn.Linear(16, 2 * D))

    def log_prob(self, prompt: Tensor, tokens: Tensor) -> SimpleNamespace:
        """prompt: (B,). tokens: (B, G, T). Log-probabilities (B, G, T), and the Gaussian of each answer: (B, G)."""
        hidden = self.prompt(prompt)[:, None].expand(-1, tokens.shape[1], -1)  # (B, G, 16)
        words = Categorical(logits=self.word(hidden).unflatten(-1, (T, W)))  # (B, G, T)
        said = nn.functional.one_hot(tokens, W).flatten(-2)  # (B, G, T W): the point comes after the word
        mean, raw = self.point(torch.cat([hidden, said], -1)).chunk(2, -1)  # (B, G, D) each
        pose = Independent(Normal(mean, nn.functional.softplus(raw) + 0.05), 1)  # sigma stays above 0.05
        return SimpleNamespace(log_prob=words.log_prob(tokens), log_softmax=words.logits, pose=pose)

    def sample(self, prompt: Tensor, G: int, K: int) -> SimpleNamespace:
        """G answers to each prompt, and K points after the word of each."""
        tokens = Categorical(logits=self.log_prob(prompt, torch.zeros(len(prompt), G, T).long()).log_softmax).sample()
        pose = self.log_prob(prompt, tokens).pose.sample((K,)).movedim(0, -2)  # (B, G, K, D)
        always = torch.ones_like(tokens, dtype=torch.bool)  # all answers have T words and a point
        return SimpleNamespace(tokens=tokens, token_mask=always, pose=pose, has_pose=always[..., 0])


def score(prompt: Tensor, rollout: SimpleNamespace) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The rewards by name: of words (B, G), 1 where they fit; of points (B, G, K), minus the distance to the corner."""
    side, height, said = prompt[:, None] // 2, prompt[:, None] % 2, rollout.tokens[..., 0]
    corner = 2.0 * torch.stack([said, height.expand_as(said)], -1) - 1  # (B, G, D) of -1 and 1
    return {"fits": ((said == side) | (side == 2)).float()}, {"near": -(rollout.pose - corner[:, :, None]).norm(dim=-1)}


def train(flags: Namespace) -> tuple[Policy, Policy, list[dict]]:
    """The policy before and after, and a row of numbers a step."""
    torch.manual_seed(flags.seed)
    policy, rows = Policy(), []
    reference = copy.deepcopy(policy).requires_grad_(False)  # for real, the SFT policy
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)
    for step in range(1, flags.steps + 1):
        prompt = torch.randint(len(PROMPTS), (B,))  # 1. draw prompts
        rollout = policy.sample(prompt, G, flags.poses)  # 2. answer: words (B, G, T), points (B, G, K, D)
        words, points = score(prompt, rollout)  # 3. reward: names -> (B, G), names -> (B, G, K)
        F, Delta = hygrpo.advantages(words, points, rollout.has_pose, {"fits": 1, "near": 1}, normalize="none")
        F, Delta = F * (not flags.no_words), Delta * (not flags.no_poses)  # 4. compare: (B, G), (B, G, K)
        ref = reference.log_prob(prompt, rollout.tokens)  # 5. the reference scores the same answers
        for epoch in range(flags.epochs):
            new = policy.log_prob(prompt, rollout.tokens)  # 6. the policy scores them, anew for each update
            old = hygrpo.detached(new, rollout.pose) if epoch == 0 else old  # of the policy that sampled
            loss, seen = hygrpo.loss(new, *old, ref, rollout, F, Delta, clip_low=0.2, clip_high=0.28,
                                     beta_text=flags.beta, beta_pose=flags.beta, pose_ratio=flags.ratio)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()  # 7. update by eq. 6
        rows.append({"words fit": words["fits"].mean(), "distance": -points["near"].mean(),
                     "entropy": seen["text_entropy"], "sigma": new.pose.stddev.mean(), "KL words": seen["text_kl"],
                     "KL points": seen["pose_kl"], "clipped": seen["pose_clip_low"] + seen["pose_clip_high"]})
        if step == 1 or step % 25 == 0:
            print(f"step {step:3d}   " + "   ".join(f"{name} {x:z.3f}" for name, x in rows[-1].items()))
    return reference, policy.requires_grad_(False), rows


def draw(before: Policy, after: Policy) -> None:
    """toy.png: the Gaussian of each prompt and word, out to one sigma; the likelier the word, the darker."""
    figure = Figure(figsize=(13, 6.8), layout="constrained")
    for axis, policy, title in zip(figure.subplots(1, 2), (before, after), ("before", "after")):
        answers = policy.log_prob(PROMPTS, torch.arange(W).expand(len(PROMPTS), W)[..., None])  # (6, W): both words
        odds, mean, size = answers.log_prob[..., 0].exp(), answers.pose.mean, 2 * answers.pose.stddev
        for i, side in enumerate(("left", "right", "either side")):
            for q, a in torch.cartesian_prod(PROMPTS[2 * i:2 * i + 2], torch.arange(W)):
                axis.add_patch(Ellipse(mean[q, a], *size[q, a], color=f"C{i}", alpha=0.6 * odds[q, a].item()))
            axis.plot([], [], f"C{i}o", label=f"{side}: {odds[2 * i, 0]:.0%} (down), {odds[2 * i + 1, 0]:.0%} (up)")
        axis.plot([-1, -1, 1, 1], [-1, 1, -1, 1], "k*", markersize=15)
        axis.set(xlim=(-2, 2), ylim=(-2, 2.6), aspect="equal", title=title)
        axis.legend(loc="upper center", title="asked for: how often it says left")
    figure.savefig("toy.png", dpi=80)


def main() -> None:
    torch.set_num_threads(torch.get_num_threads())  # else MKL chooses them anew for each product, and rounds by it
    parser = ArgumentParser("toy.py", "toy.py [flags]", __doc__[:100], formatter_class=ArgumentDefaultsHelpFormatter)
    for name, default, about in (
            ("steps", 200, "steps of HyGRPO"), ("poses", 16, "points an answer (K)"), ("seed", 0, "of all chance"),
            ("beta", 0.1, "weight of the KL"), ("epochs", 1, "updates on the same answers; with 1 the ratio stays 1")):
        parser.add_argument(f"--{name}", type=type(default), default=default, help=about)
    parser.add_argument("--ratio", choices=("mean", "joint"), default="mean", help="of a point; inert with one epoch")
    parser.add_argument("--no_words", action="store_true", help="F = 0: the words are not taught")
    parser.add_argument("--no_poses", action="store_true", help="Delta = 0: the points are not taught")
    flags = parser.parse_args()
    if not (min(flags.steps, flags.poses, flags.epochs) > 0 <= flags.beta < 1e6 and 0 <= flags.seed < 2 ** 62):
        parser.error("--steps, --poses, --epochs: 1 or more; --beta: 0 to below 1e6; --seed: 0 to below 2 ** 62")
    draw(*train(flags)[:2])


if __name__ == "__main__":
    main()
