"""Pose-aware encoders of transformers, and HMR2.0's weights made one of them."""

import os
import pickle
import sys
import types
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from importlib.util import find_spec
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (CLIPImageProcessorPil, Dinov2Backbone, Dinov2Config, VitPoseBackboneConfig, VitPoseConfig,
                          VitPoseForPoseEstimation, VitPoseImageProcessorPil)

from engine.saving import load_policy, save_policy
from engine.world import WorldConfig, check_world
from model import PosePolicy
from real.pose_encoders import BackbonePoseEncoder, convert_hmr2
from test_families import CORPUS, build_tiny, built, log_probs, one_of_each_step, save_checkpoint
from builtin.tiny import PoseEncoder
from train_sft import SFTConfig

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (2, 96, 96, 3), dtype=np.uint8))


def save_vitpose(folder):
    torch.manual_seed(0)
    backbone = VitPoseBackboneConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, out_indices=[2])
    model = VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, num_labels=3))
    model.save_pretrained(folder)
    VitPoseImageProcessorPil().save_pretrained(folder)
    return model.eval()


@pytest.mark.skipif(not find_spec("scipy"), reason="the image processor of ViTPose needs scipy")
def test_a_pose_estimators_backbone_is_taken_with_its_own_crop(tmp_path):
    model = save_vitpose(tmp_path)
    encoder = BackbonePoseEncoder(str(tmp_path))
    pixels = VitPoseImageProcessorPil()(list(IMAGES.numpy()), boxes=[[[0, 0, 96, 96]]] * 2, return_tensors="pt")
    with torch.no_grad():
        own = model.backbone(pixels.pixel_values).feature_maps[-1]
    torch.testing.assert_close(encoder(IMAGES), own)
    assert encoder(IMAGES).shape == (2, 192, 16) and encoder.width == 16


@pytest.mark.skipif(find_spec("scipy") is not None, reason="scipy is installed")
def test_an_image_processor_that_needs_scipy_says_so(tmp_path):
    save_vitpose(tmp_path)
    with pytest.raises(ValueError, match="pip install scipy"):
        BackbonePoseEncoder(str(tmp_path))(IMAGES)


def save_dinov2(folder):
    torch.manual_seed(0)
    Dinov2Backbone(Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28,
                                out_features=["stage2"])).save_pretrained(folder)
    CLIPImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False).save_pretrained(folder)


def test_any_backbone_serves_and_stays_frozen(tmp_path):
    """Its feature map is a picture, (N, C, h, w); rows of it follow each other. Its weights are not written again."""
    save_dinov2(tmp_path / "eye")
    folder = save_checkpoint("llava 1.5", tmp_path / "vlm")
    policy = built(folder, pose_encoder=str(tmp_path / "eye"))
    features, encoder = policy.pose_encoder(IMAGES), policy.pose_encoder
    pixels = encoder.processor(list(IMAGES.numpy()), return_tensors="pt").pixel_values
    with torch.no_grad():
        torch.testing.assert_close(features[:, 3], encoder.backbone(pixels).feature_maps[-1][:, :, 1, 1])
    assert features.shape == (2, 4, 16)
    before = {name: p.clone() for name, p in encoder.named_parameters()}
    one_of_each_step(policy, SFTConfig(vlm=folder, sft_steps=1, sft_batch=4))
    assert before and all(torch.equal(p, before[name]) for name, p in encoder.named_parameters())
    save_policy(policy, tmp_path / "policy")
    assert (tmp_path / "policy" / "pose.safetensors").stat().st_size < 2_000_000
    loaded = load_policy(tmp_path / "policy")
    assert loaded.pose_encoder.config == {"name": str(tmp_path / "eye")}
    for ours, theirs in zip(log_probs(policy), log_probs(loaded)):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_backbone_that_is_not_whole_or_no_backbone_is_refused(tmp_path):
    save_dinov2(tmp_path / "eye")
    with pytest.raises(ValueError, match="no such folder, nor a name"):
        BackbonePoseEncoder("no/such/encoder")
    policy = PosePolicy(*build_tiny(CORPUS)[:2], BackbonePoseEncoder(str(tmp_path / "eye")))
    save_policy(policy, tmp_path / "policy")
    (tmp_path / "eye").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=f"its pose_encoder was expected at {tmp_path}/eye: no such.* nothing is lost$"):
        load_policy(tmp_path / "policy")
    (tmp_path / "moved").rename(tmp_path / "eye")
    copytree(tmp_path / "eye", tmp_path / "whole")
    (tmp_path / "eye" / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="no image processor"):
        BackbonePoseEncoder(str(tmp_path / "eye"))
    folder = save_checkpoint("llava 1.5", tmp_path / "vlm")
    with pytest.raises(ValueError, match="a llava is no backbone"):
        BackbonePoseEncoder(folder)
    world = WorldConfig(device="cpu", out=str(tmp_path / "runs"))  # before a picture is drawn
    with pytest.raises(ValueError, match="a llava is no backbone"):
        check_world(world, SFTConfig(pose_encoder=folder))
    with pytest.raises(ValueError, match="--picture 32: the built-in pose encoder reads 64 pixels or more"):
        check_world(replace(world, picture=32), SFTConfig(vlm=folder))
    check_world(replace(world, picture=32), SFTConfig(vlm=folder, pose_encoder=str(tmp_path / "whole")))


