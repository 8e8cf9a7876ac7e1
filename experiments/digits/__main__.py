"""The command: do the runs that are missing, then write tables and pictures. See `python -m experiments.digits -h`."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import click

from experiments.digits.report import write_report
from experiments.digits.runs import OtherSettings, run_all
from experiments.digits.training import Settings

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PAGE = HERE.parent.parent / "docs" / "experiment.md"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS,
    help="Where finished runs are kept; runs found there are not done again.",
)
@click.option("--report-only", is_flag=True, help="Train nothing: only write tables and pictures again.")
def main(results: Path, report_only: bool) -> None:
    """Train both models with every loss, and write docs/experiment.md's tables and pictures.

    It may be ended at any time and goes on where it was. To start anew, name an empty folder with --results: the
    page and its pictures are then written there, and those of docs/ are left alone.
    """
    began = time.perf_counter()
    if not report_only:
        try:
            run_all(results, Settings())
        except OtherSettings as error:
            raise click.ClickException(str(error)) from error
    page = PAGE
    if results.resolve() != RESULTS:
        page = results / PAGE.name
        shutil.copy(PAGE, page)
    write_report(results, page)
    click.echo(f"written: {page} and its pictures, after {(time.perf_counter() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
