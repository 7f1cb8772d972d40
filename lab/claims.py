"""The paper's claims and ours, as data: what is measured, the arms that are run, the comparisons that try each claim.

Read next: experiments.py, which runs the arms and prints a table a claim.
"""

from rewards import weights
from train_rft import RFTConfig

# What a result is called, where it stands in evaluate's dict, and whether more of it is better.
MEASURES = {
    "statements": ("text2pose", "statements_sampled", 1), "statements, mean pose": ("text2pose", "statements_mean", 1),
    "judge R@5": ("text2pose", "judge_r5", 1), "reward model's R@5": ("text2pose", "reward_r5", 1),
    "diversity, mm": ("text2pose", "diversity_mm", 1), "MPJPE, mm": ("image2pose", "mpjpe_mean", -1),
    "MPJPE sampled, mm": ("image2pose", "mpjpe_sampled", -1), "PA-MPJPE, mm": ("image2pose", "pa_mpjpe_mean", -1),
    "questions": ("vqa_accuracy", None, 1), "form": ("format_rate", None, 1),
    "descriptions": ("description", "informed", 1)}

# What all arms have unless they change it: no focal advantages, as in GRPO, and the weights that go with that.
BASE = {"focal_gamma": 0.0, "reward_weights": ["joint=2", "statements=3.5"]}

