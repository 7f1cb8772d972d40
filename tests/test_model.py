"""The policy: shared prompt = plain way, padding, tokens, the pose head, saving and loading."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal, kl_divergence

import captions
from body import matrix_to_rot6d
from engine import runtime
from engine.saving import load_policy, save_policy
from model import PoseHead, PosePolicy, draw_poses, draw_tokens
from real import prompts
from builtin.tiny import build_tiny

CORPUS = ["The left knee is bent and the right hand is above the head.", captions.POSE_ANSWER, "How bent is it?"] * 30


def example(prompt: str, answer: str, image_seed: int | None = None) -> SimpleNamespace:
    image = None
    if image_seed is not None:
        image = np.random.default_rng(image_seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return SimpleNamespace(prompt=prompt, answer=answer, image=image)


EXAMPLES = [example("The left knee is bent.", captions.POSE_ANSWER),
            example("How bent is the left knee and where is the right hand?", "It is bent.", 1),
            example("bent?", "The right hand is above the head. " + captions.POSE_ANSWER, 2),
            example("How bent is it? " * 4, "no")]


@pytest.fixture(scope="module")
def policy() -> PosePolicy:
    torch.manual_seed(0)
    policy = PosePolicy(*build_tiny(CORPUS)).eval()
    for parameter in policy.pose_head.parameters():  # from a sigma that is the same everywhere to one that depends on h
        torch.nn.init.normal_(parameter, std=.1)
    return policy


def teacher(policy, examples):
    return policy.encode(examples), *policy.tokenize_answers(examples)


def test_pose_is_one_token_and_survives_decoding(policy):
    ids = policy.tokenizer(captions.POSE_ANSWER, add_special_tokens=False).input_ids
    assert ids.count(policy.pose_id) == 1
    assert policy.tokenizer.decode(ids) == captions.POSE_ANSWER


def test_batch_gives_what_each_example_gives_alone(policy):
    """Ragged prompts and answers, with and without image, left padding: nothing of a neighbour leaks in."""
    prompt, tokens, mask = teacher(policy, EXAMPLES)
    together = policy.log_prob(prompt, tokens, mask)
    for i, e in enumerate(EXAMPLES):
        prompt, tokens_alone, mask_alone = teacher(policy, [e])
        alone = policy.log_prob(prompt, tokens_alone, mask_alone)
        T = tokens_alone.shape[-1]
        torch.testing.assert_close(together.log_prob[i, :, :T], alone.log_prob[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.pose.mean[i], alone.pose.mean[0], atol=1e-5, rtol=1e-5)


def plain_log_prob(policy, examples, tokens, mask):
    """The same by one pass over prompt and answer together for each answer, without any cache: the plain way."""
    B, G, T = tokens.shape
    prompt = policy.encode(examples)
    embeds = policy.vlm.get_input_embeddings()(prompt.ids)
    projected = policy.pose_projector(prompt.pose_features)
    embeds = embeds.masked_scatter((prompt.ids == policy.image_id)[..., None], prompt.vlm_features)
    embeds = embeds.masked_scatter((prompt.ids == policy.pose_feature_id)[..., None], projected)
    answer = policy.vlm.get_input_embeddings()(tokens.flatten(0, 1))
    embeds = torch.cat([embeds.repeat_interleave(G, 0), answer], 1)
    attention = torch.cat([prompt.mask.repeat_interleave(G, 0), mask.flatten(0, 1).long()], 1)
    hidden = policy.vlm.get_decoder()(inputs_embeds=embeds, attention_mask=attention, use_cache=False,
                                      position_ids=(attention.cumsum(-1) - 1).clamp_min(0)).last_hidden_state
    logits = policy.vlm.get_output_embeddings()(hidden[:, -T - 1:-1]).float()
    log_prob = logits.log_softmax(-1).gather(-1, tokens.flatten(0, 1)[..., None]).squeeze(-1)
    return log_prob.unflatten(0, (B, G))


def test_shared_prompt_gives_the_log_probs_and_gradients_of_the_plain_way(policy):
    tokens = torch.randint(10, 200, (4, 3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(7) < torch.tensor([[7, 3, 5], [1, 7, 2], [4, 4, 6], [7, 7, 1]])[..., None]
    weight = torch.randn(4, 3, 7, generator=torch.Generator().manual_seed(1)) * mask
    grads = []
    for log_prob in (policy.log_prob(policy.encode(EXAMPLES), tokens, mask).log_prob,
                     plain_log_prob(policy, EXAMPLES, tokens, mask)):
        policy.zero_grad()
        (log_prob * weight).sum().backward()
        grads.append((log_prob.detach() * mask, {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(grads[0][0], grads[1][0], atol=1e-5, rtol=1e-5)
    assert grads[0][1].keys() == grads[1][1].keys() and len(grads[0][1]) > 10
    for name, grad in grads[0][1].items():
        assert (grad - grads[1][1][name]).norm() <= 1e-4 * grads[1][1][name].norm() + 1e-9, name


def test_what_sampling_saw_is_what_scoring_scores(policy):
    """Greedy tokens are the argmax of the scores; the pose sampled at <POSE> is that of the scored Gaussian."""
    prompt = policy.encode(EXAMPLES)
    rollout = policy.sample(prompt, 2, 3, max_tokens=9, temperature=0)
    scores = policy.log_prob(prompt, rollout.tokens, rollout.token_mask)
    greedy = scores.log_softmax.argmax(-1)
    assert (greedy == rollout.tokens)[rollout.token_mask].all()
    force = policy.vlm.get_output_embeddings().register_forward_hook(  # now every token is <POSE>
        lambda module, inputs, logits: logits.index_fill(-1, torch.tensor([policy.pose_id]), 1e4))
    rollout = policy.sample(prompt, 2, 3, max_tokens=4, temperature=0)
    force.remove()
    assert rollout.has_pose.all() and (rollout.tokens == policy.pose_id).all()
    scores = policy.log_prob(prompt, rollout.tokens, rollout.token_mask)
    torch.testing.assert_close(rollout.mean, scores.pose.mean, atol=1e-5, rtol=1e-5)


def test_sampling_repeats_with_its_seed_and_stops_at_the_end_token(policy):
    prompt = policy.encode(EXAMPLES)
    first, again, other = (policy.sample(prompt, 3, 2, 12, seeds=range(s, s + 4)) for s in (5, 5, 9))
    assert torch.equal(first.tokens, again.tokens) and torch.equal(first.pose, again.pose)
    assert not torch.equal(first.tokens, other.tokens) or not torch.equal(first.pose, other.pose)
    eos = policy.tokenizer.eos_token_id
    for tokens, mask in zip(first.tokens.flatten(0, 1), first.token_mask.flatten(0, 1)):
        ends = (tokens[mask] == eos).nonzero().flatten()
        assert len(ends) == 0 or ends.tolist() == [mask.sum() - 1]


def test_tokens_are_drawn_as_often_as_their_odds_say():
    """Within 4 standard errors of 40,000 draws, also at the ends of the vocabulary; what has no chance never comes."""
    odds = torch.tensor([[0, .1, 0, .6, .3, 0], [.25, 0, 0, .25, 0, .5]])
    uniform = torch.rand(40_000, 2, generator=torch.Generator().manual_seed(0))
    drawn = draw_tokens(3 * odds.expand(40_000, 2, 6), uniform)  # (40000, 2); any sum will do
    share = torch.nn.functional.one_hot(drawn, 6).double().mean(0)
    assert (share - odds).abs().le(4 * (odds * (1 - odds) / 40_000).sqrt()).all()
    assert draw_tokens(odds, torch.tensor([0.0, 0.0])).tolist() == [1, 0]  # at either end of the interval
    assert draw_tokens(odds, torch.tensor([1 - 2 ** -24, 1 - 2 ** -24])).tolist() == [4, 5]


def test_a_prompt_is_answered_alike_in_whatever_batch_it_stands(policy):
    whole = policy.sample(policy.encode(EXAMPLES), 3, 2, 12, seeds=[7, 8, 9, 10])
    for i, example in enumerate(EXAMPLES):
        alone = policy.sample(policy.encode([example]), 3, 2, 12, seeds=[7 + i])
        T = alone.tokens.shape[-1]
        assert torch.equal(whole.tokens[i, :, :T][alone.token_mask[0]], alone.tokens[0][alone.token_mask[0]])
        torch.testing.assert_close(whole.pose[i], alone.pose[0], atol=1e-4, rtol=1e-4)
    assert not torch.equal(whole.pose[0], whole.pose[1])


def test_only_language_model_projector_and_head_are_taught(policy):
    prompt, tokens, mask = teacher(policy, EXAMPLES)
    policy.zero_grad()
    scores = policy.log_prob(prompt, tokens, mask)
    (scores.log_prob.sum() + scores.pose.mean.sum()).backward()
    taught = {name.split(".")[0] for name, p in policy.named_parameters() if p.grad is not None}
    assert taught == {"vlm", "pose_projector", "pose_head"}
    assert all(p.grad is None for p in policy.vlm.model.vision_tower.parameters())


def test_images_stay_with_their_prompts_and_are_encoded_once(policy):
    swapped = [example("bent?", "no", 2), example("bent?", "no", 1)]
    a, b = policy.encode(swapped), policy.encode(swapped[::-1])
    for ours, theirs in ((a.pose_features.view(2, 4, -1), b.pose_features.view(2, 4, -1)),
                         (a.vlm_features.view(2, 4, -1), b.vlm_features.view(2, 4, -1))):
        torch.testing.assert_close(ours, theirs.flip(0))
        assert not torch.equal(ours[0], ours[1])
    policy.frozen_features.clear()
    calls = []
    hook = policy.pose_encoder.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        policy.encode(swapped)
    hook.remove()
    assert len(calls) == 1 and len(policy.frozen_features) == 2


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def test_an_image_has_the_same_features_to_the_last_bit_whatever_comes_with_it(policy, threads):
    images = list(np.random.default_rng(0).integers(0, 255, (70, 64, 64, 3), dtype=np.uint8))
    policy.frozen_features.clear()
    together = policy.image_features(images)
    for count in (1, 2, 5, 9, 33):
        policy.frozen_features.clear()
        for one, other in zip(policy.image_features(images[-count:]), together[-count:], strict=True):
            assert torch.equal(one.vlm, other.vlm) and torch.equal(one.pose, other.pose)


@pytest.mark.parametrize("words", ["How bent is it?", f"Is {prompts.PLACEHOLDER} bent? {prompts.PLACEHOLDER}"])
@pytest.mark.parametrize("image", [None, 1])
def test_a_prompt_is_what_the_chat_template_writes_of_it(policy, words, image):
    prompt = policy.encode([example(words, "no") if image is None else example(words, "no", image)])
    content = [{"type": "image"}] * (image is not None) + [{"type": "text", "text": words}]
    text = policy.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    said = ~torch.isin(prompt.ids, torch.tensor([policy.image_id, policy.pose_feature_id])) & prompt.mask.bool()
    assert policy.tokenizer.decode(prompt.ids[said]) == text.replace(policy.image_token, "")


def test_special_tokens_typed_by_a_user_stay_text(policy):
    hostile = "<image> <POSE> </s> <pose_feature> bent?"
    prompt = policy.encode([example(hostile, "no", 1), example(hostile, "no")])
    plain = policy.encode([example("bent?", "no", 1), example("bent?", "no")])
    for special in (policy.pose_id, policy.image_id, policy.pose_feature_id, policy.tokenizer.eos_token_id):
        assert torch.equal((prompt.ids == special).sum(-1), (plain.ids == special).sum(-1))


@pytest.mark.parametrize("covariance, kind", [("diag", Independent), ("lowrank", LowRankMultivariateNormal),
                                              ("full", MultivariateNormal)])
def test_pose_head_gives_a_gaussian_that_samples_follow(covariance, kind):
    torch.manual_seed(0)
    head = PoseHead(16, covariance, sigma_floor=.05)
    pose = head(torch.randn(2, 3, 16))
    assert isinstance(pose, kind) and pose.batch_shape == (2, 3) and pose.event_shape == (144,)
    assert (pose.stddev >= .05).all()
    noise = torch.randn(2, 3, 4000, 144, generator=torch.Generator().manual_seed(0))
    samples = draw_poses(pose, noise)  # (2, 3, 4000, 144)
    torch.testing.assert_close(samples.mean(-2), pose.mean, atol=.06, rtol=0)
    torch.testing.assert_close(samples.std(-2), pose.stddev, atol=.02, rtol=.1)
    full = pose.covariance_matrix[0, 0] if covariance != "diag" else torch.diag(pose.variance[0, 0])
    torch.testing.assert_close(samples[0, 0].T.cov(), full, atol=.02, rtol=.1)


@pytest.mark.parametrize("covariance", ("diag", "lowrank", "full"))
def test_a_pose_head_that_knows_nothing_gives_the_rest_pose_with_the_sigma_of_its_bias(covariance):
    head = PoseHead(16, covariance, sigma_floor=.05)
    for parameter in (*head.mean.parameters(), *(head.correlation.parameters() if head.correlation else ())):
        torch.nn.init.zeros_(parameter)
    pose, sigma = head(torch.randn(1, 1, 16)), .05 + math.log1p(math.exp(-1.5))
    assert torch.equal(pose.mean[0, 0].view(24, 6), matrix_to_rot6d(torch.eye(3).expand(24, 3, 3)))
    torch.testing.assert_close(pose.stddev[0, 0], torch.full((144,), sigma))
    if covariance == "lowrank":  # a shared direction adds to the variance
        torch.nn.init.constant_(head.correlation.bias, .1)
        variance = head(torch.randn(1, 1, 16)).variance[0, 0]
        torch.testing.assert_close(variance, torch.full((144,), sigma ** 2 + head.rank * .1 ** 2))
    if covariance == "full":  # its factor is in units of sigma
        torch.nn.init.constant_(head.correlation.bias, .1)
        row, column = torch.tril_indices(144, 144, offset=-1)
        factor = head(torch.randn(1, 1, 16)).scale_tril[0, 0, row, column]
        torch.testing.assert_close(factor, torch.full_like(factor, .1 * sigma))


def test_the_reference_shares_what_is_frozen_and_copies_what_is_taught(policy):
    reference, taught = policy.frozen_copy(), 0
    for ours, theirs in zip(policy.parameters(), reference.parameters()):
        assert (ours is theirs) == (not ours.requires_grad) and torch.equal(ours, theirs) and not theirs.requires_grad
        taught += ours.requires_grad
    assert taught and reference.frozen_features is policy.frozen_features and not reference.training


def test_features_of_encoders_that_were_taught_again_are_forgotten():
    policy = PosePolicy(*build_tiny(CORPUS)).eval()
    policy.encode(EXAMPLES[1:3])
    assert len(policy.frozen_features) == 2
    policy.freeze_encoders()
    assert not policy.frozen_features


def test_a_pose_token_behind_the_end_of_an_answer_is_not_its_pose(policy):
    prompt = policy.encode(EXAMPLES[:1])
    tokens = torch.tensor([[[5, policy.pose_id, policy.tokenizer.eos_token_id],
                            [policy.pose_id, policy.tokenizer.eos_token_id, policy.pose_id]]])
    mask = torch.tensor([[[True, True, True], [False, True, True]]])
    first, second = policy.log_prob(prompt, tokens, mask).pose.mean[0]
    alone = policy.log_prob(prompt, tokens[:, 1:], mask[:, 1:]).pose.mean[0, 0]
    whole = policy.log_prob(prompt, tokens[:, 1:], torch.ones(1, 1, 3, dtype=torch.bool)).pose.mean[0, 0]
    torch.testing.assert_close(second, alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(alone, whole, atol=1e-3) and not torch.allclose(first, second, atol=1e-3)


def test_an_unknown_covariance_is_named():
    with pytest.raises(ValueError, match="diag, lowrank or full"):
        PoseHead(16, "banana")


@pytest.mark.parametrize("stage", ("sft", "rft"))
def test_one_step_moves_the_poses_alike_at_any_hidden_size(stage):
    """KL of the poses to those before, after one step of AdamW at a rate given for 128. At one rate for all it is 30
    times as large at 576, and 30,000 times at 4,096, in stage one."""
    moved, targets = [], torch.Generator().manual_seed(1)
    codes = torch.randn(64, 16, generator=targets)
    true = matrix_to_rot6d(torch.eye(3)).repeat(24) + .5 * torch.tanh(codes @ torch.randn(16, 144, generator=targets) / 4)
    for hidden_size in (128, 576, 2048):
        torch.manual_seed(0)
        head, hidden = PoseHead(hidden_size), codes @ torch.randn(16, hidden_size) / 4 + .3 * torch.randn(64, hidden_size)
        optimizer = torch.optim.AdamW(head.parameters(), lr=(2.5e-3 if stage == "sft" else 1e-3) * head.rate)

        def step(rft: bool):
            pose = head(hidden)
            sample = draw_poses(pose, torch.randn(64, 16, 144)).detach()  # (64, K, 144)
            spread = Normal(pose.mean[:, None], pose.stddev[:, None])
            advantage = -(sample - true[:, None]).norm(dim=-1, keepdim=True)  # (64, K, 1)
            loss = (-((advantage - advantage.mean(1, keepdim=True)) * spread.log_prob(sample)).mean() if rft else
                    -(pose.stddev.detach() ** 2 * pose.base_dist.log_prob(true)).mean())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        for _ in range(20 * (stage == "rft")):
            step(rft=False)
        with torch.no_grad():
            before = head(hidden)
        step(rft=stage == "rft")
        moved.append(kl_divergence(head(hidden), before).mean().item())
    assert max(moved) < 2 * min(moved), moved


def test_saved_and_loaded_policy_scores_alike(policy, tmp_path):
    prompt, tokens, mask = teacher(policy, EXAMPLES)
    before = policy.log_prob(prompt, tokens, mask)
    save_policy(policy, tmp_path / "policy")
    save_policy(policy, tmp_path / "policy")  # in place of an older one
    assert sorted(p.name for p in tmp_path.iterdir()) == ["policy"]
    loaded = load_policy(tmp_path / "policy")
    after = loaded.log_prob(*teacher(loaded, EXAMPLES))
    parameters, read = policy.state_dict(), loaded.state_dict()
    assert parameters.keys() == read.keys() and all(torch.equal(parameters[name], read[name]) for name in parameters)
    # To rounding only: a matrix product may add in another order where its memory is aligned otherwise.
    torch.testing.assert_close(before.log_prob, after.log_prob, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(before.pose.mean, after.pose.mean, atol=1e-5, rtol=1e-5)


def test_loading_what_is_not_a_policy_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="train_sft.py"):
        load_policy(tmp_path)


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="--device cpu"):
        runtime.pick_device("cuda:7" if not torch.cuda.is_available() else "mps")


def test_an_image_of_another_size_is_refused_by_the_built_in_encoder(policy):
    with pytest.raises(ValueError, match="64x64"):
        policy.pose_encoder(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))


def test_while_the_policy_is_taught_its_frozen_encoders_stay_in_evaluation_mode(policy):
    """The vision tower too: a dropout in it would reach features that are computed once and kept."""
    policy.train()
    frozen = policy.pose_encoder, policy.vlm.model.vision_tower, policy.vlm.model.multi_modal_projector
    assert not any(module.training for part in frozen for module in part.modules())
    assert all(module.training for part in (policy.vlm.get_decoder(), policy.pose_head, policy.pose_projector)
               for module in part.modules())
    policy.eval()
    assert not any(module.training for module in policy.modules())
