"""Is what was saved what was trained? The folder is loaded again and compared on a few rows."""

from pathlib import Path

import torch

from posttrain.data.batch import collate
from posttrain.data.token_store import EncodedDataset
from posttrain.generation import Prompt, Sampling
from posttrain.generation.local import LocalEngine
from posttrain.policy import ModelOptions, Policy

ROWS = 4
LARGEST = 2 * 10**9
"""Parameters; a larger model is not loaded a second time beside itself."""


class SavedModelDiffersError(Exception):
    """The saved folder does not answer like the model that was trained."""


@torch.no_grad()
def check_saved(policy: Policy, folder: Path, dataset: EncodedDataset) -> dict[str, float]:
    """Largest difference of log-probs on a few training rows between the trained and the reloaded model.

    Raises `SavedModelDiffersError` when it is above what rounding explains, or when greedy answers differ although
    the log-probs are the same to 1e-5.
    """
    if sum(p.numel() for p in policy.model.parameters()) > LARGEST:
        return {}
    dtype = next(policy.model.parameters()).dtype
    options = ModelOptions(dtype="bfloat16" if dtype == torch.bfloat16 else "float32")
    saved = Policy.load(str(folder), options, policy.device)
    policy.model.eval()
    rows = [dataset[index] for index in range(min(ROWS, len(dataset)))]
    batch = collate(rows, layout=policy.layout).to(policy.device)
    packed = collate(rows, layout=saved.layout).to(policy.device)
    difference = float((policy.scores(batch).logprobs - saved.scores(packed).logprobs).abs().max())
    limit = 1e-3 if dtype == torch.float32 and not policy.autocast else 0.3
    if difference > limit:
        raise SavedModelDiffersError(
            f"the model saved in '{folder}' gives other log-probs than the trained one (difference {difference:.3g}, "
            f"allowed {limit:g}): do not use that folder; the last checkpoint holds the trained weights"
        )
    prompts = [Prompt(row.tokens[: int(row.target.argmax())]) for row in rows]
    sampling = Sampling(max_new_tokens=16, temperature=0.0)
    trained, reloaded = (LocalEngine(p.model, p.tokenizer).generate(prompts, 1, sampling) for p in (policy, saved))
    same = sum(a.text == b.text for a, b in zip(trained, reloaded, strict=True))
    if same < len(rows) and difference < 1e-5:
        raise SavedModelDiffersError(f"the model saved in '{folder}' gives other greedy answers than the trained one")
    return {"reload_difference": difference, "reload_same_answers": same / len(rows)}
