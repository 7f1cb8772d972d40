"""VLMs of many families from folders in the hub's layout: small random ones of the real classes, real processors."""

import json
from functools import cache
from importlib.util import find_spec
from shutil import copytree
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import (AutoModelForImageTextToText, CLIPImageProcessorPil, CLIPVisionConfig, Idefics3Config,
                          Idefics3ImageProcessorPil, Idefics3Processor, LlamaConfig, LlavaConfig, LlavaOnevisionConfig,
                          LlavaProcessor, Qwen2_5_VLConfig, Qwen2Config, Qwen3VLConfig, SiglipVisionConfig,
                          SmolVLMConfig)

from engine import runtime
import train_rft
from builtin.splits import make_split
from engine.saving import load_policy, save_policy
from engine.world import keep_features
from lab import floors
from lab.metrics import eval_examples, respond
from model import PosePolicy
from builtin.poses import sample_poses
from real import prompts
from real.hub import check_common_path, load_vlm, served
from real.lora import merge_adapter
from builtin.retriever import Retriever
from test_model import CORPUS, EXAMPLES
from test_shared_prefix import IDEFICS_TEMPLATE
from builtin.tiny import PoseEncoder, build_tiny
from train_sft import SFTConfig, WorldConfig, build_policy, check_world, load_world, train_sft

VIDEO = find_spec("torchvision") is not None  # what some processors insist on, for videos that nobody shows them
QWEN_TEMPLATE = ("{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
                 "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}"
                 "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n")
ONEVISION_TEMPLATE = QWEN_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
QWEN_WORDS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
IDEFICS_WORDS = ["<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *(
    f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2))]


def text(tokenizer, kind=LlamaConfig, **more):
    return kind(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id, initializer_range=.1, **more)


SIGHT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "image_size": 32, "patch_size": 8}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}


def llava(tokenizer):
    begin = tokenizer.bos_token, tokenizer.bos_token_id  # the chat template leaves it to the tokenizer, as LLaVA's does
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    config = LlavaConfig(vision_config=CLIPVisionConfig(**SIGHT), text_config=text(tokenizer),
                         image_token_index=tokenizer.image_token_id, image_seq_length=16, vision_feature_layer=-2)
    image = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return config, LlavaProcessor(image, tokenizer, 8, "default", num_additional_image_tokens=1)


def llava_interleave(tokenizer):
    config = LlavaConfig(vision_config=SiglipVisionConfig(**SIGHT),
                         text_config=text(tokenizer, Qwen2Config, tie_word_embeddings=True),
                         image_token_index=tokenizer.image_token_id, image_seq_length=16, vision_feature_layer=-1,
                         vision_feature_select_strategy="full", tie_word_embeddings=True)
    image = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    return config, LlavaProcessor(image, tokenizer, 8, "full")


def llava_onevision(tokenizer):
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**SIGHT), text_config=text(tokenizer, Qwen2Config, tie_word_embeddings=True),
        image_token_index=tokenizer.image_token_id, video_token_index=1, vision_feature_layer=-1,
        image_grid_pinpoints=[[32, 32], [32, 64], [64, 32], [64, 64]], tie_word_embeddings=True)
    image = transformers.LlavaOnevisionImageProcessorPil(size={"height": 32, "width": 32},
                                                         image_grid_pinpoints=config.image_grid_pinpoints)
    return config, transformers.LlavaOnevisionProcessor(
        image, tokenizer, transformers.LlavaOnevisionVideoProcessor() if VIDEO else None, num_image_tokens=16,
        vision_feature_select_strategy="full")


def idefics(tokenizer, kind=Idefics3Config, tiles=False):
    config = kind(vision_config=SIGHT, text_config=text(tokenizer), scale_factor=2, tie_word_embeddings=False,
                  image_token_id=tokenizer.image_token_id)
    image = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32},
                                      do_image_splitting=tiles)
    return config, Idefics3Processor(image, tokenizer, image_seq_len=4)


def smolvlm(tokenizer):
    config = idefics(tokenizer, SmolVLMConfig)[0]
    image = transformers.SmolVLMImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return config, transformers.SmolVLMProcessor(
        image, tokenizer, transformers.SmolVLMVideoProcessor() if VIDEO else None, image_seq_len=4)


