# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # HyGRPO in seven steps: a tour
# A small vision-language model looks at a picture, describes the person in words and, at its token `<POSE>`, gives a
# Gaussian over 3D body poses. First it is taught a little by imitation. Then you follow one update of HyGRPO through
# its seven steps, numbered as in the [README](../README.md) and in [train_rft.py](../train_rft.py), and see the shape
# of every tensor. At the end the steps are repeated, and rewards rise. It takes about a minute on two CPU cores; no GPU
# is needed, and no model or data set is downloaded.
#
# **Where the code is not there yet**, as in Colab, run these lines in a cell above, with the address of this repository
# in the place of ADDRESS:
#
#     !git clone ADDRESS pose_rft
#     !pip install -r pose_rft/requirements.txt
#     %cd pose_rft
#
# This notebook is made from `docs/tour.py`. To change it, change that file, then make and run the notebook anew, with
# what requirements.txt names for it:
#
#     jupytext --to ipynb docs/tour.py && jupyter execute --inplace docs/tour.ipynb
# ## The letters
# | letter | here | what it counts |
# | --- | ---: | --- |
# | B | 3 | prompts in a step |
# | G | 4 | answers to each prompt; together they are a *group* |
# | K | 16 | poses drawn for each answer |
# | T | as it comes | tokens of the longest answer |
# | D | 144 | numbers of a pose: 24 joints with 6 numbers of rotation each |
# %%
import contextlib
import io
import sys
import textwrap
import warnings
from pathlib import Path

root = next((folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "hygrpo.py").exists()), None)
if root is None:
    raise FileNotFoundError("hygrpo.py is neither here nor in a folder above: get the code as the cell above says.")
sys.path.insert(0, str(root))
warnings.filterwarnings("ignore", "IProgress not found")  # no bar is shown

import matplotlib.pyplot as plt
import numpy as np
import torch

import hygrpo
import rewards
from body import JOINT_NAMES, forward_kinematics, rot6d_to_matrix
from builtin.poses import sample_poses
from builtin.retriever import train_retriever
from builtin.splits import make_split
from builtin.tiny import build_tiny, corpus
from builtin.tiny_encoders import train_encoders
from data import draw_batch, make_example
from engine.checkpoint import warm_up_and_decay
from engine.runtime import decide_threads
from lab.bodies import picture
from model import PosePolicy
from real.smpl import load_body
from train_sft import sft_loss

PICTURES, ENCODER_STEPS, RETRIEVER_STEPS, SFT_STEPS, RFT_STEPS = 256, 150, 40, 250, 30
B, G, K = 3, 4, 16
decide_threads()
torch.manual_seed(0)
rng, body = np.random.default_rng(0), load_body()


def show(letters, **tensors):
    """Print the shape of each tensor, letter by letter."""
    for name, tensor in tensors.items():
        print(f"{name:<16} ({letters}) = {tuple(tensor.shape)}")


def draw(rotmats):
    """Poses (n, 24, 3, 3) as the camera sees them, on a body of average shape: n pictures."""
    return list(picture(body, rotmats, torch.zeros(len(rotmats), 10), size=110, supersample=2))


def grid(rows, titles=(), width=0.8):
    """Show pictures in rows; None leaves a place empty. titles: of the columns."""
    figure, axes = plt.subplots(len(rows), len(rows[0]), squeeze=False, layout="constrained",
                                figsize=(width * len(rows[0]), width * len(rows)))
    for axis, pixels in zip(axes.flat, (pixels for row in rows for pixels in row)):
        axis.axis("off")
        if pixels is not None:
            axis.imshow(pixels)
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=7)
    plt.show()