def test_a_backbone_that_was_saved_in_half_precision_is_read_whole(tmp_path):
    save_dinov2(tmp_path / "eye")
    whole = BackbonePoseEncoder(str(tmp_path / "eye"))
    whole.backbone.bfloat16().save_pretrained(tmp_path / "eye")
    assert BackbonePoseEncoder(str(tmp_path / "eye"))(IMAGES).dtype == torch.float32


def test_the_built_in_encoder_reads_larger_pictures_as_small_ones():
    torch.manual_seed(0)
    encoder = PoseEncoder().eval()
    large = IMAGES[:, :64, :64].repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(encoder(large), encoder(IMAGES[:, :64, :64]), atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- HMR2.0

class Block(nn.Module):
    """A block of the ViT of HMR2.0, with its names."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x):
        q, k, v = self.attn.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.mT / q.shape[-1] ** .5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + self.attn.proj(mixed)
        return x + self.mlp.fc2(nn.functional.gelu(self.mlp.fc1(self.norm2(x))))


class HMR2ViT(nn.Module):
    """The ViT of HMR2.0 written out: what its features must be."""

    def __init__(self, width=32, layers=2, heads=4):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 16, 16, padding=2)})
        self.pos_embed = nn.Parameter(torch.randn(1, 193, width))
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.last_norm = nn.LayerNorm(width, 1e-6)

    def forward(self, pixels):
        x = self.patch_embed.proj(pixels).flatten(2).mT + self.pos_embed[:, 1:] + self.pos_embed[:, :1]
        for block in self.blocks:
            x = block(x)
        return self.last_norm(x)


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    vit = HMR2ViT().eval()
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=.3)
    return vit


def state(vit):
    weights = {f"backbone.{name}": tensor for name, tensor in vit.state_dict().items()}
    return weights | {"smpl_head.decpose.weight": torch.zeros(3)}


def test_hmr2_weights_give_hmr2_features(vit, tmp_path):
    """Features of the converted backbone, behind its image processor, against the ViT written out and HMR2.0's crop."""
    torch.save({"state_dict": state(vit), "epoch": 35}, tmp_path / "hmr2.ckpt")
    convert_hmr2(tmp_path / "hmr2.ckpt", tmp_path / "eye", heads=4)
    encoder = BackbonePoseEncoder(str(tmp_path / "eye"))
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 255, (2, 256, 256, 3), dtype=np.uint8))
    mean, std = torch.tensor([.485, .456, .406]), torch.tensor([.229, .224, .225])
    pixels = ((images / 255 - mean) / std).movedim(-1, 1)[..., 32:-32]
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), vit(pixels), atol=1e-4, rtol=1e-4)
    assert encoder(images).shape == (2, 192, 32)