def qwen(tokenizer, kind=Qwen2_5_VLConfig):
    words = {name: tokenizer.convert_tokens_to_ids(f"<|{name.removesuffix('_token_id')}|>") for name in (
        "vision_start_token_id", "vision_end_token_id")}
    words |= {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")}
    sight = {"hidden_size": 32, "intermediate_size": 48, "depth": 2, "num_heads": 2, "patch_size": 8,
             "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 64}
    sight |= ({"window_size": 32, "fullatt_block_indexes": [1]} if kind is Qwen2_5_VLConfig else
              {"deepstack_visual_indexes": [0], "num_position_embeddings": 16})
    config = kind(vision_config=sight, text_config=text(tokenizer, dict, rope_parameters=ROPE), **words)
    image = transformers.Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, temporal_patch_size=2,
                                                  size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64})
    processor = transformers.Qwen2_5_VLProcessor if kind is Qwen2_5_VLConfig else transformers.Qwen3VLProcessor
    video = transformers.Qwen2VLVideoProcessor if kind is Qwen2_5_VLConfig else transformers.Qwen3VLVideoProcessor
    return config, processor(image, tokenizer, video() if VIDEO else None)


# name: how it is made, its chat template, words of its tokenizer, its image token, whether it needs torchvision
FAMILIES = {
    "llava 1.5": (llava, None, [], "<image>", False),
    "llava interleave": (llava_interleave, ONEVISION_TEMPLATE, QWEN_WORDS[:2], "<image>", False),
    "idefics3": (idefics, IDEFICS_TEMPLATE, IDEFICS_WORDS, "<image>", False),
    "idefics3 in tiles": (lambda t: idefics(t, tiles=True), IDEFICS_TEMPLATE, IDEFICS_WORDS, "<image>", False),
    "smolvlm as idefics3": (lambda t: idefics(t, SmolVLMConfig), IDEFICS_TEMPLATE, IDEFICS_WORDS, "<image>", False),
    "smolvlm": (smolvlm, IDEFICS_TEMPLATE, IDEFICS_WORDS, "<image>", True),
    "llava onevision": (llava_onevision, ONEVISION_TEMPLATE, QWEN_WORDS[:2], "<image>", True),
    "qwen2.5-vl": (qwen, QWEN_TEMPLATE, QWEN_WORDS, "<|image_pad|>", True),
    "qwen3-vl": (lambda t: qwen(t, Qwen3VLConfig), QWEN_TEMPLATE, QWEN_WORDS, "<|image_pad|>", True)}
SERVED = [name for name, family in FAMILIES.items() if name != "qwen3-vl" and (VIDEO or not family[-1])]


def save_checkpoint(family, folder):
    """A random checkpoint of the family in `folder`, as the hub holds them: no <POSE> in it."""
    make, template, words, image_token, _ = FAMILIES[family]
    torch.manual_seed(0)
    processor = build_tiny(CORPUS)[1]
    tokenizer, template = processor.tokenizer, template or processor.chat_template
    tokenizer.add_special_tokens({"additional_special_tokens": words})
    tokenizer.image_token, tokenizer.image_token_id = image_token, tokenizer.convert_tokens_to_ids(image_token)
    config, processor = make(tokenizer)
    processor.chat_template = tokenizer.chat_template = template
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return cache(lambda family: save_checkpoint(family, tmp_path_factory.mktemp("hub") / family.replace(" ", "-")))


@cache
def world():
    """Poses with pictures of 96 pixels, and a retriever that was taught nothing."""
    rng = np.random.default_rng(0)
    return make_split(sample_poses(12, rng), rng, 96), Retriever(build_tiny(CORPUS)[1].tokenizer.backend_tokenizer)


def built(folder, rank=4, **more):
    config = SFTConfig(vlm=folder, lora_rank=rank, **more)
    return build_policy(WorldConfig(device="cpu", picture=96), config, world()[0])


def one_of_each_step(policy, config):
    """One step of SFT and one of HyGRPO with a group of answers behind one prompt."""
    split, retriever = world()
    train_sft(policy, split, config, 0)
    return train_rft.train_rft(policy, split, retriever, train_rft.RFTConfig(
        rft_steps=1, prompts=3, group_size=2, poses_per_answer=2), 0, lambda policy: {})


