"""The declarative recipe: its fields, and how it is read, checked and overridden."""

from posttrain.recipe.decoding import Decoding, Thinking
from posttrain.recipe.fields import (
    Asked,
    Curate,
    Data,
    Evaluate,
    Generate,
    Merge,
    Model,
    Recipe,
    RolloutSource,
    Server,
    Stage,
    Train,
    Watch,
)
from posttrain.recipe.reading import changed_fields, check_recipe, read_recipe, shipped_recipes, to_yaml

__all__ = [
    "Asked",
    "Curate",
    "Data",
    "Decoding",
    "Evaluate",
    "Generate",
    "Merge",
    "Model",
    "Recipe",
    "RolloutSource",
    "Server",
    "Stage",
    "Thinking",
    "Train",
    "Watch",
    "changed_fields",
    "check_recipe",
    "read_recipe",
    "shipped_recipes",
    "to_yaml",
]
