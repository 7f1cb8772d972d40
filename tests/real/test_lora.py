"""LoRA: what it leaves alone, the reference that shares the model, merging, and both stages end to end."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import train_rft
from engine import saving
from engine.saving import load_policy, save_policy
from engine.world import WorldConfig, check_world
from model import PosePolicy
from real.hub import check_common_path, load_vlm
from real.lora import add_adapter, merge_adapter
from test_families import EXAMPLES, built, log_probs, one_of_each_step, save_checkpoint, world
from builtin.tiny import PoseEncoder
from train_sft import SFTConfig, train_sft


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    return {family: save_checkpoint(family, folder / family) for family in ("llava 1.5", "llava interleave")}


def taught(folder, steps=2, **more):
    """A policy after some steps of SFT, large enough to be seen everywhere."""
    policy = built(folder, **more)
    train_sft(policy, world()[0], SFTConfig(vlm=folder, sft_steps=steps, sft_batch=6, vlm_lr=.02), 0)
    return policy


def reinforce(policy, **more):
    split, retriever = world()
    train_rft.train_rft(policy, split, retriever, train_rft.RFTConfig(**dict(
        rft_steps=3, prompts=4, group_size=2, poses_per_answer=4, rft_lr=.01) | more), 0, lambda policy: {})


@pytest.fixture(params=["llava 1.5", "llava interleave"])  # whose output table is its own, and that of embeddings too
def folder(request, checkpoints):
    return checkpoints[request.param]


def test_both_stages_leave_every_weight_of_the_vlm_as_it_was(folder):
    """Bit for bit against a fresh load, the tables with all their rows included; only the new parameters move."""
    policy = taught(folder)
    reinforce(policy)
    fresh, found = load_vlm(folder)[0].state_dict(), 0
    for name, tensor in policy.vlm.get_base_model().state_dict().items():
        name = name.replace(".base_layer", "")
        if "lora_" not in name:
            assert torch.equal(tensor, fresh[name]), name
            found += 1
    assert found == len(fresh)
    assert policy.pose_rows.abs().min() > 0 and len(policy.pose_rows) == 2 - ("interleave" in folder)
    adapter = [p for name, p in policy.named_parameters() if "lora_B" in name]
    assert len(adapter) == 14 and all(p.abs().max() > 0 for p in adapter)  # 7 linear layers in each of 2 blocks
    assert not any("vision" in name or "projector" in name for name, _ in policy.named_parameters() if "lora_" in name)


def test_only_the_rows_of_pose_differ_in_what_is_read_and_written(folder):
    policy = taught(folder)
    tables, ids = load_vlm(folder)[0], torch.arange(policy.pose_id + 1)
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for ours, plain in ((policy._embed(ids), tables.get_input_embeddings()(ids)),
                            (policy._logits(hidden).T, tables.get_output_embeddings()(hidden).T)):
            differs = (ours != plain).any(-1).nonzero().flatten()
            assert differs.tolist() == [policy.pose_id]


def test_the_reference_stays_the_sft_policy_and_holds_no_second_model(folder, monkeypatch):
    policy = taught(folder)
    kept, twins = copy.deepcopy(policy), []
    frozen_copy = PosePolicy.frozen_copy
    monkeypatch.setattr(PosePolicy, "frozen_copy", lambda self: twins.append(frozen_copy(self)) or twins[-1])
    reinforce(policy)
    reference, = twins
    for now, then in zip(log_probs(reference), log_probs(kept)):
        torch.testing.assert_close(now, then, atol=1e-6, rtol=1e-6)
    assert (log_probs(policy)[0] - log_probs(reference)[0]).abs().max() > 1e-3  # it did go elsewhere
    ours = {p.data_ptr() for p in policy.parameters()}
    own = {name: p for name, p in reference.named_parameters() if p.data_ptr() not in ours}
    assert own and all("lora_" in name or name.startswith("pose_") for name in own)
    assert not any(p.requires_grad for p in reference.parameters())
    assert all(p.requires_grad for name, p in policy.named_parameters() if name in own)


def test_merged_is_unmerged(folder, tmp_path):
    """The same to 1e-5, by the command; and transformers alone find the adapter and <POSE> in what it writes."""
    policy = taught(folder)
    with torch.no_grad():
        policy.pose_rows.add_(.1)
    save_policy(policy, tmp_path / "policy")
    assert not (tmp_path / "policy" / "model.safetensors").exists()  # the VLM is not written again
    exported = load_policy(tmp_path / "policy")
    merge_adapter(exported)
    save_policy(exported, tmp_path / "merged")
    merged = load_policy(tmp_path / "merged")
    assert not merged.has_adapter and "vlm" not in json.loads((tmp_path / "merged" / "pose.json").read_text())
    for ours, theirs in zip(log_probs(policy), log_probs(merged)):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    vlm = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "merged").tokenizer
    prompt, tokens, mask = policy.encode(EXAMPLES[:1]), *policy.tokenize_answers(EXAMPLES[:1])
    with torch.no_grad():
        logits = vlm(input_ids=torch.cat([prompt.ids, tokens[:, 0]], 1)).logits[:, -tokens.shape[-1] - 1:-1]
        plain = logits.log_softmax(-1).gather(-1, tokens[:, 0, :, None])[..., 0]
        torch.testing.assert_close(plain, policy.log_prob(prompt, tokens, mask).log_prob[:, 0], atol=1e-5, rtol=1e-5)
    assert tokenizer.convert_tokens_to_ids("<POSE>") == policy.pose_id
    before = log_probs(merged)
    merge_adapter(merged)  # nothing is left to merge
    assert torch.equal(before[0], log_probs(merged)[0])


def test_a_policy_read_from_its_folder_learns_on(checkpoints, tmp_path):
    policy = taught(checkpoints["llava 1.5"])
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    teachable = lambda policy: {name for name, p in policy.named_parameters() if p.requires_grad}
    assert teachable(loaded) == teachable(policy)
    before = {name: p.clone() for name, p in loaded.named_parameters()}
    reinforce(loaded, rft_steps=1)
    changed = {name for name, p in loaded.named_parameters() if not torch.equal(p, before[name])}
    assert changed and changed <= teachable(policy)


def test_memory_that_lacks_is_no_fault_of_the_policy(checkpoints, tmp_path, monkeypatch):
    def too_large(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")
    save_policy(taught(checkpoints["llava 1.5"]), tmp_path / "policy")
    monkeypatch.setattr(saving, "load_vlm", too_large)
    with pytest.raises(torch.OutOfMemoryError):  # for which runtime.run has a sentence
        load_policy(tmp_path / "policy")


def test_a_policy_whose_vlm_was_moved_says_where_it_was_expected_and_how_to_point_to_it(checkpoints, tmp_path):
    base, moved = tmp_path / "base", tmp_path / "moved"
    copytree(checkpoints["llava 1.5"], base)
    save_policy(policy := taught(str(base)), tmp_path / "policy")
    base.rename(moved)
    with pytest.raises(ValueError) as error:
        load_policy(tmp_path / "policy")
    assert f"its vlm was expected at {base}: no such folder" in str(error.value) and "\n" not in str(error.value)
    assert f"write where it is now in place of {base} in {tmp_path / 'policy' / 'pose.json'}" in str(error.value)
    assert "anew" not in str(error.value)  # it is sound
    note = tmp_path / "policy" / "pose.json"  # what the sentence says to do
    note.write_text(note.read_text().replace(str(base), str(moved)))
    for ours, theirs in zip(log_probs(policy), log_probs(load_policy(tmp_path / "policy"))):
        torch.testing.assert_close(ours, theirs)


def test_half_precision_is_for_what_is_not_taught(checkpoints, tmp_path, monkeypatch):
    """As on a GPU: the VLM in bfloat16, all that is taught in float32; by a path that another folder would not find."""
    monkeypatch.chdir(Path(checkpoints["llava 1.5"]).parent)
    vlm, processor = load_vlm("llava 1.5", torch.bfloat16)
    check_common_path(PosePolicy(vlm, processor, PoseEncoder(tokens=0)))
    policy = PosePolicy(add_adapter(vlm, 4, 8.0), processor, PoseEncoder(), image_size=96)
    one_of_each_step(policy, SFTConfig(vlm="llava 1.5", sft_steps=1, sft_batch=4))
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
    save_policy(policy, tmp_path / "policy")
    monkeypatch.chdir(tmp_path)
    loaded = load_policy("policy")
    assert loaded.vlm.dtype == policy.vlm.dtype == torch.bfloat16
    for ours, theirs in zip(log_probs(policy), log_probs(loaded)):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_targets_and_rank_are_what_the_flags_say(checkpoints):
    policy = built(checkpoints["llava 1.5"], rank=3, lora_alpha=6.0, lora_targets=["q_proj", "v_proj"])
    adapted = [name for name, p in policy.named_parameters() if "lora_A" in name]
    assert len(adapted) == 4 and all("q_proj" in name or "v_proj" in name for name in adapted)
    layer = policy.vlm.get_decoder().layers[0].self_attn.q_proj
    assert layer.r["default"] == 3 and layer.scaling["default"] == 2.0
    with pytest.raises(ValueError, match="targets among down_proj, gate_proj, k_proj"):
        built(checkpoints["llava 1.5"], lora_targets=["qkv"])


def test_a_target_that_no_layer_is_called_is_refused_before_any_work(checkpoints, tmp_path):
    """Also beside one that is there."""
    config = SFTConfig(vlm=str(checkpoints["llava 1.5"]), lora_rank=2, lora_targets=["q_proj", "v_prj"])
    with pytest.raises(ValueError, match="--lora_targets v_prj: LoRA needs targets among down_proj"):
        check_world(WorldConfig(out=str(tmp_path / "runs"), picture=96), config)
    check_world(WorldConfig(out=str(tmp_path / "runs"), picture=96), replace(config, lora_targets=["q_proj", "v_proj"]))


def test_a_vlm_without_lora_is_trained_whole(checkpoints, tmp_path):
    policy = built(checkpoints["llava 1.5"], rank=0)
    before = {name: p.clone() for name, p in policy.named_parameters()}
    train_sft(policy, world()[0], SFTConfig(vlm="a folder", sft_steps=1, sft_batch=4), 0)
    changed = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert "vlm.lm_head.weight" in changed and not any("vision" in name for name in changed)
    save_policy(policy, tmp_path / "policy")
    for ours, theirs in zip(log_probs(policy), log_probs(load_policy(tmp_path / "policy"))):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
