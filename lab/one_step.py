"""One step of HyGRPO in numbers: what docs/one_step.md follows with a calculator. `python -m lab.one_step` prints it.

One prompt, G = 2 answers of T = 2 tokens, K = 2 poses an answer, and a second inner step, in which the clip bites. What
is computed comes from the functions of hygrpo.py; a line shows the same from the numbers that were printed before it,
rounded as they were. The policy is a table: a row of logits for each token, a mean for the poses of each answer. A pose
has two joints, D = 12; of the six numbers of a joint the first alone differs from the mean, so that it alone is shown.
"""

from types import SimpleNamespace

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

import hygrpo
from engine.runtime import run

WORDS = ("left", "right", "<POSE>")
PROBS = torch.tensor([[0.4, 0.4, 0.2], [0.1, 0.1, 0.8]])  # (T, W) of the first token and of the second
TOKENS = torch.tensor([[[0, 2], [1, 2]]])  # (B, G, T)
SIGMA, RATE, D = 0.5, 1.0, 12
SAMPLES = torch.tensor([[[[0.6, 0.2], [-0.2, 0.4]], [[0.4, -0.5], [-0.6, 0.1]]]])  # (B, G, K, 2): a number a joint
TRUTH, WORD_REWARD = torch.tensor([0.8, 0.4]), torch.tensor([[0.2, 0.8]])
WEIGHTS = {"words": 0.5, "nearness": 1.0}
SETTINGS = {"clip_low": 0.2, "clip_high": 0.28, "beta_text": 2.0, "beta_pose": 0.1}


def widened(numbers: Tensor) -> Tensor:
    """(..., 2), the first number of each joint, to whole poses (..., 12)."""
    return torch.nn.functional.pad(numbers[..., None], (0, 5)).flatten(-2)


def scores(logits: Tensor, mean: Tensor) -> SimpleNamespace:
    """What a policy says of the two answers. logits: (T, W). mean: (G, 2)."""
    log_softmax = logits.log_softmax(-1).expand(1, 2, -1, -1)  # (B, G, T, W)
    pose = Independent(Normal(widened(mean)[None], SIGMA), 1)  # (B, G), of D numbers
    return SimpleNamespace(log_prob=log_softmax.gather(-1, TOKENS[..., None])[..., 0], log_softmax=log_softmax,
                           pose=pose)


def inner_steps() -> SimpleNamespace:
    """Advantages, and of both inner steps what loss, ratios, KL and the update were."""
    always = torch.ones_like(TOKENS, dtype=torch.bool)
    rollout = SimpleNamespace(tokens=TOKENS, token_mask=always, pose=widened(SAMPLES), has_pose=always[..., 0])
    part = -(SAMPLES - TRUTH).abs()  # (B, G, K, 2)
    whole = part.mean(-1)  # (B, G, K)
    F, Delta = hygrpo.advantages({"words": WORD_REWARD}, {"nearness": whole}, rollout.has_pose, WEIGHTS,
                                 {"nearness": part})
    logits, mean, steps = PROBS.log(), torch.zeros(2, 2), []
    reference = scores(logits, mean)  # as at the start of RFT: the policy itself
    for epoch in range(2):
        logits, mean = logits.requires_grad_(), mean.requires_grad_()
        new = scores(logits, mean)
        if epoch == 0:
            old_log_prob, old_terms = hygrpo.detached(new, rollout.pose)
        loss, metrics = hygrpo.loss(new, old_log_prob, old_terms, reference, rollout, F, Delta, **SETTINGS)
        slopes = torch.autograd.grad(loss, (logits, mean))
        terms = hygrpo.gaussian_log_prob_terms(new.pose, rollout.pose.movedim(-2, 0)).movedim(0, -2)
        found = {"probs": logits.softmax(-1), "mean": mean, "loss": loss,
                 "text_ratio": (new.log_prob - old_log_prob)[0].exp(),
                 "pose_ratio": hygrpo.pose_log_ratio(terms, old_terms)[0].exp(),
                 "text_kl": hygrpo.categorical_kl(new.log_softmax, reference.log_softmax)[0, 0],
                 "pose_kl": kl_divergence(new.pose, reference.pose)[0]}
        steps.append(SimpleNamespace(**{name: x.detach() for name, x in found.items()}, slopes=slopes, metrics=metrics))
        logits, mean = (x.detach() - RATE * slope for x, slope in zip((logits, mean), slopes))
    return SimpleNamespace(part=part[0], whole=whole[0], F=F[0], Delta=Delta[0], steps=steps)


# ---------------------------------------------------------------- lines for a calculator