# %% [markdown]
# ## Before the first step: a world, and a policy that knows a little
# The world consists of made-up poses. Each has a picture of 64 pixels, and words that are true of it: *statements*,
# such as "the left knee is bent", are measured on the skeleton, and some of those that hold become sentences. The left
# sleeve is yellow and the left trouser leg is light grey, so that left can be told from right.
# %%
split = make_split(sample_poses(PICTURES, rng), rng)
examples = [make_example(split, "image2text", i, rng) for i in range(B)]
grid([[e.image for e in examples], draw(torch.stack([e.rotmats for e in examples]))], width=1.2)
for i, e in enumerate(examples):
    print(f"{i + 1}. {e.prompt}\n   {textwrap.fill(e.answer, 110, subsequent_indent='   ')}\n")

# %% [markdown]
# Above are pictures and the poses behind them, then prompts and true answers. The task is `image2text`: words, then a
# pose. Both can be better or worse, so that the action is hybrid in full.
#
# The policy is a language model of one layer with two image encoders, which are taught first and then frozen. A second
# model, the *retrieval model*, puts sentences and poses on one sphere; it will say how near an answer's words are to
# the true ones. Then supervised fine-tuning (SFT) imitates the true answers: it makes their words likely and, under the
# Gaussian at `<POSE>`, their poses.
# %%
def update(optimizer, schedule, loss):
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    schedule.step()


policy = PosePolicy(*build_tiny(corpus(split, 200, rng), hidden_size=128, layers=1))
with contextlib.redirect_stderr(io.StringIO()):  # without progress bars
    train_encoders(policy, split, ENCODER_STEPS, seed=0, batch_size=32)
    retriever = train_retriever(split.rotmats, policy.tokenizer.backend_tokenizer, RETRIEVER_STEPS, seed=0,
                                device=policy.device, batch_size=48)
trained = [p for p in policy.parameters() if p.requires_grad]
print(f"{sum(p.numel() for p in policy.parameters()):,} numbers, {sum(p.numel() for p in trained):,} of them trained; "
      f"{len(policy.tokenizer):,} words")

optimizer = torch.optim.AdamW(trained, lr=2.5e-3, betas=(0.9, 0.98))
schedule = warm_up_and_decay(optimizer, SFT_STEPS)
policy.train()
for step in range(1, SFT_STEPS + 1):
    loss, parts = sft_loss(policy, draw_batch(split, {"image2text": 1}, 24, rng))
    update(optimizer, schedule, loss)
    if step == 1 or step % 50 == 0:
        print(f"step {step:3d}   words {parts['text']:.2f} nats a token   "
              f"mean pose off by {1000 * parts['joints']:.0f} mm a joint   sigma {parts['sigma']:.2f}")
policy.eval()
sft = policy.frozen_copy()  # the reference of step 5

# %% [markdown]
# ## 1. Encode
# A prompt is an image and words in the frame of a chat. The image enters twice: as features of the model's own vision
# tower, in the places of `<image>`, and as features of the *pose-aware encoder*, which was taught to tell poses, in the
# places of `<pose_feature>`. Shorter prompts are padded on the left, so that all end where their answers begin.
# %%
prompt = policy.encode(examples)
show("B, P", ids=prompt.ids)
show("4 an image, width", vlm_features=prompt.vlm_features, pose_features=prompt.pose_features)
print(policy.tokenizer.decode(prompt.ids[0]))

# %% [markdown]
# ## 2. Sample
# The policy draws G answers to each prompt, token by token. At the token `<POSE>` the hidden state gives a Gaussian, a
# mean and a standard deviation for each of the D numbers, and K poses are drawn from it. So an action is an answer a
# and a pose p: $\pi(a, p \mid q) = \pi(a \mid q)\ \mathcal{N}(p;\ \mu, \Sigma)$ for a prompt q. The prompt is run once,
# and its answers are continued side by side behind it; the K poses of an answer cost next to nothing.
#
# The D numbers become rotation matrices by Gram-Schmidt. In the picture, each row is one answer to the first prompt,
# with its mean pose and four of its K samples.
# %%
rollout = policy.sample(prompt, G, K, seeds=range(B))
show("B, G, T", tokens=rollout.tokens, token_mask=rollout.token_mask)
show("B, G", has_pose=rollout.has_pose)
show("B, G, K, D", pose=rollout.pose)
print("\nThe group of the first prompt:")
for g, answer in enumerate(rollout.answers[0]):
    print(textwrap.fill(f"{g + 1}. {answer}", 110, subsequent_indent="   "))

