"""What a language model knows of poses before it is taught any: a linear readout of its frozen features of sentences.

    python -m lab.readout --model smollm2/model runs/sft [--captions 2000] [--json FILE]
A ridge regression from the mean of a sentence's hidden states to the pose that the sentence describes, fitted on the
built-in captions. Asked are test captions and the paraphrases of paraphrases.json, which no table of phrasings wrote.
Beside each model stands one of the same architecture with random weights: what words alone give, in as many numbers.
Layer 0 are the embeddings, a bag of words; the last one is what the head of a policy reads, there at <POSE> alone.
Read next: pretrained.py, which makes such a model; paraphrases.py, which asks whole policies.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from body import matrix_to_rot6d, remove_heading, rot6d_to_matrix
from builtin.splits import load_splits
from engine.checkpoint import atomic_write
from engine.runtime import own_seed, run
from engine.settings import Count, OutputFile, SeedNumber, at_least, read_settings
from lab.floors import ridge
from lab.metrics import compare, eval_examples
from lab.paraphrases import held, read_paraphrases
from real.hub import load_processor, load_vlm

KINDS = ("test captions", "paraphrases")


def layers_read(vlm) -> list[int]:
    """The embeddings (0), the last layer, and up to three between them at equal distances."""
    count = len(vlm.get_decoder().layers)
    return sorted({round(count * quarters / 4) for quarters in range(5)})


@torch.no_grad()
def sentence_features(vlm, tokenizer, sentences: Sequence[str], batch: int = 32) -> Tensor:
    """The mean over a sentence's tokens of the hidden states after each of `layers_read`: (N, L, hidden size)."""
    rows = []
    for i in range(0, len(sentences), batch):
        tokens = tokenizer(list(sentences[i:i + batch]), return_tensors="pt", padding=True, padding_side="right")
        states = vlm.get_decoder()(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask,
                                   output_hidden_states=True).hidden_states  # layers + 1 of (B, T, hidden size)
        states = torch.stack([states[layer] for layer in layers_read(vlm)], 1).float()
        there = tokens.attention_mask[:, None, :, None]  # (B, 1, T, 1)
        rows.append((states * there).sum(2) / there.sum(2))
    return torch.cat(rows)


def readout(layers: Sequence[int], features: Tensor, poses: Tensor, asked: dict[str, Tensor],
            meanings: dict[str, list]) -> list[dict]:
    """After each layer, for each kind of sentence, the share of what it means that its pose holds, and that the poses
    of the others hold. features: (N, L, F). poses: (N, 24, 3, 3). asked: kind -> (M, L, F)."""
    rows = []
    for i, layer in enumerate(layers):
        x = features[:, i]
        mean, std = x.mean(0), x.std(0) + 1e-6
        for kind, other in asked.items():
            said = ridge((x - mean) / std, matrix_to_rot6d(poses).flatten(1), (other[:, i] - mean) / std)
            own, others = held(meanings[kind], rot6d_to_matrix(said.unflatten(-1, (24, 6)))[:, None])
            rows.append({"layer": layer, "kind": kind, "held": float(own.mean()),
                         "others": float(others.mean()), "own_minus_others": compare(own, others)})
    return rows


def table(models: dict[str, list[dict]]) -> str:
    """Markdown: a row a model and layer; own minus others with its 95 % interval over sentences."""
    head = "".join(f" {kind}: held | own minus others |" for kind in KINDS)
    lines = [f"| model | layer |{head}", "| --- | --- |" + " --- | --- |" * len(KINDS)]
    for name, rows in models.items():
        for layer in sorted({row["layer"] for row in rows}):
            cells = []
            for row in (row for kind in KINDS for row in rows if (row["layer"], row["kind"]) == (layer, kind)):
                low, high = row["own_minus_others"]["interval"]
                cells += [f"{row['held']:.3f}", f"{row['own_minus_others']['difference']:.3f} [{low:.3f}, {high:.3f}]"]
            lines.append(f"| {name} | {layer} | {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclass
class ReadoutConfig:
    model: list[str] = field(metadata={"help": "folders of VLMs, or of policies that own all their weights"})
    captions: Annotated[int, at_least(2)] = field(default=2000, metadata={"help": "training captions for the fit"})
    eval_poses: Count = field(default=500, metadata={"help": "test poses, whose captions are asked"})
    seed: SeedNumber = field(default=0, metadata={"help": "seed of the data and of random weights"})
    json: OutputFile | None = field(default=None, metadata={"help": "file to write the figures to"})


def main() -> None:
    config, = read_settings(__doc__, ReadoutConfig)
    for folder in config.model:
        load_processor(folder)  # or it says what is wrong, before the first model is run
    splits = load_splits(None, {"train": max(8000, config.captions), "test": config.eval_poses}, config.seed,
                         images=False)
    taught, tested = (eval_examples(splits[split], "text2pose", count, config.seed) for split, count in
                      (("train", config.captions), ("test", config.eval_poses)))
    paraphrases = {sentence: meant for group in read_paraphrases().values() for sentence, meant in group.items()}
    sentences = dict(zip(KINDS, ([e.caption for e in tested], list(paraphrases))))
    meanings = dict(zip(KINDS, ([[[i] for i in e.statements] for e in tested], list(paraphrases.values()))))
    poses, models = remove_heading(torch.stack([e.rotmats for e in taught])), {}
    for folder in config.model:
        vlm, processor = load_vlm(folder, torch.float32)
        torch.manual_seed(own_seed(config.seed, 14))
        for name, model in ((folder, vlm), (f"{folder}, random weights", type(vlm)(vlm.config).eval())):
            features = lambda said: sentence_features(model, processor.tokenizer, said)
            models[name] = readout(layers_read(model), features([e.caption for e in taught]), poses,
                                   {kind: features(said) for kind, said in sentences.items()}, meanings)
            print(table({name: models[name]}), flush=True)
    if config.json:
        atomic_write(Path(config.json), json.dumps({"captions": config.captions, "models": models}, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
