"""Where an answer ends: whether its end is trained."""

from collections.abc import Sequence as List
from dataclasses import replace

from posttrain.data import Sequence
from posttrain.data.step import Step
from posttrain.sources.transforms import transform


@transform("open_ended")
def open_ended(sequences: List[Sequence], step: Step) -> list[Sequence]:
    """Cut the special tokens off the end of each sequence: its last answer is a beginning, and the model does not learn
    to stop there. Of first steps (paper 11) that are written like the beginning of a whole solution, what is left is
    the paper's -log P(s_1 | p) to the letter.
    """
    special = frozenset(step.policy.tokenizer.all_special_ids)
    return [_without_end(sequence, special) for sequence in sequences]


def _without_end(sequence: Sequence, special: frozenset[int]) -> Sequence:
    length = len(sequence)
    while length > 1 and int(sequence.tokens[length - 1]) in special:
        length -= 1
    return replace(
        sequence,
        tokens=sequence.tokens[:length],
        target=sequence.target[:length],
        origin=sequence.origin[:length],
        inputs=None if sequence.inputs is None else sequence.inputs[:length],
        columns={name: values[:length] for name, values in sequence.columns.items()},
    )
