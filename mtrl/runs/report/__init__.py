"""Report on runs: an HTML page that needs no other file, and its tables and figures as files."""

from mtrl.runs.report.comparison import Comparison, compare
from mtrl.runs.report.write import Report, write_report

__all__ = ["Comparison", "Report", "compare", "write_report"]