# An arm: the start it goes on from, and the settings of stage two that it changes; None: the start as it is.
ARMS = {
    "sft": ("gaussian", None), "hygrpo": ("gaussian", {}), "sft continued": ("gaussian", "sft"),
    "deterministic": ("deterministic", None), "deterministic, GRPO": ("deterministic", {"pose_weight": 0.0}),
    "GRPO on words": ("gaussian", {"pose_weight": 0.0}),
    "no pose encoder": ("no pose encoder", None), "no pose encoder, hygrpo": ("no pose encoder", {}),
    **{f"without {name}": ("gaussian", {"without": name}) for name in
       ("joint", "semantic", "format", "text", "correct")},  # without statements: "the paper's", below
    **{f"KL {beta}": ("gaussian", {"beta_pose": beta}) for beta in (0.0, 0.02, 0.2, 0.6)},
    **{f"K = {K}": ("gaussian", {"poses_per_answer": K, "pose_prompts": 16, "pose_answers": 3}) for K in (1, 8)},
    **{f"G = {G}": ("gaussian", {"group_size": G, "pose_prompts": 48 // G, "pose_answers": G}) for G in (2, 3, 6)},
    **{f"4 epochs, {ratio}": ("gaussian", {"inner_epochs": 4, "pose_ratio": ratio})
       for ratio in ("joint", "per_joint", "mean")},
    **{f"divided by {what}": ("gaussian", {"normalize": what}) for what in ("batch", "none")},
    "sigma frozen": ("gaussian", {"sigma": "frozen"}),
    "lowrank": ("lowrank", None), "lowrank, hygrpo": ("lowrank", {}),
    "full": ("full", None), "full, hygrpo": ("full", {}),
    "rewards summed": ("gaussian", {"compare": "sum"}),
}

# Claim 11: the rewards of poses, alone and together, by the score function and, where they have a slope, pathwise too;
# those of words are in all arms. In "hygrpo, pathwise" each reward takes the gradient that suits it.
POSE_REWARDS = {"joint alone": ["semantic=0", "statements=0"], "semantic alone": ["joint=0", "statements=0"],
                "the paper's": ["statements=0"], "statements alone": ["joint=0", "semantic=0"]}
OF_POSES = {"hygrpo": {}} | {name: {"reward_weights": without} for name, without in POSE_REWARDS.items()}
OF_POSES["the paper's, K = 1"] = OF_POSES["the paper's"] | ARMS["K = 1"][1]
ARMS |= {name: ("gaussian", changes) for name, changes in OF_POSES.items()}
ARMS |= {f"{name}, pathwise": ("gaussian", changes | {"pose_gradient": "pathwise"})
         for name, changes in OF_POSES.items() if name != "statements alone"}
# An arm again, with as many steps as take as long as another arm took: (which, which other).
EQUAL_TIME = {f"{name}, pathwise, equal time": (f"{name}, pathwise", name)
              for name in ("joint alone", "semantic alone", "the paper's", "hygrpo")}

# Claim 13: poses as words (discrete.py), imitated in as many steps, and GRPO on these words alone, with the KL and the
# learning rate of HyGRPO's poses, or with those of its words.
GRPO = {"pose_weight": 0.0, "poses_per_answer": 1, "pose_prompts": 16, "pose_answers": 8}
LIKE_POSES = {"beta_text": RFTConfig.beta_pose, "rft_lr": RFTConfig.head_lr}
ARMS |= {"discrete": ("discrete", None), "discrete, GRPO": ("discrete", GRPO | LIKE_POSES),
         "discrete, GRPO as words": ("discrete", GRPO)}
EQUAL_TIME |= {f"{name}, equal time": (name, "hygrpo") for name in ("discrete, GRPO", "discrete, GRPO as words")}
ARMS |= {name: ARMS[which] for name, (which, _) in EQUAL_TIME.items()}

# Each weight of rewards.py a quarter and four times as large.
WEIGHED = {f"{name} x {scale:g}": ("gaussian", {"reward_weights": [f"{name}={weight * scale:g}"]})
           for name, weight in weights(BASE["reward_weights"]).items() for scale in (0.25, 4.0)}
ARMS |= WEIGHED

# What HyGRPO has after a few steps, with a decay of their own: when does it have what SFT continued brings?
COST = {f"hygrpo, {steps} steps": ("gaussian", {"rft_steps": steps}) for steps in (25, 50, 100)}
ARMS |= COST

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
        ("hygrpo", "without semantic", "judge R@5", ">"), ("hygrpo", "the paper's", "statements", ">"),
        ("hygrpo", "without format", "form", ">"), ("hygrpo", "without text", "descriptions", ">"),
        ("hygrpo", "without correct", "questions", ">")]),
    5: ("The gain is seen by a retrieval model that gave no reward", [
        ("hygrpo", "sft", "judge R@5", ">"), ("hygrpo", "sft", "reward model's R@5", ">"),
        ("KL 0.0", "hygrpo", "reward model's R@5", ">"), ("KL 0.0", "hygrpo", "judge R@5", ">"),
        ("hygrpo", "KL 0.0", "diversity, mm", ">"), ("hygrpo", "KL 0.6", "statements", ">")]),
    6: ("(asked by reviewers) More poses an answer, and more answers, teach more a step", [
        ("G = 3", "K = 8", "statements", ">"), ("K = 8", "K = 1", "statements", ">"),
        ("G = 3", "K = 1", "MPJPE sampled, mm", ">"), ("G = 6", "G = 2", "statements", ">"),
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
    11: ("(a sceptic's) Where a reward has a slope, following it beats HyGRPO, which is for rewards without one", [
        *((f"{name}, pathwise{time}", name, measure, ">") for time in ("", ", equal time") for name, measure in (
            ("joint alone", "MPJPE, mm"), ("joint alone", "MPJPE sampled, mm"), ("semantic alone", "judge R@5"),
            ("the paper's", "judge R@5"), ("the paper's", "MPJPE sampled, mm"), ("the paper's", "statements"))),
        ("the paper's, K = 1, pathwise", "the paper's", "statements", "~"),
        ("the paper's, K = 1, pathwise", "the paper's, K = 1", "statements", ">"),
        ("statements alone", "the paper's, pathwise", "statements", ">"),
        ("hygrpo", "the paper's, pathwise", "statements", ">"), ("hygrpo", "the paper's, pathwise", "judge R@5", ">"),
        *((f"hygrpo, pathwise{time}", "hygrpo", measure, ">") for time in ("", ", equal time")
          for measure in ("statements", "judge R@5", "MPJPE, mm", "MPJPE sampled, mm"))]),
    12: ("(asked by reviewers) More weight of a reward brings more of it and costs no other task; rewards are best "
         "compared one by one", [
        *((f"{name} x 4", f"{name} x 0.25", measure, ">") for name, measure in (
            ("joint", "MPJPE sampled, mm"), ("semantic", "judge R@5"), ("statements", "statements"), ("format", "form"),
            ("description", "descriptions"), ("correct", "questions"))),
        *((f"{name} x 4", "hygrpo", measure, "~") for name, measure in (
            ("joint", "statements"), ("statements", "MPJPE sampled, mm"), ("semantic", "statements"),
            ("description", "questions"), ("text", "questions"), ("correct", "descriptions"))),
        *(("hygrpo", "rewards summed", measure, ">") for measure in (
            "statements", "judge R@5", "MPJPE sampled, mm", "descriptions", "questions", "form"))]),
    13: ("(asked by a reviewer) Poses need a continuous half: said in words alone they are worse in the same time", [
        *(("sft", "discrete", measure, ">") for measure in (
            "statements", "judge R@5", "MPJPE, mm", "MPJPE sampled, mm")),
        *(("hygrpo", f"discrete, GRPO{how}, equal time", measure, ">") for how in ("", " as words") for measure in (
            "statements", "judge R@5", "MPJPE, mm", "MPJPE sampled, mm", "diversity, mm")),
        *(("discrete, GRPO, equal time", "discrete", measure, ">") for measure in (
            "statements", "judge R@5", "MPJPE, mm", "MPJPE sampled, mm"))]),
}
SIDE_BY_SIDE = (6, 7, 11, 12, 13)  # the claims whose arms are also shown with every measure beside them
BESIDE = {6: ["hygrpo"], 7: ["sft", *COST], 12: WEIGHED,  # and the arms that are only shown there
          13: ["discrete, GRPO", "discrete, GRPO as words"]}


def value(result: dict, measure: str) -> float:
    """A measure's number in what `evaluate.evaluate` returned."""
    first, second, _ = MEASURES[measure]
    return result[first][second] if second else result[first]


def arm_settings(changes: dict) -> dict:
    """What an arm has instead of the defaults of stage two: BASE, and what it changes."""
    given = changes.get("reward_weights", [])
    changed = {weight.partition("=")[0] for weight in given} | {changes.get("without")}
    kept = [weight for weight in BASE["reward_weights"] if weight.partition("=")[0] not in changed]
    return BASE | changes | {"reward_weights": kept + given}