def log_probs(policy, examples=EXAMPLES):
    with torch.no_grad():
        scores = policy.log_prob(policy.encode(examples), *policy.tokenize_answers(examples))
    return scores.log_prob, scores.pose.mean


@pytest.mark.parametrize("family", SERVED)
def test_a_family_is_loaded_taught_saved_and_read(family, checkpoint, tmp_path):
    policy = built(checkpoint(family))
    before = {name: p.clone() for name, p in policy.named_parameters()}
    rows = one_of_each_step(policy, SFTConfig(vlm=checkpoint(family), sft_steps=1, sft_batch=4))
    assert np.isfinite(rows[-1]["grad_norm"]) and rows[-1]["grad_norm"] > 0
    changed = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert changed >= {"pose_rows", "pose_projector.1.weight", "pose_head.mean.weight"}
    assert all("lora_" in name or name.startswith("pose_") for name in changed)
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert type(loaded.processor) is type(policy.processor) and loaded.image_size == 96
    for ours, theirs in zip(log_probs(policy), log_probs(loaded)):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", SERVED)
def test_the_shared_prompt_is_the_familys_own_forward(family, checkpoint):
    """Prompt, image, pose features and answer as one sequence through the VLM's own forward; positions are its own."""
    policy = built(checkpoint(family))
    example = EXAMPLES[1]
    prompt, (tokens, mask) = policy.encode(EXAMPLES[:3]), policy.tokenize_answers(EXAMPLES[:3])
    with torch.no_grad():
        policy.pose_rows.normal_(std=.1)
        tokens[1, 0, 1] = policy.pose_id
        ours = policy.log_prob(prompt, tokens, mask).log_prob[1, 0, :(n := int(mask[1].sum()))]
        ids = torch.cat([prompt.ids[1][prompt.mask[1].bool()], tokens[1, 0, :n]])[None]
        picture = policy.image_features([example.image])[0]

        def put(module, inputs, embeds):
            embeds = embeds + (inputs[0] == policy.pose_id)[..., None] * policy.pose_rows[0]
            here = (inputs[0] == policy.pose_feature_id)[..., None]
            return embeds.masked_scatter(here, policy.pose_projector(picture.pose))
        policy.vlm.get_input_embeddings().register_forward_hook(put)
        inputs = policy.processor(images=[example.image], text=[policy.image_token], return_tensors="pt",
                                  add_special_tokens=False)
        inputs = dict(inputs) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = (ids == policy.image_id).int()
        output = policy.vlm(**inputs, output_hidden_states=True)
        logits = output.logits.clone()
        logits[..., policy.pose_id] += output.hidden_states[-1] @ policy.pose_rows[-1]
        own = logits[0, -n - 1:-1].log_softmax(-1).gather(-1, ids[0, -n:, None])[:, 0]
    torch.testing.assert_close(ours, own, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", SERVED)
def test_a_prompt_is_what_the_processor_makes_of_it(family, checkpoint):
    """Chat template, image tokens, begin token: all ids but the places of the pose features."""
    policy = built(checkpoint(family))
    for example in EXAMPLES[:2]:
        image = [] if example.image is None else [{"type": "image", "image": Image.fromarray(example.image)}]
        own = policy.processor.apply_chat_template(
            [{"role": "user", "content": [*image, {"type": "text", "text": example.prompt}]}], tokenize=True,
            add_generation_prompt=True, return_dict=True, return_tensors="pt")["input_ids"][0]
        ids = policy.encode([example]).ids[0]
        assert torch.equal(ids[ids != policy.pose_feature_id], own)


def test_images_of_one_batch_may_have_different_numbers_of_tokens(checkpoint):
    """As with tiles or native resolution."""
    policy = built(checkpoint("idefics3 in tiles"))
    small, large = (np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(2))
    wide = np.concatenate([large, large], 1)
    policy.pose_encoder.forward = lambda images: torch.zeros(len(images), 0, 192)
    pictures = [policy.image_features([image])[0] for image in (small, wide)]
    assert len(pictures[0].vlm) != len(pictures[1].vlm)
    for picture in pictures:
        assert picture.ids.count(policy.image_id) == len(picture.vlm)


@pytest.mark.skipif(not VIDEO, reason="the processor of Qwen3-VL needs torchvision")
def test_a_family_that_does_more_with_images_is_refused(checkpoint):
    with pytest.raises(ValueError, match="a Qwen3VLForConditionalGeneration cannot be served: it does more with an"):
        built(checkpoint("qwen3-vl"))


@pytest.mark.parametrize("family", ["llava 1.5", "idefics3"])
def test_a_vlm_whose_layers_see_the_image_again_is_refused(family, checkpoint):
    """The check itself: a hook that puts something of the image into a layer, as no configuration tells."""
    vlm, processor = load_vlm(checkpoint(family))
    check_common_path(PosePolicy(vlm, processor, PoseEncoder(tokens=0)))
    own = vlm.forward

    def forward(**inputs):
        output = own(**inputs)
        output.logits = output.logits + inputs["pixel_values"].mean()
        return output
    vlm.forward = forward
    with pytest.raises(ValueError, match="a .* cannot be served: it does more with an image"), served(vlm):
        check_common_path(PosePolicy(vlm, processor, PoseEncoder(tokens=0)))


@pytest.mark.parametrize("kind, more, says", [
    (transformers.Lfm2Config, {"layer_types": ["conv", "full_attention"]}, "one answer of a group leaks into the next"),
    (transformers.MistralConfig, {"sliding_window": 40}, "look back 40 alone"),
    (Qwen2Config, {"use_sliding_window": True, "sliding_window": 60, "max_window_layers": 0}, "look back 60 alone"),
    (Qwen2Config, {"use_sliding_window": True, "sliding_window": 400, "max_window_layers": 0}, None),
    (transformers.MistralConfig, {"sliding_window": None}, None)])
def test_a_text_half_that_is_no_full_attention_is_refused(kind, more, says):
    """Answers side by side behind one prompt must be what each is alone, as far back as they go."""
    torch.manual_seed(0)
    vlm, processor, _ = build_tiny(CORPUS)
    vlm.config.text_config = text(processor.tokenizer, kind, **more)
    vlm = AutoModelForImageTextToText.from_config(vlm.config)
    if says is None:
        check_common_path(PosePolicy(vlm, processor, PoseEncoder(tokens=0)))
        return
    with pytest.raises(ValueError, match=says), served(vlm):
        check_common_path(PosePolicy(vlm, processor, PoseEncoder(tokens=0)))


@pytest.mark.parametrize("words, says", [
    ([], "it does more with an image"), (["\n\n\n"], "an image's tokens alone are not those that it has between")])
def test_gemma_3_is_refused_in_a_sentence_that_names_it(words, says, tmp_path):
    """Its template writes <start_of_image>, and its features take the places of <image_soft_token>. In its own
    vocabulary the line break before an image is one token with the two that its processor writes."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=build_tiny(CORPUS)[1].tokenizer.backend_tokenizer, pad_token="<pad>", bos_token="<s>",
        eos_token="</s>", extra_special_tokens={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
                                                "image_token": "<image_soft_token>"})
    tokenizer.add_tokens(words)
    config = transformers.Gemma3Config(
        vision_config=SiglipVisionConfig(**SIGHT).to_dict(), mm_tokens_per_image=4,
        text_config=text(tokenizer, transformers.Gemma3TextConfig, head_dim=16, sliding_window=512).to_dict(),
        image_token_index=tokenizer.image_token_id)
    template = IDEFICS_TEMPLATE.replace("<image>", "{{ '\\n' }}<start_of_image>").replace("<end_of_utterance>", "</s>")
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}), tokenizer, chat_template=template,
        image_seq_length=4)
    torch.manual_seed(0)
    vlm = AutoModelForImageTextToText.from_config(config)
    torch.nn.init.normal_(vlm.model.multi_modal_projector.mm_input_projection_weight)  # a new one is zero
    vlm.save_pretrained(tmp_path / "gemma")
    processor.save_pretrained(tmp_path / "gemma")
    with pytest.raises(ValueError, match=f"a Gemma3ForConditionalGeneration cannot be served: {says}") as error:
        built(str(tmp_path / "gemma"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", ["idefics3", "llava interleave"])
def test_added_tokens_that_are_typed_stay_text(family, checkpoint):
    """Marked as special or not."""
    policy = built(checkpoint(family))
    policy.tokenizer.add_tokens(["<tool_call>"])
    typed = "What is <tool_call> or <row_1_col_1>"
    ids = policy.encode([SimpleNamespace(prompt=typed, image=None)]).ids[0]
    added = {policy.tokenizer.convert_tokens_to_ids(word) for word in ("<tool_call>", "<row_1_col_1>")}
    assert not added & set(ids.tolist()) and "tool_call>" in policy.tokenizer.decode(ids)


@pytest.mark.skipif(VIDEO, reason="torchvision is installed")
@pytest.mark.parametrize("config", [{}, {"video_processor": {"video_processor_type": "SmolVLMVideoProcessor"}}])
def test_a_processor_that_insists_on_torchvision_says_what_to_install(config, checkpoint, tmp_path):
    """SmolVLM's own does; with Idefics3's, which writes the same for images, the model is served without."""
    folder = tmp_path / "smolvlm"
    copytree(checkpoint("smolvlm as idefics3"), folder)
    notes = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps(notes | config | {"processor_class": "SmolVLMProcessor"}))
    with pytest.raises(ValueError, match="insists on torchvision, for videos; pip install torchvision=="):
        built(str(folder))


# ---------------------------------------------------------------- what a user meets

def test_what_cannot_be_loaded_is_told_in_one_sentence(checkpoint, tmp_path, monkeypatch):
    def refused(name):
        with pytest.raises(ValueError) as error:
            load_vlm(name)
        assert "\n" not in str(error.value) and str(error.value).startswith(str(name))
        return str(error.value)

    def folder(name, *without):
        copytree(checkpoint("llava 1.5"), tmp_path / name, ignore=lambda *_: without)
        return tmp_path / name
    assert "no such folder, nor a name" in refused("no/such/model")
    assert "it holds no config.json" in refused(tmp_path)
    # What a folder is called is no cause of what is wrong with it.
    assert "it holds no *.safetensors" in refused(folder("connect torchvision image processor", "model.safetensors"))
    transformers.LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                              num_attention_heads=1)).save_pretrained(tmp_path / "text")
    assert "a llama does not read images" in refused(tmp_path / "text")
    assert "no image processor" in refused(folder("blind", "processor_config.json", "preprocessor_config.json"))
    speechless = folder("speechless", "chat_template.jinja")
    assert "no chat template" in refused(speechless)
    (cut := folder("cut") / "model.safetensors").write_bytes(cut.read_bytes()[:-100])
    assert "a file of its weights is cut or damaged (" in refused(tmp_path / "cut")
    (folder("broken") / "config.json").write_text("{")
    assert "AutoConfig cannot read this folder" in refused(tmp_path / "broken")
    weights = load_file(folder("poor") / "model.safetensors")
    weights.pop(next(name for name in weights if "mlp" in name))
    save_file(weights, tmp_path / "poor" / "model.safetensors", {"format": "pt"})
    assert "lacks weights" in refused(tmp_path / "poor")
    cache = tmp_path / "locked" / "config.json"
    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", lambda name, **options: (
        _ for _ in ()).throw(fault))
    for fault, sentence in [
            (PermissionError(13, "Permission denied", str(cache)), f"Permission denied: {cache}; change its rights"),
            (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), "not enough memory "
             "to load it; take a smaller model")]:
        assert sentence in refused(checkpoint("llava 1.5"))


def test_a_policy_of_another_vocabulary_or_covariance_is_refused(checkpoint, tmp_path):
    policy = built(checkpoint("llava 1.5"))
    save_policy(policy, tmp_path / "policy")

    def refused(what, file="pose.json", **notes):
        copytree(tmp_path / "policy", tmp_path / what, dirs_exist_ok=True)
        path = tmp_path / what / file
        path.write_text(json.dumps(json.loads(path.read_text()) | notes))
        with pytest.raises(ValueError) as error:
            load_policy(tmp_path / what)
        return str(error.value)
    assert "does not fit pose.json" in refused("full", covariance="full")
    assert "another vocabulary, in which <POSE> was token 7" in refused("words", pose_id=7)
    assert "not found in the base model" in (said := refused("idefics", vlm=checkpoint("idefics3")))
    assert "adapter does not fit" in said and "train" not in said
    merged = tmp_path / "merged"
    merge_adapter(policy)
    save_policy(policy, merged)
    other = policy.processor
    other.tokenizer.add_tokens(["never seen", "nor this"])
    other.save_pretrained(merged)
    with pytest.raises(ValueError, match="two different checkpoints"):
        load_policy(merged)


@pytest.mark.parametrize("fault", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError(
    "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: not enough memory: you tried to allocate"), None])
def test_out_of_memory_says_what_to_lower(fault):
    def main():
        if fault is None:  # what torch itself says on this system
            torch.empty(10 ** 15)
        raise fault
    with pytest.raises(SystemExit, match="out of memory; in training raise --sft_accumulate and --accumulate, or"):
        runtime.run(main)


def test_other_faults_keep_their_traceback():
    with pytest.raises(RuntimeError, match="a bug"):
        runtime.run(lambda: (_ for _ in ()).throw(RuntimeError("a bug")))


@pytest.mark.parametrize("settings, message", [
    ({"lora_rank": 4}, "tiny is trained whole"), ({"vlm": "no/such/model"}, "no/such/model: no such folder, nor"),
    ({"pose_encoder": "no/such/vit"}, "no/such/vit: no such folder, nor")])
def test_what_cannot_be_is_refused_before_a_picture_is_drawn(settings, message, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.world.load_splits", lambda *_, **__: pytest.fail("pictures were drawn"))
    with pytest.raises(ValueError, match=message):
        load_world(WorldConfig(device="cpu", out=str(tmp_path)), SFTConfig(**settings))


@pytest.mark.parametrize("missing, message", [
    (("processor_config.json", "preprocessor_config.json"), "no image processor"),
    (("chat_template.jinja",), "no chat template")])
def test_a_vlm_without_its_processor_is_refused_before_a_picture_is_drawn(missing, message, checkpoint, tmp_path):
    copytree(checkpoint("llava 1.5"), tmp_path / "vlm", ignore=lambda *_: missing)
    with pytest.raises(ValueError, match=message):
        check_world(WorldConfig(device="cpu", out=str(tmp_path / "runs")), SFTConfig(vlm=str(tmp_path / "vlm")))


def test_features_of_images_do_not_fill_the_memory(checkpoint, monkeypatch):
    policy = built(checkpoint("llava 1.5"))
    monkeypatch.setattr(prompts, "CACHE_BYTES", 3 * sum(x.nbytes for x in policy.image_features(
        [EXAMPLES[1].image])[0][1:3]))
    images = np.random.default_rng(0).integers(0, 255, (7, 64, 64, 3), dtype=np.uint8)
    pictures = policy.image_features(images)
    assert len(pictures) == 7 and len(policy.frozen_features) == 3
    for ours, theirs in zip(pictures, policy.image_features(images)):
        torch.testing.assert_close(ours.vlm, theirs.vlm)


@pytest.mark.parametrize("family", SERVED)
def test_what_is_kept_of_an_image_is_its_own_and_not_a_view_of_the_batch_it_was_filled_up_with(family, checkpoint):
    """So that what is counted is what the memory holds."""
    policy = built(checkpoint(family))
    for picture in policy.image_features([EXAMPLES[1].image]):
        for tensor in filter(torch.is_tensor, picture):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_pictures_that_are_encoded_ahead_are_held_no_longer_than_they_are_kept(checkpoint, monkeypatch):
    policy, held = built(checkpoint("llava 1.5")), []
    one = sum(x.nbytes for x in policy.image_features([EXAMPLES[1].image])[0][1:3])
    policy.images_at_once = 2  # as of a vision tower that reads larger pictures
    monkeypatch.setattr(prompts, "CACHE_BYTES", 3 * one)
    image_features = PosePolicy.image_features
    monkeypatch.setattr(PosePolicy, "image_features", lambda *args: held.append(image_features(*args)) or held[-1])
    keep_features(policy, {"train": world()[0]})
    assert sum(map(len, held)) == 4 and max(map(len, held)) == 2 and len(policy.frozen_features) == 3  # then it is full


def test_the_probe_and_the_answers_of_a_large_model_take_few_prompts_at_once(checkpoint, monkeypatch):
    policy, pictures, prompts_run = built(checkpoint("llava 1.5")), [], []
    images, encode = PosePolicy.image_features, PosePolicy.encode
    monkeypatch.setattr(PosePolicy, "image_features", lambda *args: pictures.append(len(args[1])) or images(*args))
    monkeypatch.setattr(PosePolicy, "encode", lambda *args: prompts_run.append(len(args[1])) or encode(*args))
    policy.images_at_once = 2
    assert len(floors.image_features(policy, world()[0].images)) == 12 and pictures == [2] * 6
    examples = eval_examples(world()[0], "image2pose", 10, each=2)
    assert len(respond(policy, examples, 1)["answers"]) == 20 and prompts_run == [16, 4]


# ---------------------------------------------------------------- vocabularies with more rows than tokens

@pytest.fixture(params=["llava 1.5", "llava interleave"])  # whose output table is its own, and that of embeddings too
def padded(request, tmp_path):
    """A checkpoint whose tables have 40 more rows than its tokenizer has tokens, large enough that each is likely, and
    the mean of the rows that stand for tokens: of the table of embeddings and of that of logits."""
    folder = save_checkpoint(request.param, tmp_path / "hub")
    vlm, tokenizer = AutoModelForImageTextToText.from_pretrained(folder), load_vlm(folder)[1].tokenizer
    tokens = len(tokenizer) - 2  # <POSE> and <pose_feature> are not in the folder
    vlm.resize_token_embeddings(tokens + 40, mean_resizing=False)
    tables = vlm.get_input_embeddings().weight, vlm.get_output_embeddings().weight
    with torch.no_grad():
        for table in tables:
            table[tokens:].normal_(std=3.0)
    means = [table[:tokens].mean(0) for table in tables]
    vlm.save_pretrained(folder)
    return folder, tokens, means


def test_the_rows_of_pose_are_the_mean_also_where_they_are_spare_rows(padded):
    folder, tokens, means = padded
    vlm, processor = load_vlm(folder)
    assert vlm.get_input_embeddings().num_embeddings == tokens + 40
    assert processor.tokenizer.convert_tokens_to_ids(["<POSE>", "<pose_feature>"]) == [tokens, tokens + 1]
    fresh = AutoModelForImageTextToText.from_pretrained(folder)
    for get, mean in zip(("get_input_embeddings", "get_output_embeddings"), means):
        table, other = getattr(vlm, get)().weight, getattr(fresh, get)().weight
        torch.testing.assert_close(table[tokens:tokens + 2], mean.expand(2, -1))
        assert torch.equal(table[:tokens], other[:tokens]) and torch.equal(table[tokens + 2:], other[tokens + 2:])


def test_what_is_no_token_is_never_sampled_and_takes_nothing_of_the_odds(padded):
    folder, tokens, _ = padded
    policy = built(folder)
    prompt = policy.encode(EXAMPLES)
    rollout = policy.sample(prompt, 8, 1, max_tokens=12, seeds=range(len(EXAMPLES)))
    assert rollout.tokens.max() < tokens + 2
    with torch.no_grad():
        new = policy.log_prob(prompt, rollout.tokens, rollout.token_mask)
    assert (new.log_softmax[..., tokens + 2:].exp() == 0).all()
    torch.testing.assert_close(new.log_softmax[..., :tokens + 2].exp().sum(-1), torch.ones(rollout.tokens.shape))
    assert new.log_prob[rollout.token_mask].min() > -30
    rows = one_of_each_step(policy, SFTConfig(vlm=folder, sft_steps=1, sft_batch=4))
    assert rows[-1]["text_ratio"] == 1 and all(np.isfinite(rows[-1][name]) for name in (
        "text_kl", "text_entropy", "loss_text", "grad_norm"))


def test_an_adapter_that_was_taught_beside_an_untrained_row_of_pose_is_read_as_it_was(padded, tmp_path):
    """Policies of before: their rows of <POSE> are differences from what the table holds there."""
    folder, tokens, _ = padded
    policy = built(folder).eval()
    fresh = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        for get in ("get_input_embeddings", "get_output_embeddings"):
            getattr(policy.vlm, get)().weight[tokens:] = getattr(fresh, get)().weight[tokens:]
        policy.pose_rows.normal_(std=.1)
    save_policy(policy, tmp_path / "policy")
    note = tmp_path / "policy" / "pose.json"
    settings = json.loads(note.read_text())
    del settings["spare_rows"]
    note.write_text(json.dumps(settings))
    examples = [e for e in EXAMPLES if "<POSE>" in e.answer]
    for ours, theirs in zip(log_probs(policy, examples), log_probs(load_policy(tmp_path / "policy"), examples)):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
