"""Report on runs: an HTML page that needs no other file, and its tables and figures as files."""

from mtrl.report.comparison import Comparison, compare
from mtrl.report.page import Report, write_report

__all__ = ["Comparison", "Report", "compare", "write_report"]
