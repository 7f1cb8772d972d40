"""This project's step against other people's GRPO: TRL's GRPOTrainer, and the training pass of prefix_grouper.

    pip install trl==1.16.0 && python -m lab.benchmark --against trl [--json FILE]
    pip install prefix_grouper==0.0.1.post1 && python -m lab.benchmark --against prefix_grouper [--json FILE]
TRL repeats the prompt for each answer, in sampling and in training. prefix_grouper runs the prompt once and then, as
here, all answers of its group: Unsloth trains so, and verl can be told to. G (P + T) tokens a group become P + G T, and
their ratio is the bound by tokens; P are all tokens of the prompt, those of its image too. Both sides take the same
checkpoint, prompts and lengths, in turn in one process; medians are shown.
Read next: plain.py, which repeats the prompt as TRL does, without another library.
"""

import math
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from torch import Tensor
from transformers import AttentionInterface, AutoModelForImageTextToText, PrinterCallback, TrainerCallback
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from model import PosePolicy
from real.prompts import Prompt

TRIED = {"trl": "1.16.0", "prefix_grouper": "0.0.1.post1"}


def installed(name: str) -> str:
    """The version of a package that is compared with. ValueError where it is missing."""
    try:
        return version(name)
    except PackageNotFoundError:
        raise ValueError(f"--against {name} needs {name}, which is not installed: pip install {name}=={TRIED[name]} "
                         "(the version that was tried)") from None


def now() -> float:
    """Seconds: of the processor where one thread works, so that what other programs take does not count; else of the
    clock, for which an accelerator, which works behind our back, must have finished."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def bound(G: int, P: int, T: int) -> float:
    """How many times as many tokens go through the model where each answer has a prompt of its own."""
    return G * (P + T) / (P + G * T)


# ---------------------------------------------------------------- a step of TRL

class InTurn(TrainerCallback):
    """Times each step of a transformers Trainer, from its batch to its update, and behind it one of ours."""

    def __init__(self, ours: Callable[[], None]):
        self.ours, self.seconds = ours, defaultdict(list)

    def on_step_begin(self, args, state, control, **_) -> None:
        self.start = now()

    def on_step_end(self, args, state, control, **_) -> None:
        middle = now()
        self.seconds["trl"].append(middle - self.start)
        self.ours()
        self.seconds["ours"].append(now() - middle)


def time_trl(policy: PosePolicy, examples: Sequence, G: int, config, ours: Callable[[], None]) -> dict:
    """One row: seconds a step of GRPOTrainer on the VLM of `policy`, G answers to each example, and of `ours`.

    What the policy does not train is frozen there too. Without gradient checkpointing and in float32, both of which
    are not TRL's defaults; a reference by beta; no answer ends early; the first step of each warms up."""
    if policy.has_adapter:
        raise ValueError("--against trl trains a whole model: name one without an adapter by --vlm")
    from datasets import Dataset  # optional, and slow
    from trl import GRPOConfig, GRPOTrainer
    T, rows, lengths = config.new_tokens, len(examples) * G, set()
    at_once = math.gcd(config.micro_batch, rows)
    trained = {name for name, parameter in policy.vlm.named_parameters() if parameter.requires_grad}

    def reward(completions: list, completion_ids: list, **_) -> list[float]:
        lengths.update(map(len, completion_ids))
        return [float(len(completion[0]["content"])) for completion in completions]

    with TemporaryDirectory() as folder:
        for part in (policy.vlm, policy.processor):
            part.save_pretrained(folder)
        vlm = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        for name, parameter in vlm.named_parameters():
            parameter.requires_grad_(name in trained)
        race = InTurn(ours)
        never = [policy.image_id, policy.pose_feature_id, *policy.spare_ids.tolist()]
        prompts = Dataset.from_dict({
            "prompt": [[{"role": "user", "content": example.prompt}] for example in examples],
            "image": [Image.fromarray(example.image) for example in examples]})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # transformers' own, of settings that TRL makes
            trainer = GRPOTrainer(vlm, reward, train_dataset=prompts, callbacks=[race], args=GRPOConfig(
                output_dir=folder, max_steps=config.repeats + 1, num_generations=G, max_completion_length=T, beta=0.5,
                per_device_train_batch_size=at_once, gradient_accumulation_steps=rows // at_once,
                generation_kwargs={"min_new_tokens": T, "suppress_tokens": never}, learning_rate=1e-6, bf16=False,
                gradient_checkpointing=False, use_cpu=policy.device.type == "cpu", dataloader_pin_memory=False,
                report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True))
            trainer.remove_callback(PrinterCallback)
            trainer.train()
    return {"G": G, "answer_tokens": sorted(lengths)} | {name: timed[1:] for name, timed in race.seconds.items()}


# ---------------------------------------------------------------- the training pass of prefix_grouper

