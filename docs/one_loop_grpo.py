"""Group-relative policy optimisation of the small model, top to bottom, in plain torch and transformers.

    python docs/one_loop_grpo.py

This is what `posttrain run grpo` does, with everything left out that does not change the numbers: one question after
the other in place of a pool of answers that are drawn together, no micro-batches, checkpoints, ranks, report. A
test holds it to the same answers and updates as the full program. The pieces that it borrows are pure functions.
"""

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.advantages import Outcomes, group_normalised
from posttrain.data import Origin, Sample, Sequence
from posttrain.data.batch import Batch, collate
from posttrain.data.rendering import Rendering, render_prompt
from posttrain.data.scores import TokenScores
from posttrain.generation.engine import Sampling
from posttrain.generation.sampling import draw, stream
from posttrain.objectives.policy_gradient import clipped_surrogate
from posttrain.policy import model_path
from posttrain.sources.answering import stream_key
from posttrain.sources.order import Order
from posttrain.tasks.chains import Chains
from posttrain.training.step import step_seed

SEED, PROMPTS, N, NEW_TOKENS, LR = 0, 16, 8, 64, 5e-5


@torch.no_grad()
def answers(model, tokenizer, prompt: np.ndarray, key: int, seed: int) -> list[np.ndarray]:
    """`N` sampled answers `[R]` to one question, each from a random stream of its own, the end token included."""
    uniforms = torch.tensor(np.array([stream(seed, key, row).random(NEW_TOKENS) for row in range(N)]))
    read = torch.from_numpy(prompt.astype(np.int64)).repeat(N, 1)
    cache, drawn = None, torch.zeros(N, 0, dtype=torch.int64)
    while drawn.shape[1] < NEW_TOKENS and not (drawn == tokenizer.eos_token_id).any(1).all():
        out = model(input_ids=read, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        read, _, _ = draw(out.logits[:, -1], uniforms[:, drawn.shape[1]].float(), Sampling(temperature=1.0))
        read = read[:, None]
        drawn = torch.cat([drawn, read], dim=1)
    ends = [(row == tokenizer.eos_token_id).nonzero() for row in drawn]
    return [row[: int(end[0]) + 1 if len(end) else None].numpy() for row, end in zip(drawn, ends, strict=True)]


def as_sequence(sample: Sample, prompt: np.ndarray, answer: np.ndarray, advantage: float) -> Sequence:
    """What is trained: the answer's tokens, each with the advantage of the whole."""
    tokens = np.concatenate([prompt, answer]).astype(np.int32)
    own = np.arange(len(tokens)) >= len(prompt)
    origin = np.where(own, Origin.ROLLOUT, Origin.PROMPT).astype(np.uint8)
    columns = {"advantage": np.where(own, advantage, 0.0).astype(np.float32)}
    return Sequence(tokens, own, origin, sample.id, group=sample.id, columns=columns)


def target_logprobs(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """`[N]`: log p of every drawn token, given all tokens before it."""
    logits = model(input_ids=batch.rows.input_ids, use_cache=False).logits
    states_that_predict = logits.reshape(-1, logits.shape[-1])[batch.where]
    return torch.log_softmax(states_that_predict.float(), -1).gather(-1, batch.tokens[:, None]).squeeze(-1)


def train(model, tokenizer, task: Chains, questions: list[Sample], steps: int) -> list[tuple[float, float]]:
    """Ask, verify, compare, update. Returns each step's mean reward and norm of the gradient."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)
    rendering = Rendering(max_length=model.config.max_position_embeddings)
    order, log = Order(len(questions), SEED), []
    for step in range(steps):
        sequences, rewards = [], []
        for place in range(step * PROMPTS, (step + 1) * PROMPTS):
            question = questions[order[place]]
            prompt = render_prompt(question, tokenizer, rendering)
            drawn = answers(model, tokenizer, prompt, stream_key(question, place), step_seed(SEED, step))
            texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in drawn]
            earned = np.array([task.verify(question, text).value for text in texts])
            lengths = np.array([len(tokens) for tokens in drawn])
            weights = group_normalised(Outcomes(earned, np.zeros(N, np.int64), lengths))["advantage"]
            for tokens, weight in zip(drawn, weights, strict=True):
                sequences.append(as_sequence(question, prompt, tokens, float(weight[0])))
            rewards += earned.tolist()
        batch = collate(sequences)
        losses, _ = clipped_surrogate(TokenScores(target_logprobs(model, batch)), batch)
        loss = batch.mean_by_sequence(losses).mean()  # of each answer's tokens, then of the answers
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        log.append((float(np.mean(rewards)), norm.item()))
    return log


def main(steps: int = 30) -> None:
    """Reinforce right answers to chained arithmetic, and show how often they are right."""
    path = model_path("tiny")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).float(), AutoTokenizer.from_pretrained(path)
    task = Chains(part="train")
    log = train(model, tokenizer, task, task.samples(2000, seed=1), steps)
    for start in range(0, steps, 10):
        print(
            f"steps {start + 1} to {start + 10}: {np.mean([reward for reward, _ in log[start : start + 10]]):.1%} right"
        )


if __name__ == "__main__":
    main()
