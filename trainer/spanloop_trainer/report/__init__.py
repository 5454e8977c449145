"""One self-contained page about a run: what it gained, from which data, and where the time went."""

from spanloop_trainer.report.page import render, write_page
from spanloop_trainer.report.result import RunResult, load_result, save_result

__all__ = ["RunResult", "load_result", "render", "save_result", "write_page"]