def grouped_attention(module, q: Tensor, k: Tensor, v: Tensor, attention_mask, *, prefix_grouper, suffix_mask: Tensor,
                      **options) -> tuple[Tensor, None]:
    """prefix_grouper's two attentions by transformers' own `sdpa`: that of the prompts, none of them padded, and that
    of each answer to its prompt and itself."""
    def sdpa(q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        of_answer = k.shape[2] > q.shape[2]
        options["is_causal"] = not of_answer
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, suffix_mask if of_answer else None, **options)[0]
    return prefix_grouper.forward(sdpa, q, k, v), None


def grouped_log_prob(policy: PosePolicy, prompt: Prompt, tokens: Tensor) -> Tensor:
    """What `policy.log_prob` says of the words (B, G, T) of answers that all have T tokens, by prefix_grouper."""
    from prefix_grouper import PrefixGrouper
    B, G, T = tokens.shape
    P, answers, ones = prompt.ids.shape[1], tokens.flatten(0, 1), torch.ones_like(tokens.flatten(0, 1))
    if not prompt.mask.all():
        raise ValueError("prompts of different lengths: these here need no padding")
    embeds = policy._embed(prompt.ids)
    embeds = embeds.masked_scatter((prompt.ids == policy.image_id)[..., None], prompt.vlm_features.to(embeds))
    features = policy.pose_projector(prompt.pose_features).to(embeds)
    embeds = embeds.masked_scatter((prompt.ids == policy.pose_feature_id)[..., None], features)
    grouper = PrefixGrouper.from_ungrouped_masks(prompt.mask, ones, G, device=policy.device)
    join = lambda prompts, answers: grouper.concat_input(prompts, prompt.mask, answers, ones)
    place = torch.arange(P + T, device=policy.device)
    decoder = policy.vlm.get_decoder()
    usual = decoder.config._attn_implementation
    decoder.config._attn_implementation = "prefix_grouper_sdpa"
    try:
        hidden = decoder(inputs_embeds=join(embeds, policy._embed(answers)), use_cache=False,
                         position_ids=join(place[:P].expand(B, P), place[P:].expand(B * G, T)), prefix_grouper=grouper,
                         suffix_mask=(place <= place[P:, None])[None, None]).last_hidden_state
    finally:
        decoder.config._attn_implementation = usual
    before = grouper.split_output(hidden, include_prefix_last=1)[2][:, :-1]  # predicts token t
    return policy._logits(before).log_softmax(-1).gather(-1, answers[..., None]).view(B, G, T)


def time_grouper(policy: PosePolicy, examples: Sequence, G: int, config) -> dict:
    """One row: seconds of log-probability and backward pass by each, and how far their numbers are apart, largest of
    the log-probabilities and, as a share of its size, of the gradient."""
    AttentionInterface.register("prefix_grouper_sdpa", grouped_attention)
    prompt = policy.encode(examples)
    rollout = policy.sample(prompt, G, 1, config.new_tokens)
    ways = {"ours": lambda: policy.log_prob(prompt, rollout.tokens, rollout.token_mask).log_prob,
            "prefix_grouper": lambda: grouped_log_prob(policy, prompt, rollout.tokens)}
    weights = torch.randn(rollout.tokens.shape, device=policy.device)
    row, told = {"G": G, "ours": [], "prefix_grouper": []}, {}
    for repeat in range(config.repeats + 1):  # the first warms up
        for name, way in ways.items():
            policy.zero_grad(set_to_none=True)
            start = now()
            log_prob = way()
            (log_prob * weights).sum().backward()
            row[name] += [now() - start] * (repeat > 0)
            grads = [p.grad.flatten() for p in policy.vlm.parameters() if p.grad is not None]
            told[name] = log_prob.detach(), torch.cat(grads)
    (ours, our_grad), (theirs, their_grad) = told["ours"], told["prefix_grouper"]
    return row | {"log_prob_apart": (ours - theirs).abs().max().item(),
                  "gradient_apart": ((our_grad - their_grad).norm() / our_grad.norm()).item()}


# ---------------------------------------------------------------- what is printed

def finish(row: dict, P: int, length: int, config) -> dict:
    """A row with its sizes, its medians' ratio, and the bound by tokens. length: all tokens of a prompt."""
    theirs, ours = (statistics.median(row[name]) for name in (config.against, "ours"))
    return row | {"P": P, "length": length, "ratio": theirs / ours, "bound": bound(row["G"], length, config.new_tokens)}


def columns(against: str) -> dict[str, Callable[[dict], str]]:
    """Of the table: how each cell is written from a row."""
    seconds = lambda times: f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
    shown = {"P": lambda r: f"{r['P']}", "all tokens of a prompt": lambda r: f"{r['length']}",
             "G": lambda r: f"{r['G']}", f"{against}, s": lambda r: seconds(r[against]),
             "here, s": lambda r: seconds(r["ours"]), "times as fast": lambda r: f"{r['ratio']:.1f}"}
    if against == "trl":
        return shown | {"bound by tokens": lambda r: f"{r['bound']:.1f}"}
    return shown | {"times as fast": lambda r: f"{r['ratio']:.2f}",
                    "log-probabilities apart": lambda r: f"{r['log_prob_apart']:.0e}",
                    "gradients apart": lambda r: f"{r['gradient_apart']:.0e}"}
