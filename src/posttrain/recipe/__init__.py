"""The declarative recipe: its fields, and how it is read, checked and overridden."""

from posttrain.recipe.continual import evaluations_read, start_of
from posttrain.recipe.decoding import Decoding, Thinking
from posttrain.recipe.fields import (
    Asked,
    Continual,
    Curate,
    Evaluate,
    Generate,
    Merge,
    Recipe,
    Stage,
)
from posttrain.recipe.inputs import Data, Model
from posttrain.recipe.plans import Plans, Revise
from posttrain.recipe.reading import changed_fields, check_recipe, read_recipe, shipped_recipes, to_yaml
from posttrain.recipe.rollouts import RolloutServer, RolloutSource, Server
from posttrain.recipe.training import Train, Watch

__all__ = [
    "Asked",
    "Continual",
    "Curate",
    "Data",
    "Decoding",
    "Evaluate",
    "Generate",
    "Merge",
    "Model",
    "Plans",
    "Recipe",
    "Revise",
    "RolloutServer",
    "RolloutSource",
    "Server",
    "Stage",
    "Thinking",
    "Train",
    "Watch",
    "changed_fields",
    "check_recipe",
    "evaluations_read",
    "read_recipe",
    "shipped_recipes",
    "start_of",
    "to_yaml",
]
