"""Low-rank adapters, through PEFT."""

from typing import Any

from torch import nn

from posttrain.adaptation.adapter import adapters
from posttrain.errors import UserError


@adapters.register("lora")
def lora(
    model: nn.Module,
    *,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    targets: str | list[str] = "all-linear",
    rslora: bool = False,
    dora: bool = False,
) -> nn.Module:
    """LoRA (arXiv 2106.09685) on the named linear layers ("all-linear": all but the head), as PEFT makes it.

    Only the adapters are trained. `alpha`/`rank` scales the update (`rslora`: alpha/sqrt(rank), arXiv 2312.03732);
    `dora` adds trained magnitudes (arXiv 2402.09353). Raises `UserError` when no layer has such a name.
    """
    from peft import LoraConfig, get_peft_model

    config: Any = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        use_rslora=rslora,
        use_dora=dora,
        task_type="SEQ_CLS" if type(model).__name__.endswith("ForSequenceClassification") else "CAUSAL_LM",
    )
    try:
        adapted: nn.Module = get_peft_model(model, config)
    except ValueError as error:
        names = sorted({name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise UserError(
            f"adapter 'lora', option 'targets': {targets!r} fits no layer; linear layers: {names}"
        ) from error
    return adapted
