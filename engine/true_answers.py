"""Before anything is taught: would the true answers be rewarded, once they have been tokens of this policy?

A tokenizer that lacks words, or joins what must be apart, would let a perfect policy earn nothing, without a word.
Read next: rewards.py, which rewards answers.
"""

import numpy as np

import captions
from data import TASKS, Split, make_example
from model import PosePolicy
from real.answers import as_read
from rewards import has_form, words_of

EXAMPLES = 100  # of each task


def check_true_answers(policy: PosePolicy, split: Split) -> None:
    """ValueError where the policy's tokenizer leaves of a true answer a text that has not its form, or makes other
    statements."""
    rng, tasks = np.random.default_rng(0), TASKS if split.images is not None else TASKS[:1]
    examples = [make_example(split, task, int(i), rng) for task in tasks
                for i in rng.integers(len(split.rotmats), size=EXAMPLES)]
    for e, read in zip(examples, (e.answer for e in as_read(policy, examples))):
        well_formed = has_form(e.task, read)
        if not well_formed or captions.parse(words_of(read)) != captions.parse(words_of(e.answer)):
            fault = "which says something else" if well_formed else "which has not the form of an answer"
            raise ValueError(f"{policy.vlm.name_or_path}: its tokenizer leaves of the true answer {e.answer!r} the "
                             f"text {read!r}, {fault}; it would not be rewarded, so take another model")
