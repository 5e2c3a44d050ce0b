"""What a run says of itself: one HTML page, made from the files of its directory."""

from posttrain.reporting.report import write_report

__all__ = ["write_report"]