mean, samples = (rot6d_to_matrix(x.unflatten(-1, (24, 6))) for x in (rollout.mean, rollout.pose))
show("B, G, K, joints, 3, 3", samples=samples)
asked = [examples[0].image, *draw(examples[0].rotmats[None])] + [None] * G
grid([[asked[g], *(draw(torch.cat([mean[0, g, None], samples[0, g, :4]])) if rollout.has_pose[0, g] else [None] * 5)]
      for g in range(G)], ["asked, true", "mean", *[f"sample {k + 1}" for k in range(4)]])

# %% [markdown]
# ## 3. Reward
# Every reward is one function and one row of a table in [rewards.py](../rewards.py). This task has four:
# - `format`: 1 if the answer has the form that was asked for.
# - `text`: how near its words are to the true ones, as the retrieval model sees them.
# - `description`: what it says that holds in the picture, beyond what one could guess without looking.
# - `joint`: $1 / \lVert J - J^* \rVert$, over the places of all joints, in metres. For each joint there is a part of
#   it, `by_joint`, over those places that the joint moves.
# %%
words, poses, by_joint = rewards.score(examples, rollout, retriever, split.base_rates())
for letters, rewarded in (("B, G", words), ("B, G, K", poses), ("B, G, K, joints", {"by_joint": by_joint["joint"]})):
    show(letters, **{name: R for name, R in rewarded.items() if not R.isnan().all()})  # NaN: of other tasks
print("\nThe first prompt, answer by answer:")
for name in ("format", "text", "description"):
    print(f"{name:<16}", words[name][0].numpy().round(2))
print("joint, mean of K", poses["joint"][0].mean(-1).numpy().round(2))
joints, true_joints = (forward_kinematics(x)[0] for x in (samples, torch.stack([e.rotmats for e in examples])))
by_hand = 1 / (joints - true_joints[:, None, None]).flatten(-2).norm(dim=-1)
print(f"\njoint of prompt 1, answer 1, pose 1: {poses['joint'][0, 0, 0]:.4f}; by hand: {by_hand[0, 0, 0]:.4f}")