def test_settings_of_a_real_checkpoint_are_read_past(vit, tmp_path, monkeypatch):
    """HMR2.0 pickles its settings as yacs.config.CfgNode: the file is read where yacs is not installed."""
    yacs = types.ModuleType("yacs.config")
    yacs.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", yacs)
    settings = yacs.CfgNode(MODEL=yacs.CfgNode(SIZE=256))
    settings.__dict__["__immutable__"] = False
    torch.save({"state_dict": state(vit), "hyper_parameters": {"cfg": settings}}, tmp_path / "hmr2.ckpt")
    monkeypatch.delitem(sys.modules, "yacs.config")
    convert_hmr2(tmp_path / "hmr2.ckpt", tmp_path / "eye", heads=4)
    assert BackbonePoseEncoder(str(tmp_path / "eye")).width == 32


def omegaconf_tree(monkeypatch):
    """hydra's settings as omegaconf keeps and pickles them: containers with a parent, metadata and a cache, whose
    leaves are nodes. The modules are gone when the test reads the file."""
    kinds = {}
    for place in ("dictconfig.DictConfig", "listconfig.ListConfig", "nodes.AnyNode", "base.ContainerMetadata",
                  "base.Metadata"):
        module, _, name = f"omegaconf.{place}".rpartition(".")
        kinds[name] = type(name, (), {"__module__": module})
        monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
        monkeypatch.setitem(sys.modules, module, sys.modules.get(module) or types.ModuleType(module))
        setattr(sys.modules[module], name, kinds[name])

    def make(kind, parent=None, metadata="ContainerMetadata", **state):
        made, meta = kinds[kind](), kinds[metadata]()
        meta.__dict__.update(ref_type=Any, object_type={"DictConfig": dict, "ListConfig": list}.get(kind), key=None,
                             optional=True, flags={}, flags_root=False, resolver_cache=defaultdict(dict),
                             key_type=int if kind == "ListConfig" else Any, element_type=Any)
        made.__dict__.update(_metadata=meta, _parent=parent, _flags_cache=None, **state)
        return made

    tree = make("DictConfig")
    sizes = make("ListConfig", tree)
    sizes._content = [make("AnyNode", sizes, "Metadata", _val=value) for value in (256, .5, True, None, "vit")]
    tree._metadata.resolver_cache["oc.env"]["HOME"] = "/home"
    tree._content = {"a": make("AnyNode", tree, "Metadata", _val=1), "sizes": sizes}
    return tree


