"""The shared prompt against the plain way of plain.py, for several model families: small random models of the real
classes with real processors, each answer as one full sequence through the whole VLM, without a cache."""

import pytest
import torch
from transformers import (Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil,
                          Idefics3Processor, LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration)

from engine.saving import load_policy, save_policy
from model import PosePolicy, Rollout
from lab.plain import PlainWay
from test_model import CORPUS, EXAMPLES
from builtin.tiny import build_tiny

FAMILIES = ("llava", "idefics3", "idefics3 in tiles", "smolvlm")
IDEFICS_TEMPLATE = ("{% for message in messages %}User:{% for part in message.content %}{% if part.type == 'image' %}"
                    "<image>{% else %}{{ part.text }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}Assistant:")


def build(family: str) -> PosePolicy:
    """A policy of 2 layers around a random model of the family; grouped key/value heads where the family has them."""
    torch.manual_seed(0)
    vlm, processor, pose_encoder = build_tiny(CORPUS)
    if family != "llava":
        tokenizer = processor.tokenizer
        tokenizer.add_special_tokens({"additional_special_tokens": [
            "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<row_1_col_1>", "<row_1_col_2>",
            "<row_2_col_1>", "<row_2_col_2>"]})
        processor = Idefics3Processor(  # SmolVLM's own needs a package for videos; for images both write the same
            Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32},
                                      do_image_splitting="tiles" in family),
            tokenizer, image_seq_len=4, chat_template=IDEFICS_TEMPLATE)
        config, model = ((SmolVLMConfig, SmolVLMForConditionalGeneration) if family == "smolvlm" else
                         (Idefics3Config, Idefics3ForConditionalGeneration))
        vlm = model(config(
            vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                           "num_attention_heads": 4, "image_size": 32, "patch_size": 8},
            text_config=LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id, initializer_range=.1),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2))
    policy = PosePolicy(vlm, processor, pose_encoder).eval()
    for parameter in policy.pose_head.parameters():  # a sigma that depends on the hidden state
        torch.nn.init.normal_(parameter, std=.1)
    return policy


@pytest.fixture(scope="module", params=FAMILIES)
def policy(request) -> PosePolicy:
    return build(request.param)


def answers(policy: PosePolicy) -> tuple[torch.Tensor, torch.Tensor]:
    """Ragged random answers (4, 3, 7) and their mask; some with <POSE> early, late or twice, some without."""
    tokens = torch.randint(20, 200, (4, 3, 7), generator=torch.Generator().manual_seed(0))
    tokens[0, 0, 0] = tokens[1, 0, 5] = tokens[2, 1, 3] = tokens[2, 1, 4] = tokens[3, 2, 0] = policy.pose_id
    return tokens, torch.arange(7) < torch.tensor([[7, 3, 5], [6, 7, 2], [4, 5, 6], [7, 7, 1]])[..., None]


def rows_alone(policy: PosePolicy, tokens: torch.Tensor, mask: torch.Tensor):
    """The plain way, each answer alone: yields (b, g, length, scores of one unpadded sequence)."""
    for b, example in enumerate(EXAMPLES):
        way = PlainWay(policy, [example], 1)
        way.prepare()
        for g in range(tokens.shape[1]):
            n = int(mask[b, g].sum())
            rollout = Rollout(tokens[b, g, :n][None, None], mask[b, g, :n][None, None], None, None, [])
            yield b, g, n, way.log_prob(policy, slice(None), rollout)


