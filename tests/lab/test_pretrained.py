"""A language model as the text half of a LLaVA: the same words come out, pictures go in, and it can be taught."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from body import remove_heading
from builtin.poses import sample_poses
from builtin.tiny import build_tiny
from engine.world import WorldConfig, build_policy
from lab import pretrained
from real.amass import load_amass
from real.formats import read_data
from train_sft import SFTConfig, sft_loss


def language_model(tied: bool) -> tuple:
    """A causal model and a tokenizer without an image token, as a GGUF file has them."""
    tokenizer = build_tiny(["user assistant The SMPL pose of this person is the left knee bent."] * 2)[1].tokenizer
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"})
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied)
    return LlamaForCausalLM(config).eval(), tokenizer


@pytest.mark.parametrize("tied", [True, False])
def test_the_text_half_says_what_the_language_model_said_and_can_be_taught(tied, tmp_path, monkeypatch):
    text, tokenizer = language_model(tied)
    ids = torch.tensor([tokenizer("The left knee is bent.").input_ids])
    said = text(ids).logits
    monkeypatch.setattr(pretrained, "fetch", lambda auto, folder, **options: (
        tokenizer if auto is AutoTokenizer else text))
    (tmp_path / "model.gguf").touch()
    monkeypatch.setattr("sys.argv", ["pretrained", "--gguf", str(tmp_path / "model.gguf"), "--out",
                                     str(tmp_path / "out"), "--train_poses", "6"])
    pretrained.main()
    policy = build_policy(WorldConfig(device="cpu"), SFTConfig(vlm=str(tmp_path / "out" / "model"), lora_rank=2), {})
    torch.testing.assert_close(policy.vlm(input_ids=ids).logits[..., :said.shape[-1]], said)
    assert policy.answer_frame.before.endswith("<|im_end|>\n<|im_start|>assistant\n")

    data = read_data([f"amass:{tmp_path / 'out' / 'poses'}"])
    examples = data.draw({"text2pose": 1.0}, 2, np.random.default_rng(0))
    sft_loss(policy.train(), examples)[0].backward()
    assert all(p.grad is not None for name, p in policy.named_parameters() if "lora_" in name)
    with pytest.raises(ValueError, match="holds a model already"):
        pretrained.main()


def test_the_poses_are_those_of_the_built_in_world(tmp_path):
    pretrained.write_poses(tmp_path, {"train": 9, "val": 2, "test": 2}, seed=3)
    poses = remove_heading(sample_poses(9, np.random.default_rng([3, 0])))
    torch.testing.assert_close(load_amass(tmp_path, "train"), poses, atol=1e-3, rtol=0)


def test_a_file_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pretrained", "--gguf", str(tmp_path / "no.gguf"), "--out", str(tmp_path / "out")])
    with pytest.raises(ValueError, match="no.gguf: no such file"):
        pretrained.main()
    assert not (tmp_path / "out").exists()
