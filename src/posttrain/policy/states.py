"""The states that a model's body gives, before any head."""

from typing import Any

from torch import Tensor

from posttrain.data.batch import Batch, Rows
from posttrain.policy.loading import bare_model
from posttrain.policy.prefixes import continued_states


def states_at_targets(
    model: Any, batch: Batch, embeddings: Tensor | None = None, *, reader: object | None = None
) -> Tensor:
    """`[N, d]`: the last hidden state at the position that predicts each target token.

    `reader`: who reads shared prefixes with the model as it is now; None: the model itself.
    """
    if batch.rows.continued is None:
        hidden = row_states(model, batch.rows, embeddings)
    else:
        hidden = continued_states(bare_model(model).base_model, batch.rows, batch.rows.continued, reader or model)
    return hidden.reshape(-1, hidden.shape[-1])[batch.where]


def row_states(model: Any, rows: Rows, embeddings: Tensor | None = None) -> Tensor:
    """`[R, L, d]`: the last hidden states (after the final norm). `embeddings[R, L, d]` replace the tokens'."""
    read = {"input_ids": rows.input_ids} if embeddings is None else {"inputs_embeds": embeddings}
    body = bare_model(model).base_model
    hidden: Tensor = body(**read, position_ids=rows.position_ids, use_cache=False, **rows.extras).last_hidden_state
    return hidden
