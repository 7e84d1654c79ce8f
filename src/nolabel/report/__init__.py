"""report.html: a whole run on one page that opens from disk."""

from nolabel.report.page import report

__all__ = ["report"]
