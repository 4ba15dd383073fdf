"""The figures that arXiv 2510.17699 reports, and what of them has been measured here."""

from gas.paper.results import Measured, read_results
from gas.paper.tables import TABLES, Cell, PaperTable, figures_of, table_by_name

__all__ = ["TABLES", "Cell", "Measured", "PaperTable", "figures_of", "read_results", "table_by_name"]
