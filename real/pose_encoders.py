"""Pose-aware encoders of others: the policy's second image encoder, pre-trained on pose estimation and frozen.

`tiny` trains a small CNN of its own (builtin/tiny.py). In its place comes any ViT of transformers, by name, such as
usyd-community/vitpose-base-simple, or HMR2.0's, the paper's own (section 3), once it is written in that layout:

    python -m real.pose_encoders epoch=35-step=1000000.ckpt hmr2_backbone
    python train_rft.py --pose_encoder hmr2_backbone
Read next: prompts.py, where features of these encoders follow the image's tokens.
"""

import inspect
import sys
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (AutoBackbone, AutoConfig, AutoImageProcessor, CLIPImageProcessorPil, VitPoseBackbone,
                          VitPoseBackboneConfig)

from builtin.tiny import PoseEncoder
from engine.runtime import run
from engine.settings import output_folder
from real.checks import load_tensors
from real.hub import absolute, fetch
from real.hub_faults import first_line

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build_pose_encoder(config: dict) -> nn.Module:
    """The encoder that `config` of another one describes."""
    return BackbonePoseEncoder(**config) if "name" in config else PoseEncoder(**config)


def backbone_of(name: str) -> tuple:
    """The configuration of the backbone called `name`, and its class: what can be told without its weights. ValueError
    for what is no backbone."""
    config = fetch(AutoConfig, name)
    # A pose estimator keeps its backbone's config and weights under this name, beside a head that is not wanted.
    config = getattr(config, "backbone_config", None) or config
    try:
        with torch.device("meta"):  # AutoBackbone.from_pretrained would ask the hub even for a folder
            return config, type(AutoBackbone.from_config(config))
    except ValueError as error:
        raise ValueError(f"{name}: a {config.model_type} is no backbone that transformers know "
                         f"({first_line(error)})") from error


class BackbonePoseEncoder(nn.Module):
    """Images uint8 (N, H, W, 3) of one person to features (N, tokens, width): the last feature map of any backbone of
    transformers, behind its own image processor. `name`: on the hub, or a folder."""

    def __init__(self, name: str):
        super().__init__()
        self.config = {"name": (name := absolute(name))}
        config, kind = backbone_of(name)
        self.processor = fetch(AutoImageProcessor, name)
        self.backbone, info = fetch(kind, name, config=config, key_mapping={r"^backbone\.": ""}, use_safetensors=True,
                                    dtype=torch.float32, output_loading_info=True)
        if info["missing_keys"]:
            raise ValueError(f"{name} lacks weights of its backbone ({sorted(info['missing_keys'])[0]})")
        self.width = self.backbone.channels[-1]
        # An image processor that cuts people out of a photo is told that the whole picture is one.
        self.cuts_boxes = "boxes" in inspect.signature(self.processor.preprocess).parameters
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        boxes = {"boxes": [[[0.0, 0.0, image.shape[1], image.shape[0]]] for image in images]} if self.cuts_boxes else {}
        try:
            pixels = self.processor(list(images.cpu().numpy()), return_tensors="pt", **boxes).pixel_values
        except (ImportError, NameError) as error:  # an image processor finds out only here what it lacks
            raise ValueError(f"{self.config['name']}: its image processor lacks a package ({first_line(error)}); "
                             "that of ViTPose needs scipy: pip install scipy") from error
        features = self.backbone(pixels.to(images.device)).feature_maps[-1]
        return features.flatten(2).mT if features.dim() == 4 else features  # (N, C, h, w) or already (N, tokens, C)


# ---------------------------------------------------------------- HMR2.0's weights

class _Setting:
    """Stands for whatever a checkpoint's settings are made of, and keeps nothing of it."""

    def __new__(cls, *args):
        return super().__new__(cls)

    def __setstate__(self, state):
        pass


def _no_defaults(*factory) -> OrderedDict:
    return OrderedDict()  # the one kind of its own dictionaries that torch lets a file fill


