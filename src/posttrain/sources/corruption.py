"""Corrupted demonstrations: some tokens that the model reads are replaced; those that it learns to write stay clean."""

import hashlib
from collections.abc import Sequence as List
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from posttrain.data import Origin, Sequence
from posttrain.data.step import Step
from posttrain.errors import UserError, nearest
from posttrain.sources.transforms import transform

Share = Annotated[float, Field(ge=0, le=1)]
Where = Literal["response", "prompt", "all"]
Ids = npt.NDArray[np.int32]

MASK_TOKENS = ("<|mask|>", "<mask>", "[MASK]")
"""What tokenizers without a `mask_token` of their own may still call one."""


@transform("corrupt")
def corrupt(
    sequences: List[Sequence],
    step: Step,
    *,
    rate: Share = 0.4,
    ramp: Annotated[float, Field(ge=0)] = 2 / 3,
    random: Share = 0.0,
    where: Where = "response",
    vary: bool = False,
    mask_token: str | None = None,
) -> list[Sequence]:
    """Masked thought: each token of the response is hidden from the model with probability p, and still learnt.

    Input w̃_i = noise if u_i < p, else w_i;  labels w_i;  p = min(rate, rate · step / (ramp · steps + 1)).

    arXiv 2403.02178 (equation 1), by sheet 34; the authors' code agrees. Fresh draws at every visit, from the step's
    seed, the sequence and the position alone. All trained tokens count in the loss, hidden or not; hidden ones have the
    origin `corrupted`, so that `objective: {name: nll, origins: [demonstration]}` is the paper's ablation without them.

    - `rate`: p after the ramp. Paper: 0.4 for worked solutions in words, 0.2 for formulas.
    - `ramp`: how long p rises from 0, in steps; below 1: share of the run (paper: two thirds); 0: no rise.
    - `random`: share of the hidden tokens that become a random token; the others become the mask token. Random tokens
      are uniform over the vocabulary without its special and other added tokens (the authors draw from all: in a small
      vocabulary these would be a large share).
    - `where`: `response` (trained tokens), `prompt` (all others) or `all`; the paper found that the prompt must stay.
    - `vary`: p is drawn anew for each step, uniformly from 0 to its scheduled value.
    - `mask_token`: default the tokenizer's own, or one that is called a mask; a free token of the vocabulary does.

    The authors add a new token to the embedding where this takes one that is there; hidden tokens are attended to (the
    paper found no difference when they are not, which is left out, as are the model's own samples as noise).
    """
    p = step.ramped(rate, ramp)
    if vary:
        p *= float(np.random.default_rng([step.seed]).random())
    mask = _mask_id(step.policy.tokenizer, mask_token) if random < 1 else -1
    return [_corrupted(sequence, step, p, random, where, mask) for sequence in sequences]


def _corrupted(sequence: Sequence, step: Step, p: float, random: float, where: Where, mask: int) -> Sequence:
    draws = np.random.default_rng([step.seed, _name(sequence)]).random((len(sequence), 3))
    hidden = draws[:, 0] < p
    if where != "all":
        hidden &= sequence.target == (where == "response")
    noise = np.full(len(sequence), mask, dtype=np.int32)
    if random:
        noise = np.where(draws[:, 1] < random, random_tokens(draws[:, 2], step.policy.tokenizer), noise)
    return hide(sequence, hidden, noise)


def hide(sequence: Sequence, hidden: npt.NDArray[np.bool_], noise: Ids) -> Sequence:
    """The sequence whose model reads `noise[T]` instead of the `hidden[T]` tokens; itself where none is hidden."""
    if not hidden.any():
        return sequence
    read = sequence.tokens if sequence.inputs is None else sequence.inputs
    return replace(
        sequence,
        inputs=np.where(hidden, noise, read).astype(np.int32),
        origin=np.where(hidden, Origin.CORRUPTED, sequence.origin).astype(np.uint8),
    )


def random_tokens(uniforms: npt.NDArray[np.float64], tokenizer: Any) -> Ids:
    """One token for each number in [0, 1), uniform over the vocabulary without its special and other added tokens."""
    added = np.array(sorted(tokenizer.added_tokens_decoder), dtype=np.int64)
    drawn = (uniforms * (len(tokenizer) - len(added))).astype(np.int64)
    # The k-th ordinary token is k, moved up by the added tokens before it.
    moved: Ids = (drawn + np.searchsorted(added - np.arange(len(added)), drawn, side="right")).astype(np.int32)
    return moved


def _mask_id(tokenizer: Any, name: str | None) -> int:
    vocabulary = tokenizer.get_added_vocab()
    names = [name] if name is not None else [tokenizer.mask_token, *MASK_TOKENS]
    for found in names:
        if found is not None and found in vocabulary:
            return int(vocabulary[found])
    if name is not None:
        raise UserError(
            f"transform 'corrupt': the tokenizer has no special token '{name}': {nearest(name, vocabulary)}"
        )
    raise UserError(
        "transform 'corrupt': the tokenizer has no mask token; give 'mask_token' one of its special tokens that the "
        f"data do not use ({', '.join(sorted(vocabulary)) or 'it has none'}), or set random: 1.0 to need none"
    )


def _name(sequence: Sequence) -> int:
    content = f"{sequence.sample_id}/{sequence.group}/".encode() + sequence.tokens.tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
