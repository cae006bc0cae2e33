"""Tables and figures, built from the records of runs and nothing else."""

from aimc.report.figures import draw
from aimc.report.reading import Evaluated, RunReport, load_run
from aimc.report.tables import markdown, show, tables

__all__ = ["Evaluated", "RunReport", "draw", "load_run", "markdown", "show", "tables"]