# HMR2.0's settings lie beside its weights: hydra's, which omegaconf holds, or yacs's. Neither package need be here:
# each name in the file means one of these.
SETTINGS = [(OrderedDict, "yacs.config.CfgNode"), (_no_defaults, "collections.defaultdict"), *(
    (_Setting, name) for name in (
        "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.base.ContainerMetadata",
        "omegaconf.base.Metadata", "typing.Any", *(f"omegaconf.nodes.{kind}Node" for kind in (
            "Any", "String", "Integer", "Float", "Boolean", "Bytes", "Path", "Enum")),
        *(f"builtins.{name}" for name in ("dict", "list", "tuple", "int", "float", "str", "bool"))))]


def convert_hmr2(checkpoint: str | Path, folder: str | Path, heads: int = 16) -> None:
    """Write the ViT of a HMR2.0 checkpoint (Goel et al. 2023; `.ckpt`, keys `backbone.*`) to `folder`, as transformers
    save a backbone, with the image processor that cuts as HMR2.0 does: 256 x 256, of which the middle 192 columns.

    The file is read without running what it may hold. ValueError if it is not such a checkpoint: every weight of the
    backbone must find its place, and every place its weight. Before it is read, ValueError where no folder can be made.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_file():
        raise FileNotFoundError(f"{checkpoint}: no such file")
    if fault := output_folder(folder):
        raise ValueError(f"{folder} {fault}")
    if (Path(folder) / "config.json").exists():
        raise ValueError(f"{folder} holds a model already; name another folder")
    loaded = load_tensors(checkpoint, "HMR2.0 checkpoint", SETTINGS)
    try:
        theirs = {key.removeprefix("backbone."): tensor for key, tensor in loaded["state_dict"].items()
                  if key.startswith("backbone.") and isinstance(tensor, Tensor)}
        hidden, layers = theirs["patch_embed.proj.weight"].shape[0], 1 + max(
            int(key.split(".")[1]) for key in theirs if key.startswith("blocks."))
        ratio = theirs["blocks.0.mlp.fc1.weight"].shape[0] // hidden
    except Exception as error:  # whatever else the file may hold
        raise ValueError(f"{checkpoint} is no HMR2.0 checkpoint: its `state_dict` has no ViT as `backbone`") from error
    config = VitPoseBackboneConfig(
        image_size=[256, 192], patch_size=[16, 16], hidden_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, mlp_ratio=ratio, qkv_bias=True, layer_norm_eps=1e-6, out_indices=[layers])
    backbone, ours = VitPoseBackbone(config), {}
    for key, tensor in theirs.items():
        for old, new in (("patch_embed.proj", "embeddings.patch_embeddings.projection"),
                         ("pos_embed", "embeddings.position_embeddings"), ("last_norm", "layernorm"),
                         ("blocks.", "encoder.layer."), ("norm1", "layernorm_before"), ("norm2", "layernorm_after"),
                         ("attn.proj", "attention.output.dense")):
            key = key.replace(old, new)
        if ".attn.qkv." in key:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3)):
                ours[key.replace("attn.qkv", f"attention.attention.{part}")] = third.contiguous()
        else:
            ours[key] = tensor
    try:
        backbone.load_state_dict(ours)
    except RuntimeError as error:
        raise ValueError(f"{checkpoint}: its backbone is not HMR2.0's ({first_line(error)})") from error
    backbone.save_pretrained(folder)
    CLIPImageProcessorPil(size={"height": 256, "width": 256}, crop_size={"height": 256, "width": 192}, resample=2,
                          image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD).save_pretrained(folder)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: python -m real.pose_encoders HMR2_CHECKPOINT FOLDER")
    convert_hmr2(*sys.argv[1:])
    print(f"{sys.argv[2]} can now be given as --pose_encoder")


if __name__ == "__main__":
    run(main)
