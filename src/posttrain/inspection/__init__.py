"""What `posttrain inspect` shows: the tokens that a stage will see, and which of them are trained."""

from posttrain.inspection.samples import Inspection, Piece, Shown, inspect, inspected_stage
from posttrain.inspection.view import painted, show

__all__ = ["Inspection", "Piece", "Shown", "inspect", "inspected_stage", "painted", "show"]
