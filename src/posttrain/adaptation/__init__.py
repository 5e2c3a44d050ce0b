"""Which parameters move, and how they are held."""

from posttrain.adaptation import lora
from posttrain.adaptation.adapter import adapters

__all__ = ["adapters", "lora"]
