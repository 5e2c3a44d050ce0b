"""Measuring: what a model says, how good it is, and how sure that is."""

from posttrain.evaluation.evaluator import answer_of, check_errors, reranked, summarise
from posttrain.evaluation.gap_recovered import (
    ReasoningGapRecovered,
    gap_recovered,
    hierarchical_gap_recovered,
    reasoning_gap_recovered,
)
from posttrain.evaluation.metrics import LogLikelihood, log_likelihood
from posttrain.evaluation.result import Answer, Comparison, EvaluationResult, Problem, compare_results
from posttrain.evaluation.saturation import Saturation, saturation
from posttrain.evaluation.statistics import (
    Difference,
    Interval,
    hierarchical_bootstrap,
    hierarchical_difference,
    holm,
    in_words,
    paired_difference,
)

__all__ = [
    "Answer",
    "Comparison",
    "Difference",
    "EvaluationResult",
    "Interval",
    "LogLikelihood",
    "Problem",
    "ReasoningGapRecovered",
    "Saturation",
    "answer_of",
    "check_errors",
    "compare_results",
    "gap_recovered",
    "hierarchical_bootstrap",
    "hierarchical_difference",
    "hierarchical_gap_recovered",
    "holm",
    "in_words",
    "log_likelihood",
    "paired_difference",
    "reasoning_gap_recovered",
    "reranked",
    "saturation",
    "summarise",
]
