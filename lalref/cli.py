"""The command line: parses, calls, prints, and gives the exit code. What is done lives elsewhere.

Nothing heavy is imported before a command runs, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import json
import math
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import click

import lalref

EXIT_INCONCLUSIVE = 3
DTYPES = ("float16", "bfloat16", "float32", "float64")
FRAMEWORKS = ("numpy", "torch", "jax", "tensorflow")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(lalref.__version__, message="%(prog)s %(version)s")
def main() -> None:
    """The locally adaptive learning loss: judge an implementation of it, and see what this machine offers.

    \b
    lalref verify my_loss.py:loss --framework torch    is this port right?
    lalref doctor                                      what works here?
    lalref COMMAND --help                              the options of each

    Exit codes: 0 all is well, 1 something is wrong, 2 the command was not understood, 3 inconclusive.
    """


def bar(items: Iterable[Any]) -> Iterable[Any]:
    """The items, with a bar on stderr that goes away when they are through."""
    from rich.console import Console
    from rich.progress import track

    return track(items, "asking", console=Console(stderr=True), transient=True)


def load_subject(ctx: click.Context, param: click.Parameter, value: str | None) -> Callable[..., Any] | None:
    """Return the function that FILE.py:FUNCTION names, the file loaded as `python FILE.py` would."""
    if value is None:
        return None
    file, _, function = value.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not function:
        raise click.BadParameter(f"{value!r} is not of the form FILE.py:FUNCTION, as in my_loss.py:loss")
    if not path.is_file():
        raise click.BadParameter(f"there is no file {file!r}; the current folder is {Path.cwd()}")
    module_name = f"subject_{path.stem}"  # can't hide an installed package of the file's name
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise click.BadParameter(f"{file!r} can't be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    # first, as Python would: but a torch.py of one's own must not hide torch
    hides = importlib.machinery.PathFinder.find_spec(path.stem) is not None
    sys.path.insert(len(sys.path) if hides else 0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a script that exits must not pass for a verdict
        own_frames = [
            frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
        ]
        told = [*traceback.format_list(own_frames[-1:]), *traceback.format_exception_only(error)]
        if isinstance(error, ModuleNotFoundError) and error.name in FRAMEWORKS:
            told.append(f"pip install {error.name} brings it into the environment that lalref runs in")
        raise click.BadParameter(f"{file!r} can't be imported:\n{''.join(told).rstrip()}") from error
    found = getattr(module, function, None)
    if not callable(found):
        own = [name for name, each in vars(module).items() if getattr(each, "__module__", "") == module_name]
        raise click.BadParameter(f"{file!r} has no function {function!r}; it has {', '.join(own) or 'none'}")
    return found  # type: ignore[no-any-return]


def parse_fixed(ctx: click.Context, param: click.Parameter, value: str) -> dict[str, Any]:
    """Return the values by name; a bare word is itself, so that space=probabilities needs no quotes."""
    words = {"inf": math.inf, "none": None}
    found: dict[str, Any] = {}
    for item in _split_outside_brackets(value) if value else []:
        name, _, text = (part.strip() for part in item.partition("="))
        if not (name.isidentifier() and text):
            raise click.BadParameter(f"{item!r} is not of the form name=value, as in sigma=1.5,kernel_size=3")
        try:
            found[name] = words[text.lower()] if text.lower() in words else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found


def _split_outside_brackets(text: str) -> list[str]:
    """Split at the commas that are not inside (...) or [...]."""
    items, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            items.append("")
        else:
            items[-1] += character
    return items


@main.command(short_help="Tell whether an implementation is right.")
@click.argument("subject", callback=load_subject, metavar="[FILE.py:FUNCTION]", required=False)
@click.option(
    "--command",
    metavar="'./my_loss {case} {out}'",
    help="Judge a program instead: it reads .npy and .json from the folder {case} and writes value.npy and "
    "grad.npy into {out}.",
)
@click.option("--takes", metavar="name,...", help="Options that the program reads.  [default: all not fixed]")
@click.option(
    "--time-limit", type=float, default=10.0, show_default=True, help="Seconds that it has for one case."
)
@click.option("--framework", type=click.Choice(FRAMEWORKS), default="numpy", show_default=True)
@click.option(
    "--dtype", type=click.Choice(DTYPES), help="Judge in this dtype alone.  [default: float32 and float64]"
)
@click.option(
    "--fixed",
    metavar="name=value,...",
    default="",
    callback=parse_fixed,
    help="Options that FUNCTION has built in; their right answers are worked out on the spot, in seconds.",
)
@click.option("--quick", is_flag=True, help="A selection of the cases: a first answer.")
@click.option("--strict", is_flag=True, help="Let the extended features decide too.")
@click.option(
    "--json",
    "json_file",
    type=click.File("w", encoding="utf-8", lazy=False),
    help="Write the report to this file too.",
)
@click.option(
    "--junit",
    "junit_file",
    type=click.File("w", encoding="utf-8", lazy=False),
    help="Write it as JUnit XML too, one testcase a case, for a CI server.",
)
def verify(
    subject: Callable[..., Any] | None,
    command: str | None,
    takes: str | None,
    time_limit: float,
    framework: str,
    dtype: str | None,
    fixed: dict[str, Any],
    quick: bool,
    strict: bool,
    json_file: IO[str] | None,
    junit_file: IO[str] | None,
) -> None:
    """Tell whether a function or a program computes the locally adaptive learning loss and its gradient.

    FUNCTION is called as f(logits, labels, **options). With --framework numpy it returns (value, gradient);
    with the others it returns the value, and the framework differentiates it.

    Exit code: 0 right, 1 wrong, 2 the command was not understood, 3 inconclusive.
    """
    from rich.console import Console

    from lalref import oracle

    if (subject is None) == (command is None):
        raise click.UsageError("name what is to be judged: FILE.py:FUNCTION, or a program with --command")
    if takes is not None and command is None:
        raise click.UsageError("--takes is for --command; the options of a function are in its signature")
    try:
        named = takes.replace(" ", "").split(",") if takes is not None else None
        report = oracle.verify(
            subject or oracle.Command(str(command), fixed, named, time_limit),
            framework=framework,
            dtype=dtype,
            fixed=fixed if subject else None,
            quick=quick,
            strict=strict,
            shrink=True,
            progress=bar,
        )
    except oracle.UsageError as error:
        raise click.UsageError(str(error)) from error
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # exit code 1 or 0 would be a verdict
        traceback.print_exception(error)
        click.echo("No verdict: this ended before all cases were tried.", err=True)
        sys.exit(EXIT_INCONCLUSIVE)
    Console(highlight=False).print(report, crop=False)  # code to paste stays whole
    if json_file is not None:
        json_file.write(json.dumps(report.to_dict(), indent=2) + "\n")
    if junit_file is not None:
        from lalref.oracle.junit import junit

        junit_file.write(junit(report))
    sys.exit(report.exit_code)


@main.group(short_help="The right answers: export, check, make.")
def golden() -> None:
    """The right answers: write them as files, or work them out again by truth."""


@golden.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--format", "form", type=click.Choice(["npz", "json"]), default="npz", show_default=True)
def export(folder: Path, form: str) -> None:
    """Write every case, its right answers and its stages into FOLDER, for other languages and other CI."""
    from lalref.oracle import golden as values
    from lalref.oracle.export import export as write

    try:
        files = write(folder, form)
    except OSError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{len(files) - 1} cases of version {values.version()} and index.json in {folder}")


@golden.command()
@click.option("--sample", type=click.IntRange(min=1), help="Only every so-many-th case.")
def check(sample: int | None) -> None:
    """Work the stored answers out again, by truth, and compare."""
    from rich.progress import track

    from lalref.oracle import golden as values

    found = values.check(sample, progress=track)
    if found.different:
        raise click.ClickException(f"these differ from truth: {', '.join(found.different)}")
    click.echo(
        f"{found.cases} cases are as truth has them; the largest radius is 2^-{found.bits:.1f} of its number"
    )


@golden.command()
def make() -> None:
    """Write the stored answers anew, by truth: for a change in the table of cases."""
    from rich.progress import track

    from lalref.oracle import golden as values
    from lalref.oracle.cases import CASES

    answers = {case.name: values.make(case) for case in track(CASES, "answers")}
    stages = {case.name: values.make_stages(case) for case in track(CASES, "stages")}
    click.echo(f"version {values.save(answers, stages)}")


@main.group(short_help="Hold the oracle to its own promises.")
def oracle() -> None:
    """Hold the oracle itself to what it promises."""


@oracle.command("false-alarms")
@click.option("--runs", type=click.IntRange(min=1), default=500, show_default=True, help="How many.")
def false_alarms(runs: int) -> None:
    """Put honest implementations of many kinds to the cases, and count how often one is accused.

    A run is one of 19440 ways to compute the loss (order of sums, fused multiply-add, formulas), one core case and
    one dtype. Exit code: 0 no false alarm, 1 some.
    """
    from lalref.oracle.false_alarms import false_alarms as count

    try:
        found = count(runs, bar)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(found)
    sys.exit(1 if found.alarms else 0)


@oracle.command("report")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), default="docs", show_default=True)
def oracle_report(folder: Path) -> None:
    """Run the whole catalogue of mistakes, beside other gradient checkers, and write oracle-report.md and .json.

    Minutes; checkers that are not installed are left out. Exit code: 0 all are refused by far, 1 one is not.
    """
    from lalref.oracle.oracle_report import write

    written = write(folder, bar)
    click.echo(written.page)
    if written.missed:
        raise click.ClickException("the oracle lets pass:\n" + "\n".join(written.missed))


@main.command(short_help="Time the engines beside other ways.")
@click.option("--quick", is_flag=True, help="Only 3 x 3 and 5 x 5 windows on the small batch.")
@click.option("--seconds", default=6.0, show_default=True, help="How long to time each group of calls.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all results here too."
)
@click.option(
    "--picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw time against window size, a PNG."
)
def bench(quick: bool, seconds: float, json_file: Path | None, picture: Path | None) -> None:
    """Time the engines beside other ways to compute this loss, each checked first."""
    from lalref.bench import main as run

    try:
        run(quick=quick, seconds=seconds, json_file=json_file, picture=picture)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


@main.command(short_help="What works on this machine, and why.")
def doctor() -> None:
    """Show versions, which engines work here and why, and threads.

    Compiles the numba engine where that was not done before, so that no later call has to wait for it.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lalref.doctor import compilation, engines, threads, versions

    console = Console(highlight=False)
    table = Table(title="Versions", title_justify="left", show_header=False)
    for name, version in versions().items():
        table.add_row(name, version or "[dim]not installed[/dim]")
    console.print(table)

    table = Table(title="Machine code of the numba engine", title_justify="left", show_header=False)
    # before the engines are tried, which would compile a part of it untimed
    with console.status("compiling the numba engine, once for this machine and version"):
        for dtype, cost in compilation().items():
            table.add_row(dtype, cost)
    if table.row_count:
        console.print(table)

    table = Table(title="Engines", title_justify="left", show_header=False)
    with console.status("trying the engines"):
        for engine in engines():
            table.add_row(
                engine.name, "available" if engine.available else "not available", escape(engine.reason)
            )
    console.print(table)

    table = Table(title="Threads", title_justify="left", show_header=False)
    for name, setting in threads().items():
        table.add_row(name, setting)
    console.print(table)
