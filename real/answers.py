"""Answers as tokens: joined to the prompt as the chat template joins them, and read back in this project's spelling.

    Assistant:| The SMPL pose of this person is <POSE>.        the template's own turn; | is where the prompt ends
A tokenizer may put spaces around <POSE>, or take capitals away. Form, words and exact answers are therefore judged on
what is left of the true answer once it has been tokens: `read_answer` gives the sentence of the pose its own spelling
again, `as_read` gives examples whose true answers were tokens, too.
Read next: engine/true_answers.py, which refuses a tokenizer that leaves too little.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jinja2 import TemplateError
from torch import Tensor, nn

from captions import POSE_ANSWER
from real.prompts import PLACEHOLDER

ANSWER = "(the answer)"  # stands for an answer while its chat template is filled


class AnswerFrame(NamedTuple):
    """How an answer follows its prompt, and how it is read."""
    before: str  # a prompt, and what the template writes between it and an answer; "" where it knows no answers
    join: str  # the latter alone
    sentences: tuple[str, ...] = ()  # how POSE_ANSWER reads after it has been tokens


def answer_frame(processor, frame: str) -> AnswerFrame:
    """From the chat template's own turns. frame: what it writes of a prompt and at the beginning of an answer."""
    tokenizer, join = processor.tokenizer, None
    turns = [{"role": role, "content": [{"type": "text", "text": text}]}
             for role, text in (("user", PLACEHOLDER), ("assistant", ANSWER))]
    try:
        whole = processor.apply_chat_template(turns)
        if whole.startswith(frame) and ANSWER in whole:
            join = whole[len(frame):whole.index(ANSWER)]
    except (TemplateError, TypeError):  # of a template that knows no answers, or none in parts
        pass
    made = AnswerFrame("", "") if join is None else AnswerFrame(frame + join, join)
    alone, after = (tokenizer.decode(ids) for ids in answer_ids(tokenizer, made, [POSE_ANSWER, f"So. {POSE_ANSWER}"]))
    read = {alone.strip(), after.partition(".")[2].strip()} - {""}
    return made._replace(sentences=tuple(sorted(read, key=len, reverse=True)))


def answer_ids(tokenizer, frame: AnswerFrame, answers: Sequence[str]) -> list[list[int]]:
    """The tokens of answers as they follow a prompt, without the end token.

    Behind a prompt a word may be other tokens than at the beginning of a text. Where its first letters would become one
    token with the end of the prompt, which is fixed, they stand alone."""
    alone = tokenizer(list(answers), add_special_tokens=False).input_ids
    if not frame.before:
        return alone
    together = tokenizer([frame.before + answer for answer in answers], add_special_tokens=False).input_ids
    prompt = tokenizer(frame.before.removesuffix(frame.join), add_special_tokens=False).input_ids
    return [row[len(prompt):] if row[:len(prompt)] == prompt else own for row, own in zip(together, alone)]


def tokenize_answers(policy, examples: Sequence) -> tuple[Tensor, Tensor]:
    """The true answers with their end token: ids and bool mask, (B, 1, T); policy: a model.PosePolicy."""
    tokenizer = policy.tokenizer
    rows = [torch.tensor(ids + [tokenizer.eos_token_id])
            for ids in answer_ids(tokenizer, policy.answer_frame, [e.answer for e in examples])]
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    mask = torch.arange(tokens.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    return tokens[:, None].to(policy.device), mask[:, None].to(policy.device)


def read_answer(policy, ids: Sequence[int] | Tensor) -> str:
    """The text of an answer's tokens (T,), its sentence of the pose spelled as in POSE_ANSWER."""
    text = policy.tokenizer.decode(ids).removeprefix(policy.answer_frame.join)
    for sentence in policy.answer_frame.sentences:
        text = text.replace(sentence, POSE_ANSWER)
    return text


def as_read(policy, examples: Sequence) -> list:
    """The examples with their true answers as they read after they have been tokens."""
    rows = answer_ids(policy.tokenizer, policy.answer_frame, [e.answer for e in examples])
    return [replace(e, answer=read_answer(policy, ids)) for e, ids in zip(examples, rows)]
