"""A critic: what an answer is expected to earn from each of its tokens on."""

from typing import Any

import torch
from torch import Tensor, nn

from posttrain.data.batch import Batch
from posttrain.policy.loading import bare_model
from posttrain.policy.states import states_at_targets


class Critic(nn.Module):
    """A scalar head, 0 at first, on the policy's own states (`model` None) or on those of a model of its own.

    On the policy's own states its loss moves the policy's weights, too (ReFT, arXiv 2401.08967); a model of its own
    costs a second forward and backward, and moves alone (PPO as InstructGPT has it).
    """

    def __init__(self, policy_model: Any, model: nn.Module | None = None) -> None:
        super().__init__()
        body = bare_model(policy_model if model is None else model)
        like = body.get_input_embeddings().weight
        self.model = model
        self.value = nn.Linear(body.config.get_text_config().hidden_size, 1, device=like.device)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, batch: Batch, hidden: Tensor) -> Tensor:
        """`[N]` float32 values of the states that predict the targets; `hidden[N, d]`: the policy's."""
        states = hidden if self.model is None else states_at_targets(self.model, batch)
        with torch.autocast(states.device.type, enabled=False):
            values: Tensor = self.value(states.float()).squeeze(-1)
        return values