# %% [markdown]
# ## 4. Compare
# No reward says by itself what is good: it is compared with the others of its group. The *advantage* is `A(R) = (R -
# mean of the others) / spread`. There are two, since an action has two halves:
# - **F** praises words: by the rewards of words, and by the mean reward of the K poses that came after them.
# - **Delta** praises poses, joint by joint: by the part of the reward that the joint decides.
#
# A lucky sample of a pose is no merit of the words before it: K samples average it out of F.
# %%
weights = rewards.weights()
F, Delta = hygrpo.advantages(words, poses, rollout.has_pose, weights, by_joint)
show("B, G", F=F)
show("B, G, K, joints", Delta=Delta)
R = words["description"][0]  # (G,)
print("A(description), prompt 1:", hygrpo.group_advantage(R, ~R.isnan()).numpy().round(2))
print("by hand:                 ", ((R - (R.sum() - R) / (G - 1)) / (R.std() + 1e-4)).numpy().round(2))
pose = poses["joint"][0].flatten()  # (G K,): all poses of prompt 1 are compared with each other
whole = hygrpo.group_advantage(pose, rollout.has_pose[0].repeat_interleave(K)).view(G, K)
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained", width_ratios=(1, 3, 4.5))
for axis, table, title, down, across in ((axes[0], F, "F", "prompt (B)", "answer (G)"),
                                         (axes[1], whole, "prompt 1: A(joint)", "answer (G)", "pose (K)"),
                                         (axes[2], Delta[0, 0], "prompt 1, answer 1: Delta", "pose (K)", "joint")):
    limit = table.abs().max()
    image = axis.imshow(table.numpy(), cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    axis.set(title=title, xlabel=across, ylabel=down, yticks=range(len(table)), yticklabels=range(1, 1 + len(table)))
    names = JOINT_NAMES if across == "joint" else range(1, 1 + table.shape[1])
    axis.set_xticks(range(len(names)), names, rotation=90 if across == "joint" else 0, fontsize=8)
    figure.colorbar(image, ax=axis)
plt.show()

# %% [markdown]
# Blue is better than the rest of the group, red is worse. On the right, one pose can have a good arm and bad legs: each
# joint hears of itself. Ends of limbs move no joint, so that nothing can be said of them.
#
# ## 5. Reference
# The SFT policy, frozen, scores the same answers. The distance to it (KL) will keep the trained policy near.
# %%
with torch.no_grad():
    reference = sft.log_prob(prompt, rollout.tokens, rollout.token_mask)
show("B, G, T", log_prob=reference.log_prob)
show("B, G, T, words", log_softmax=reference.log_softmax)
show("B, G, D", mean=reference.pose.mean, sigma=reference.pose.stddev)

# %% [markdown]
# ## 6. Score
# The policy scores them by the same call, now with gradient. The *ratio* is how likely an action is now over how likely
# it was when it was sampled: one for each token, and one for the six numbers of each joint. The policy has not moved
# since, so every ratio is 1. What matters is the gradient.
# %%
def log_ratios(scores):
    """log r of tokens, (B, G, T), and of joints, (B, G, K, 24), without gradient."""
    log_prob, terms = hygrpo.detached(scores, rollout.pose)
    return log_prob - old[0], hygrpo.pose_log_ratio(terms, old[1])


new = policy.log_prob(prompt, rollout.tokens, rollout.token_mask)
old = hygrpo.detached(new, rollout.pose)
of_tokens, of_joints = log_ratios(new)
show("B, G, T", old_of_words=old[0], ratios_of_tokens=of_tokens)
show("B, G, K, D", old_of_poses=old[1])
show("B, G, K, joints", ratios_of_joints=of_joints)
print("all ratios are 1:", bool((of_tokens == 0).all() and (of_joints == 0).all()))

# %% [markdown]
# ## 7. Update
# The loss is minus min(r A, clip(r) A), with A = F for each token and A = Delta for each joint, plus both KL. At ratio
# 1 its value is 0, since what is better in a group and what is worse add up to nothing. Its gradient is not: it makes
# likelier what was better. As in a real run, the first steps are small ones.
# %%
settings = {"clip_low": 0.2, "clip_high": 0.28, "beta_text": 2.0, "beta_pose": 0.1}  # as in train_rft.py
optimizer = torch.optim.AdamW(trained, lr=5e-4, betas=(0.9, 0.98), weight_decay=0.0)
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.05, total_iters=8)
loss, metrics = hygrpo.loss(new, *old, reference, rollout, F, Delta, **settings)
update(optimizer, schedule, loss)
print(f"loss {loss.item():z.3f} = of words {metrics['loss_text']:z.3f} + of poses {metrics['loss_pose']:z.3f}")
with torch.no_grad():  # the same actions once more
    of_tokens, of_joints = log_ratios(policy.log_prob(prompt, rollout.tokens, rollout.token_mask))
of_token, counts = F[:, :, None].expand_as(of_tokens), rollout.has_pose[:, :, None, None] & (Delta != 0)
figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
for axis, advantage, log_ratio, what in (
        (axes[0], *(x[rollout.token_mask].numpy() for x in (of_token, of_tokens)), "tokens, by F"),
        (axes[1], *(x[counts].numpy() for x in (Delta, of_joints)), "joints, by Delta")):
    axis.plot(advantage, log_ratio, ".", markersize=3, alpha=0.3)
    axis.axhspan(np.log(0.8), np.log(1.28), color="tab:green", alpha=0.15)
    axis.set(title=f"{what}: correlation {np.corrcoef(advantage, log_ratio)[0, 1]:.2f}", xlabel="advantage",
             ylabel="log ratio after the update")