def n(number: Tensor | float) -> str:
    """A number as it is printed, four decimals at most; in brackets where it is negative."""
    text = f"{number:.4f}".rstrip("0").rstrip(".")
    text = "0" if text == "-0" else text
    return f"({text})" if text.startswith("-") else text


def line(name: str, formula: str, value: Tensor | float, note: str = "") -> str:
    return f"{name} = {formula} = {n(value).strip('()')}{note}"


def compared(name: str, rewards: Tensor, advantages: Tensor, labels: list[str]) -> list[str]:
    """The lines of one reward in one group: its mean, its spread, and each member's advantage."""
    mean, std, count = rewards.mean(), rewards.std(), len(rewards)
    squares = " + ".join(f"({n(r)} - {n(mean)})^2" for r in rewards)
    lines = [line(f"mean of {name}", f"({' + '.join(map(n, rewards))}) / {count}", mean),
             line(f"spread of {name}", f"sqrt(({squares}) / {count - 1})", std)]
    for i, label in enumerate(labels):
        others = [n(r) for j, r in enumerate(rewards) if j != i]
        others = others[0] if len(others) == 1 else f"({' + '.join(others)}) / {count - 1}"
        lines.append(line(f"A({name}), {label}", f"({n(rewards[i])} - {others}) / ({n(std)} + 0.0001)", advantages[i]))
    return lines


POSES = [(i, k) for i in range(2) for k in range(2)]
LABELS = [f"answer {i + 1}, pose {k + 1}" for i, k in POSES]


def rewards_text(made: SimpleNamespace) -> list[str]:
    lines = []
    for (i, k), label in zip(POSES, LABELS):
        parts = made.part[i, k]
        lines += [line(f"joint {j + 1} of {label}", f"-abs({n(SAMPLES[0, i, k, j])} - {n(TRUTH[j])})", parts[j])
                  for j in range(2)]
        lines.append(line(f"whole {label}", f"({n(parts[0])} + {n(parts[1])}) / 2", made.whole[i, k]))
    return lines


def F_text(made: SimpleNamespace) -> list[str]:
    always, answers, means = torch.ones(1, 2, dtype=torch.bool), ["answer 1", "answer 2"], made.whole.mean(-1)
    words, poses = (hygrpo.group_advantage(r, always)[0] for r in (WORD_REWARD, means[None]))
    return [*compared("words", WORD_REWARD[0], words, answers),
            *(line(f"poses of {answers[i]}", f"({n(made.whole[i, 0])} + {n(made.whole[i, 1])}) / 2", means[i])
              for i in range(2)),
            *compared("poses", means, poses, answers),
            *(line(f"F, {answers[i]}", f"{n(WEIGHTS['words'])} * {n(words[i])} + {n(WEIGHTS['nearness'])} * "
                   f"{n(poses[i])}", made.F[i]) for i in range(2))]


def Delta_text(made: SimpleNamespace) -> list[str]:
    return [text for j in range(2) for text in compared(
        f"joint {j + 1}", made.part[..., j].flatten(), made.Delta[..., j].flatten(), LABELS)]


def first_text(made: SimpleNamespace) -> list[str]:
    step, F = made.steps[0], made.F
    sums = made.Delta.sum(-1).mean(-1)  # (G,)
    inside = [" + ".join(map(n, made.Delta[i].flatten())) for i in range(2)]
    return [line("words", f"-({n(F[0])} + {n(F[1])}) / 2", step.metrics["loss_text"]),
            *(line(f"poses of answer {i + 1}", f"({inside[i]}) / 2", sums[i]) for i in range(2)),
            line("poses", f"-({n(sums[0])} + {n(sums[1])}) / 2 / {D}", step.metrics["loss_pose"]),
            line("loss", f"{n(step.metrics['loss_text'])} + {n(step.metrics['loss_pose'])}", step.loss)]


def update_text(made: SimpleNamespace) -> list[str]:
    (logits, _), F, after = made.steps[0].slopes, made.F, made.steps[1]
    lines = []
    for w, word in enumerate(WORDS):
        inner = " + ".join(f"{n(F[i])} * ({int(TOKENS[0, i, 0] == w)} - {n(PROBS[0, w])})" for i in range(2))
        lines.append(line(f"slope of {word}", f"({inner}) / 4", -logits[0, w]))
    odds = [PROBS[0, w] * (-RATE * logits[0, w]).exp() for w in range(3)]
    lines += [line(f"weight of {word}", f"{n(PROBS[0, w])} * exp({n(-logits[0, w])})", odds[w])
              for w, word in enumerate(WORDS)]
    lines += [line(f"p({word})", f"{n(odds[w])} / ({' + '.join(map(n, odds))})", after.probs[0, w])
              for w, word in enumerate(WORDS)]
    for i in range(2):
        for j in range(2):
            inner = " + ".join(f"{n(made.Delta[i, k, j])} * {n(SAMPLES[0, i, k, j])}" for k in range(2))
            lines.append(line(f"mean of joint {j + 1}, answer {i + 1}", f"({inner}) / {SIGMA}^2 / (2 * 2 * {D})",
                              after.mean[i, j]))
    return lines