def test_settings_of_omegaconf_are_read_past_too(vit, tmp_path, monkeypatch):
    """HMR2.0's own checkpoint: Lightning saves hydra's settings beside the weights."""
    saved = {"state_dict": state(vit), "hyper_parameters": {"cfg": omegaconf_tree(monkeypatch)}, "epoch": 35,
             "pytorch-lightning_version": "1.8.1", "callbacks": {"ModelCheckpoint": {"best_k_models": {}}}}
    torch.save(saved, tmp_path / "hmr2.ckpt")
    for name in [name for name in sys.modules if name.startswith("omegaconf")]:
        monkeypatch.delitem(sys.modules, name)
    convert_hmr2(tmp_path / "hmr2.ckpt", tmp_path / "eye", heads=4)
    assert BackbonePoseEncoder(str(tmp_path / "eye")).width == 32
    assert not any(name.startswith("omegaconf") for name in sys.modules)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_refused_is_named_in_one_sentence(zipped, vit, tmp_path):
    saved = {"state_dict": state(vit), "hyper_parameters": {"ratio": Fraction(1, 2)}}
    torch.save(saved, tmp_path / "odd.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError) as error:
        convert_hmr2(tmp_path / "odd.ckpt", tmp_path / "eye", heads=4)
    assert str(error.value) == (f"{tmp_path / 'odd.ckpt'} is no HMR2.0 checkpoint that can be read safely: it asks for "
                                "fractions.Fraction, which no HMR2.0 checkpoint needs, and was read no further")


class Evil:
    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_malicious_checkpoint_is_refused_and_does_nothing(vit, tmp_path):
    evil = Evil()
    evil.path = tmp_path / "harm"
    torch.save({"state_dict": state(vit), "hyper_parameters": evil}, tmp_path / "evil.ckpt")
    told = f"it asks for {os.system.__module__}.system, which"
    with pytest.raises(ValueError, match=f"evil.ckpt is no HMR2.0 checkpoint that can be read safely: {told}"):
        convert_hmr2(tmp_path / "evil.ckpt", tmp_path / "eye", heads=4)
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(evil))
    with pytest.raises(ValueError, match="can be read safely"):
        convert_hmr2(tmp_path / "plain.ckpt", tmp_path / "eye", heads=4)
    assert not evil.path.exists() and not (tmp_path / "eye").exists()


@pytest.mark.parametrize("name, change, told", [
    ("missing", lambda weights: weights.pop("backbone.blocks.1.attn.qkv.bias"), "Missing"),
    ("extra", lambda weights: weights.update({"backbone.blocks.1.attn.gate": torch.zeros(1)}), "gate"),
    ("shape", lambda weights: weights.update({"backbone.pos_embed": torch.zeros(1, 197, 32)}), "size mismatch")])
def test_every_weight_must_find_its_place(name, change, told, vit, tmp_path):
    weights = state(vit)
    change(weights)
    torch.save({"state_dict": weights}, tmp_path / "hmr2.ckpt")
    with pytest.raises(ValueError, match=told) as error:
        convert_hmr2(tmp_path / "hmr2.ckpt", tmp_path / "eye", heads=4)
    assert "hmr2.ckpt" in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "eye").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        convert_hmr2(tmp_path / "none.ckpt", tmp_path / "eye")
    for name, saved in (("other", {"weights": 1}), ("list", [1]), ("number", {"state_dict": {"backbone.a": 1}})):
        torch.save(saved, tmp_path / f"{name}.ckpt")
        with pytest.raises(ValueError, match=f"{name}.ckpt is no HMR2.0 checkpoint: its `state_dict` has no ViT"):
            convert_hmr2(tmp_path / f"{name}.ckpt", tmp_path / "eye")
    for name, content in (("text", b"hello"), ("empty", b""), ("half", b"PK\x03\x04half")):
        (tmp_path / f"{name}.ckpt").write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.ckpt is no HMR2.0 checkpoint that can be read safely: ") as error:
            convert_hmr2(tmp_path / f"{name}.ckpt", tmp_path / "eye")
        assert str(error.value).isprintable()


def test_a_model_is_not_written_over(vit, tmp_path):
    torch.save({"state_dict": state(vit)}, tmp_path / "hmr2.ckpt")
    (tmp_path / "rft").mkdir()
    (tmp_path / "rft" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="rft holds a model already; name another folder"):
        convert_hmr2(tmp_path / "hmr2.ckpt", tmp_path / "rft", heads=4)
    assert [path.name for path in (tmp_path / "rft").iterdir()] == ["config.json"]


def test_a_place_where_no_folder_can_be_made_is_told_before_the_checkpoint_is_read(tmp_path):
    (tmp_path / "any.ckpt").write_text("")
    with pytest.raises(ValueError, match="any.ckpt/eye cannot be written to, since .*any.ckpt is a file"):
        convert_hmr2(tmp_path / "any.ckpt", tmp_path / "any.ckpt" / "eye")
