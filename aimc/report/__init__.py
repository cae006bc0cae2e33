"""Tables and figures, built from the records of runs and nothing else."""

from aimc.report.comparison import (
    compared_sha256,
    comparison_table,
    draw_comparison,
    load_comparison,
    provenance,
)
from aimc.report.figures import draw, drawn_sha256
from aimc.report.in_memory_figures import draw_accuracy, draw_telemetry
from aimc.report.reading import Evaluated, RunReport, load_run
from aimc.report.tables import (
    Table,
    command_of,
    markdown,
    markdown_table,
    show,
    show_evaluations,
    show_table,
    summary_table,
    tables,
    transfer_table,
)

__all__ = [
    "Evaluated",
    "RunReport",
    "Table",
    "command_of",
    "compared_sha256",
    "comparison_table",
    "draw",
    "draw_accuracy",
    "draw_comparison",
    "draw_telemetry",
    "drawn_sha256",
    "load_comparison",
    "load_run",
    "markdown",
    "markdown_table",
    "provenance",
    "show",
    "show_evaluations",
    "show_table",
    "summary_table",
    "transfer_table",
    "tables",
]
