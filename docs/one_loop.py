"""Supervised fine-tuning of the small model, top to bottom, in plain torch and transformers.

    python docs/one_loop.py

This is what `posttrain run sft` does, with everything left out that does not change the numbers: no micro-batches, no
chunks of the vocabulary, no checkpoints, no ranks, no report. A test holds it to the same losses as the full program.
The pieces that it borrows are pure functions: how a conversation becomes tokens and a mask, the loss, the schedule.
"""

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.data import Sample, Sequence
from posttrain.data.batch import Batch, collate
from posttrain.data.rendering import Rendering, render_batch, render_prompt
from posttrain.data.scores import TokenScores
from posttrain.objectives.likelihood import nll
from posttrain.policy import model_path
from posttrain.tasks.chains import Chains
from posttrain.training.learning_rate import learning_rate_factor

SEED, BATCH, EPOCHS, PEAK, WARMUP = 0, 32, 2, 1e-3, 0.05


def target_logprobs(model: torch.nn.Module, batch: Batch) -> Tensor:
    """`[N]`: log p of every trained token, given all tokens before it. Rows are padded on the right: no mask needed."""
    logits = model(input_ids=batch.rows.input_ids, use_cache=False).logits  # [R, L, V]
    states_that_predict = logits.reshape(-1, logits.shape[-1])[batch.where]  # [N, V]
    return torch.log_softmax(states_that_predict.float(), -1).gather(-1, batch.tokens[:, None]).squeeze(-1)


def epoch_order(rows: int, epoch: int) -> list[int]:
    """The order of a pass over the data: a function of the seed and the epoch."""
    return np.random.default_rng([SEED, epoch]).permutation(rows).tolist()


def train(model: torch.nn.Module, data: list[Sequence], epochs: float = EPOCHS) -> list[float]:
    """AdamW on the mean negative log-likelihood of the assistants' tokens. Returns the loss of every step."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.0, fused=True)
    seen = round(epochs * len(data))
    order = [row for epoch in range(-(-seen // len(data))) for row in epoch_order(len(data), epoch)][:seen]
    steps = -(-seen // BATCH)
    losses = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = PEAK * learning_rate_factor(step, steps, "cosine", warmup=WARMUP)
        batch = collate([data[row] for row in order[step * BATCH : (step + 1) * BATCH]])
        scores = TokenScores(target_logprobs(model, batch))
        loss = nll(scores, batch).mean()  # over the trained tokens of the whole step
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss))
    return losses


@torch.no_grad()
def answer(model: torch.nn.Module, tokenizer, sample: Sample, rendering: Rendering, new_tokens: int = 64) -> str:
    """The model's greedy answer."""
    tokens = torch.from_numpy(render_prompt(sample, tokenizer, rendering).astype(np.int64))[None]
    start = tokens.shape[1]
    while tokens.shape[1] < start + new_tokens:
        following = model(input_ids=tokens, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        if following.item() == tokenizer.eos_token_id:
            break
        tokens = torch.cat([tokens, following], dim=1)
    return tokenizer.decode(tokens[0, start:])


def main(rows: int = 4000) -> None:
    """Train on chained arithmetic and count right answers before and after."""
    path = model_path("tiny")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).float(), AutoTokenizer.from_pretrained(path)
    rendering = Rendering(max_length=model.config.max_position_embeddings)
    demonstrations = Chains(part="train").samples(rows, seed=1)
    data = [item.sequence for item in render_batch(demonstrations, tokenizer, rendering)]
    task = Chains(part="test")
    problems = task.samples(50, seed=2)

    def right() -> float:
        return sum(task.verify(p, answer(model, tokenizer, p, rendering)).value for p in problems) / len(problems)

    print(f"right before: {right():.0%}")
    losses = train(model, data)
    print(f"loss: {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last of {len(losses)}")
    print(f"right after: {right():.0%}")
    for problem in problems[:3]:
        print(problem.prompt_text, "->", answer(model, tokenizer, problem, rendering))


if __name__ == "__main__":
    main()