def test_log_probs_poses_and_gradients_are_those_of_each_answer_alone(policy):
    """Text and images mixed, ragged prompts and answers, left padding; log-probabilities to 1e-5, gradients to 1e-4."""
    tokens, mask = answers(policy)
    weight = torch.randn(mask.shape, generator=torch.Generator().manual_seed(1)) * mask
    has_pose = ((tokens == policy.pose_id) & mask).any(-1)
    prompt = policy.encode(EXAMPLES)
    assert (prompt.mask == 0).any() and 0 < sum(e.image is not None for e in EXAMPLES) < len(EXAMPLES)

    policy.zero_grad()
    shared = policy.log_prob(prompt, tokens, mask)
    ((shared.log_prob * weight).sum() + (shared.pose.mean.sum(-1) * has_pose).sum()).backward()
    ours = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}

    policy.zero_grad()
    for b, g, n, alone in rows_alone(policy, tokens, mask):
        torch.testing.assert_close(shared.log_prob[b, g, :n], alone.log_prob[0, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(shared.log_softmax[b, g, :n], alone.log_softmax[0, 0], atol=2e-5, rtol=1e-5)
        if has_pose[b, g]:
            torch.testing.assert_close(shared.pose.mean[b, g], alone.pose.mean[0, 0], atol=1e-5, rtol=1e-5)
        ((alone.log_prob[0, 0] * weight[b, g, :n]).sum() + alone.pose.mean.sum() * has_pose[b, g]).backward()
    plain = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    assert ours.keys() == plain.keys() and len(ours) > 10
    for name, grad in ours.items():
        assert (grad - plain[name]).norm() <= 1e-4 * plain[name].norm() + 1e-9, name


def test_a_padded_batch_of_the_plain_way_agrees_too(policy):
    """All rows at once through the VLM's own forward, left-padded, those with an image between those without."""
    tokens, mask = answers(policy)
    way = PlainWay(policy, EXAMPLES, 3)
    way.prepare()
    flat = Rollout(tokens.flatten(0, 1)[:, None], mask.flatten(0, 1)[:, None], None, None, [])
    with torch.no_grad():
        plain = way.log_prob(policy, slice(None), flat).log_prob.view(tokens.shape)
        shared = policy.log_prob(policy.encode(EXAMPLES), tokens, mask).log_prob
    torch.testing.assert_close(shared[mask], plain[mask], atol=1e-5, rtol=1e-5)


def test_greedy_sampling_on_the_cache_is_greedy_without_one(policy):
    """Token by token: the argmax of a full pass over prompt and answer so far, up to the end token."""
    rollout = policy.sample(policy.encode(EXAMPLES), 2, 1, max_tokens=8, temperature=0)
    assert torch.equal(rollout.tokens[:, 0], rollout.tokens[:, 1])
    assert len(rollout.tokens[:, 0].unique()) > 4  # not one token over and over
    for b, g, n, alone in rows_alone(policy, rollout.tokens, rollout.token_mask):
        assert torch.equal(alone.log_softmax[0, 0].argmax(-1), rollout.tokens[b, g, :n])


def test_eager_attention_gives_the_same(policy):
    """The mask that keeps a group's answers apart is understood by every attention that takes a mask."""
    tokens, mask = answers(policy)
    with torch.no_grad():
        sdpa = policy.log_prob(policy.encode(EXAMPLES), tokens, mask).log_prob
        policy.vlm.set_attn_implementation("eager")
        eager = policy.log_prob(policy.encode(EXAMPLES), tokens, mask).log_prob
        policy.vlm.set_attn_implementation("sdpa")
    torch.testing.assert_close(sdpa[mask], eager[mask], atol=1e-5, rtol=1e-5)


def test_answers_of_a_group_do_not_see_each_other(policy):
    """Another answer beside it, longer or in another place, changes nothing."""
    tokens, mask = answers(policy)
    prompt = policy.encode(EXAMPLES)
    with torch.no_grad():
        three = policy.log_prob(prompt, tokens, mask).log_prob
        turned = policy.log_prob(prompt, tokens.roll(1, 1), mask.roll(1, 1)).log_prob.roll(-1, 1)
        one = policy.log_prob(prompt, tokens[:, :1], mask[:, :1]).log_prob
    torch.testing.assert_close(three[mask], turned[mask], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(three[:, :1][mask[:, :1]], one[mask[:, :1]], atol=1e-5, rtol=1e-5)


def test_a_policy_of_any_family_is_saved_and_read(policy, tmp_path):
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    tokens, mask = answers(policy)
    assert type(loaded.vlm) is type(policy.vlm) and type(loaded.processor) is type(policy.processor)
    with torch.no_grad():
        before, after = (p.log_prob(p.encode(EXAMPLES), tokens, mask).log_prob for p in (policy, loaded))
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)