plt.show()
outside = lambda x: ((x < np.log(0.8)) | (x > np.log(1.28))).float().mean()
held = of_joints[rollout.has_pose]  # (V, K, 24): V answers hold a pose
print(f"outside the clip: {outside(held):.0%} of the ratios of joints, {outside(held.sum(-1)):.0%} of those of poses")

# %% [markdown]
# What was better has become likelier on the whole; not each action, since all pull at the same weights. Green is the
# range of the clip: were these actions used for a second update, one that has left it in the direction of its advantage
# would get no more gradient. The ratio of a whole pose (eq. 4 of the paper) leaves it much sooner than a joint's.
#
# ## All seven, again and again
# The loop of [train_rft.py](../train_rft.py) is these lines, and bookkeeping. The batch is larger now.
# %%
def step(examples, G, K, seeds):
    prompt = policy.encode(examples)  # 1
    rollout = policy.sample(prompt, G, K, seeds=seeds)  # 2
    words, poses, by_joint = rewards.score(examples, rollout, retriever, split.base_rates())  # 3
    F, Delta = hygrpo.advantages(words, poses, rollout.has_pose, weights, by_joint)  # 4
    with torch.no_grad():
        reference = sft.log_prob(prompt, rollout.tokens, rollout.token_mask)  # 5
    new = policy.log_prob(prompt, rollout.tokens, rollout.token_mask)  # 6
    loss, _ = hygrpo.loss(new, *hygrpo.detached(new, rollout.pose), reference, rollout, F, Delta, **settings)
    update(optimizer, schedule, loss)  # 7
    return {"joint": poses["joint"][rollout.has_pose].mean(), "description": words["description"].mean(),
            "format": words["format"].mean(), "sigma": new.pose.stddev[rollout.has_pose].mean().detach()}


rows = [step(draw_batch(split, {"image2text": 1}, 16, rng), 4, 32, rng.integers(2 ** 62, size=16))
        for _ in range(RFT_STEPS)]
figure, axes = plt.subplots(1, 4, figsize=(10, 2), layout="constrained")
for axis, name in zip(axes, rows[0]):
    axis.plot(range(1, 1 + RFT_STEPS), [row[name].item() for row in rows], ".-")
    axis.set(title=name, xlabel="step")
plt.show()

# %% [markdown]
# Prompts differ from step to step. A fair comparison asks both policies the same, by the same noise, of new pictures:
# %%
test = make_split(sample_poses(48, rng), rng)
asked = [make_example(test, "image2text", i, rng) for i in range(48)]
prompt, given = policy.encode(asked), {}
for name, answering in (("before", sft), ("after", policy)):
    given[name] = answering.sample(prompt, 4, 16, seeds=range(48))
    words, poses, _ = rewards.score(asked, given[name], retriever, split.base_rates())
    print(f"{name:<7} joint {poses['joint'][given[name].has_pose].mean():.3f}   "
          f"description {words['description'].mean():z.3f}   format {words['format'].mean():.3f}")
shown = (given["before"].has_pose & given["after"].has_pose)[:, 0].nonzero()[:6, 0]
grid([[asked[i].image for i in shown], draw(torch.stack([asked[i].rotmats for i in shown])),
      *(draw(rot6d_to_matrix(given[name].pose[shown, 0, 0].unflatten(-1, (24, 6)))) for name in given)])

# %% [markdown]
# From above: the picture, the true pose, a pose sampled before, and one sampled after, from the same noise. A policy
# that was taught for seconds stays a poor one; what a handful of steps changes is that samples stray less. A real run
# has a longer SFT, four tasks that take turns, and [results](results.md) of three seeds.
#
# **To try here:** `beta_pose` 0 and 100 steps: how far does sigma fall? K = 1 in the first part: what is left of Delta?
# `weights["description"] = 0`: which curves change?
#
# **Next:** [one step by hand](one_step.md), every number of a smaller step for a pocket calculator; then
# [hygrpo.py](../hygrpo.py), the algorithm itself.