def surrogate(name: str, ratio: Tensor, advantage: Tensor, value: Tensor, active: Tensor) -> str:
    bounded = ratio.clamp(1 - SETTINGS["clip_low"], 1 + SETTINGS["clip_high"])
    return line(name, f"min({n(ratio)} * {n(advantage)}, {n(bounded)} * {n(advantage)})", value,
                "   held by the clip" if active else "")


def second_text(made: SimpleNamespace) -> dict[str, list[str]]:
    """Ratios, what the clip makes of them, KL and loss of the second inner step."""
    step, limits = made.steps[1], (SETTINGS["clip_low"], SETTINGS["clip_high"])
    ratios = [line(f"r, answer {i + 1}, token {t + 1}", f"{n(step.probs[t, TOKENS[0, i, t]])} / "
                   f"{n(PROBS[t, TOKENS[0, i, t]])}", step.text_ratio[i, t]) for i in range(2) for t in range(2)]
    words, held = hygrpo.clipped(step.text_ratio.log(), made.F[:, None], *limits)  # (G, T)
    clips = [surrogate(f"answer {i + 1}, token {t + 1}", step.text_ratio[i, t], made.F[i], words[i, t], held[i, t])
             for i in range(2) for t in range(2)]
    poses, held = hygrpo.clipped(step.pose_ratio.log(), made.Delta, *limits)  # (G, K, 2)
    for (i, k), label in zip(POSES, LABELS):
        for j in range(2):
            x, mean = SAMPLES[0, i, k, j], step.mean[i, j]
            ratios.append(line(f"r, {label}, joint {j + 1}", f"exp(({n(x)}^2 - ({n(x)} - {n(mean)})^2) / "
                               f"(2 * {SIGMA}^2))", step.pose_ratio[i, k, j]))
            clips.append(surrogate(f"{label}, joint {j + 1}", step.pose_ratio[i, k, j], made.Delta[i, k, j],
                                   poses[i, k, j], held[i, k, j]))
    kl = [line("KL of token 1", " + ".join(f"{n(p)} * log({n(p)} / {n(q)})" for p, q in zip(step.probs[0], PROBS[0])),
               step.text_kl[0]), line("KL of token 2", "log(1)", step.text_kl[1]),
          *(line(f"KL of the poses of answer {i + 1}", f"({n(step.mean[i, 0])}^2 + {n(step.mean[i, 1])}^2) / (2 * "
                 f"{SIGMA}^2)", step.pose_kl[i]) for i in range(2))]
    beta_text, beta_pose, metrics = SETTINGS["beta_text"], SETTINGS["beta_pose"], step.metrics
    means = [words[i].mean() - beta_text * step.text_kl.mean() for i in range(2)]
    sums = [poses[i].sum(-1).mean() - beta_pose * step.pose_kl[i] for i in range(2)]
    loss = [*(line(f"words of answer {i + 1}", f"({n(words[i, 0])} - {n(beta_text)} * {n(step.text_kl[0])} + "
                   f"{n(words[i, 1])} - {n(beta_text)} * {n(step.text_kl[1])}) / 2", means[i]) for i in range(2)),
            line("words", f"-({n(means[0])} + {n(means[1])}) / 2", metrics["loss_text"]),
            *(line(f"poses of answer {i + 1}", f"({' + '.join(map(n, poses[i].flatten()))}) / 2 - {n(beta_pose)} * "
                   f"{n(step.pose_kl[i])}", sums[i]) for i in range(2)),
            line("poses", f"-({n(sums[0])} + {n(sums[1])}) / 2 / {D}", metrics["loss_pose"]),
            line("loss", f"{n(metrics['loss_text'])} + {n(metrics['loss_pose'])}", step.loss)]
    return {"ratios": ratios, "clip": clips, "KL": kl, "loss": loss}


def blocks() -> dict[str, str]:
    """The blocks of the page, in its order: title -> lines."""
    made = inner_steps()
    texts = {"rewards": rewards_text(made), "F": F_text(made), "Delta": Delta_text(made),
             "first inner step": first_text(made), "update": update_text(made), **second_text(made)}
    return {title: "\n".join(lines) for title, lines in texts.items()}


def main() -> None:
    for title, text in blocks().items():
        print(f"{title}\n\n{text}\n")


if __name__ == "__main__":
    run(main)
