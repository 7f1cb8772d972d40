"""The paper's claims and ours, as data: what is measured, the arms that are run, the comparisons that try each claim.

Read next: experiments.py, which runs the arms and prints a table a claim.
"""

from train_rft import RFTConfig

# What a result is called, where it stands in evaluate's dict, and whether more of it is better.
MEASURES = {
    "statements": ("text2pose", "statements_sampled", 1), "statements, mean pose": ("text2pose", "statements_mean", 1),
    "judge R@5": ("text2pose", "judge_r5", 1), "reward model's R@5": ("text2pose", "reward_r5", 1),
    "diversity, mm": ("text2pose", "diversity_mm", 1), "MPJPE, mm": ("image2pose", "mpjpe_mean", -1),
    "MPJPE sampled, mm": ("image2pose", "mpjpe_sampled", -1), "PA-MPJPE, mm": ("image2pose", "pa_mpjpe_mean", -1),
    "questions": ("vqa_accuracy", None, 1), "form": ("format_rate", None, 1),
    "descriptions": ("description", "informed", 1)}

# An arm: the start it goes on from, and the settings of stage two that it changes; None: the start as it is.
ARMS = {
    "sft": ("gaussian", None), "hygrpo": ("gaussian", {}), "sft continued": ("gaussian", "sft"),
    "deterministic": ("deterministic", None), "deterministic, GRPO": ("deterministic", {"pose_weight": 0.0}),
    "GRPO on words": ("gaussian", {"pose_weight": 0.0}),
    "no pose encoder": ("no pose encoder", None), "no pose encoder, hygrpo": ("no pose encoder", {}),
    **{f"without {name}": ("gaussian", {"without": name}) for name in
       ("joint", "semantic", "statements", "format", "text", "correct")},
    **{f"KL {beta}": ("gaussian", {"beta_pose": beta}) for beta in (0.0, 0.02, 0.2, 0.6)},
    **{f"K = {K}": ("gaussian", {"poses_per_answer": K, "pose_prompts": 16, "pose_answers": 3}) for K in (1, 8)},
    **{f"G = {G}": ("gaussian", {"group_size": G, "pose_prompts": 48 // G, "pose_answers": G}) for G in (2, 6)},
    **{f"4 epochs, {ratio}": ("gaussian", {"inner_epochs": 4, "pose_ratio": ratio})
       for ratio in ("joint", "per_joint", "mean")},
    **{f"divided by {what}": ("gaussian", {"normalize": what}) for what in ("batch", "none")},
    "sigma frozen": ("gaussian", {"sigma": "frozen"}),
    "lowrank": ("lowrank", None), "lowrank, hygrpo": ("lowrank", {}),
    "full": ("full", None), "full, hygrpo": ("full", {}),
}

# For --stability: ten times the steps of `python train_rft.py`, and what needs far fewer to collapse.
LONG = {"hygrpo": {"rft_steps": 10 * RFTConfig.rft_steps},
        "no KL, no floor": {"rft_steps": 1500, "beta_text": 0.0, "beta_pose": 0.0, "sigma_floor": 1e-6}}
ARMS |= {f"long, {name}": ("gaussian", changes) for name, changes in LONG.items()}

# What the paper says (or asks for, or we), and the comparisons that try it: (arm, other arm, measure, relation), where
# ">" says that the first is the better one in every seed, "~" that they differ by less than the seeds do.
CLAIMS = {
    1: ("The Gaussian head alone changes little; with RFT it helps", [
        ("sft", "deterministic", "MPJPE, mm", "~"), ("hygrpo", "sft", "MPJPE, mm", ">"),
        ("hygrpo", "sft", "statements, mean pose", ">"), ("hygrpo", "deterministic, GRPO", "MPJPE, mm", ">"),
        ("hygrpo", "deterministic, GRPO", "statements, mean pose", ">")]),
    2: ("GRPO on words alone leaves the poses as they were; HyGRPO does not", [
        ("GRPO on words", "sft", "statements", "~"), ("GRPO on words", "sft", "MPJPE sampled, mm", "~"),
        ("hygrpo", "GRPO on words", "statements", ">"), ("hygrpo", "GRPO on words", "MPJPE sampled, mm", ">")]),
    3: ("The pose-aware encoder helps the image tasks much, text to pose hardly", [
        ("hygrpo", "no pose encoder, hygrpo", "MPJPE, mm", ">"), ("sft", "no pose encoder", "MPJPE, mm", ">"),
        ("hygrpo", "no pose encoder, hygrpo", "statements", "~")]),
    4: ("Without one of the rewards its task gets worse", [
        ("hygrpo", "without joint", "MPJPE sampled, mm", ">"), ("hygrpo", "without joint", "PA-MPJPE, mm", ">"),
        ("hygrpo", "without semantic", "judge R@5", ">"), ("hygrpo", "without statements", "statements", ">"),
        ("hygrpo", "without format", "form", ">"), ("hygrpo", "without text", "descriptions", ">"),
        ("hygrpo", "without correct", "questions", ">")]),
    5: ("The gain is seen by a retrieval model that gave no reward", [
        ("hygrpo", "sft", "judge R@5", ">"), ("hygrpo", "sft", "reward model's R@5", ">"),
        ("KL 0.0", "hygrpo", "reward model's R@5", ">"), ("KL 0.0", "hygrpo", "judge R@5", ">"),
        ("hygrpo", "KL 0.0", "diversity, mm", ">"), ("hygrpo", "KL 0.6", "statements", ">")]),
    6: ("(asked by reviewers) More poses an answer, and more answers, teach more a step", [
        ("hygrpo", "K = 8", "statements", ">"), ("K = 8", "K = 1", "statements", ">"),
        ("hygrpo", "K = 1", "MPJPE sampled, mm", ">"), ("G = 6", "G = 2", "statements", ">"),
        ("G = 6", "G = 2", "descriptions", ">")]),
    7: ("(the control that the paper lacks) RFT does what SFT continued for as long does not", [
        ("hygrpo", "sft continued", "statements", ">"), ("hygrpo", "sft continued", "judge R@5", ">"),
        ("hygrpo", "sft continued", "MPJPE, mm", ">"), ("hygrpo", "sft continued", "MPJPE sampled, mm", ">"),
        ("hygrpo", "sft continued", "questions", ">"), ("hygrpo", "sft continued", "diversity, mm", ">")]),
    8: ("(ours) With several inner epochs the pose's ratio is best taken joint by joint", [
        *(("4 epochs, per_joint", f"4 epochs, {ratio}", measure, ">") for ratio in ("joint", "mean")
          for measure in ("statements", "MPJPE, mm", "MPJPE sampled, mm", "diversity, mm")),
        ("4 epochs, per_joint", "hygrpo", "statements", ">"), ("4 epochs, per_joint", "hygrpo", "MPJPE, mm", ">"),
        ("4 epochs, per_joint", "hygrpo", "diversity, mm", ">")]),
    9: ("(ours) Advantages are best divided by the spread of their group, and sigma is best learned", [
        *(("hygrpo", f"divided by {what}", measure, ">") for what in ("batch", "none")
          for measure in ("statements", "MPJPE, mm")),
        ("hygrpo", "sigma frozen", "statements", ">"), ("hygrpo", "sigma frozen", "MPJPE, mm", ">"),
        ("sigma frozen", "hygrpo", "diversity, mm", ">")]),
    10: ("(ours) Correlations between joints, in a low-rank or a full covariance, make better poses", [
        *((kind, "sft", measure, ">") for kind in ("lowrank", "full") for measure in ("statements", "MPJPE, mm")),
        *((f"{kind}, hygrpo", "hygrpo", measure, ">") for kind in ("lowrank", "full")
          for measure in ("statements", "MPJPE, mm", "MPJPE sampled, mm", "diversity, mm"))]),
}


def value(result: dict, measure: str) -> float:
    """A measure's number in what `evaluate.evaluate` returned."""
    first, second, _ = MEASURES[measure]
    return result[first][second] if second else result[first]
