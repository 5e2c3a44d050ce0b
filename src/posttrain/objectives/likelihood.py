"""Losses on the likelihood of demonstrated tokens."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from posttrain.data.batch import Batch
from posttrain.data.scores import LOG_PARTITION, MEAN_LOGPROB, Need, TokenScores
from posttrain.objectives.objective import objective

Share = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]


def _nll_needs(*, label_smoothing: float, z_loss: float) -> tuple[Need, ...]:
    return ((MEAN_LOGPROB,) if label_smoothing else ()) + ((LOG_PARTITION,) if z_loss else ())


@objective("nll", needs=_nll_needs)
def nll(scores: TokenScores, batch: Batch, *, label_smoothing: Share = 0.0, z_loss: NonNegative = 0.0) -> Tensor:
    """Negative log-likelihood `[N]`: plain supervised fine-tuning.

    ℓ_t = -(1-ε) log p(y_t) - ε (1/V) Σ_v log p(v) + ζ (log Z_t)²,  ε = `label_smoothing`, ζ = `z_loss`.

    Label smoothing: Szegedy et al. 2016 (arXiv 1512.00567, section 7), the same as torch's `cross_entropy`. z-loss:
    PaLM (arXiv 2204.02311, section 5), usual value 1e-4.
    """
    loss = -scores.logprobs
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * scores["mean_logprob"]
    if z_loss:
        loss = loss + z_loss * scores["log_partition"].square()
    return loss
