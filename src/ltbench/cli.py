"""The one entry point: training commands through Lightning, the light ones without torch."""

import contextlib
import errno
import io
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType

from ltbench import __version__
from ltbench.errors import UserError, unknown_name
from ltbench.escaping import printable

USAGE = """\
usage: ltbench COMMAND ...

  fit       train, test and record a run          --config FILE [overrides]
  validate  evaluate a checkpoint on validation   --config FILE --ckpt_path FILE
  test      evaluate on test, or another folder   --run FOLDER --data.root DIR
  predict   classify images, write a CSV          --run FOLDER --images DIR [--output CSV]
  export    a finished run as one file            --run FOLDER --output model.onnx|.pt2|.safetensors
  data      show counts, imbalance, groups        --config FILE [overrides]
  list      methods, data sets, configs, suites   [methods|datasets|configs|suites] [--json]
  show      one method, data set or config        NAME
  bench     run a suite, show its progress        run|status|reproduce SUITE
  leaderboard  tables and report of runs          SUITE_OR_FOLDER [--format html --output FILE]
  analyze   why it does what it does              hessian|confusion|... --run FOLDER

  --config takes a file, or a name of `ltbench list configs`
  --version    --debug (tracebacks)    COMMAND --help"""


# Slurm sends the first before it takes a node back, and the second where a job asks for it.
STOPS = (signal.SIGTERM, signal.SIGUSR1)
PATIENCE = 10.0  # seconds to end in, before another such signal interrupts that, too
AGAIN = 0.05  # seconds until a request that got lost is repeated


def main(args: Sequence[str] | None = None) -> None:
    """Run one command.

    Args:
        args: The command line without the program's name; default: ``sys.argv``.

    Raises:
        SystemExit: With code 2 for a user's mistake, 1 for a run that failed, 130 for Ctrl-C, and
            128 more than the number of a signal that asked it to end.
    """
    argv = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    if isinstance(sys.stdout, io.TextIOWrapper):  # it may lack letters of a name
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _plain_warnings(), _stoppable():
            _run(argv)
        if sys.stdout is not None:  # errors in writing show here, not after the end
            sys.stdout.flush()
    except UserError as error:
        _stop(f"error: {error}", 2, debug)
    except KeyboardInterrupt as stop:
        number = signal.Signals[stop.args[0] if stop.args else "SIGINT"]
        message = "interrupted; the same command resumes from the last checkpoint."
        _stop(message, 128 + number, debug)
    except (RuntimeError, MemoryError) as error:
        _stop(f"error: {_failure(error)}", 1, debug)
    except BrokenPipeError:  # by `| head`; discard what is left in the buffer
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            if error.filename is None:
                raise
            message = f"error: {error.filename}: {error.strerror}. Are path and permissions right?"
            _stop(message, 2, debug)
        where = f" while writing {error.filename}" if error.filename else ""
        _stop(
            f"error: the disk is full{where}. Finished files are intact; free some space, then run "
            "the same command again: it resumes from the last checkpoint.",
            1,
            debug,
        )


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings for users without the line of code that raised them."""
    before = warnings.formatwarning

    def plain(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        if category is UserWarning:
            return f"warning: {printable(str(message))}\n"
        return printable(before(message, category, filename, lineno, line))

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let the signals that ask a process to end act like Ctrl-C.

    A scheduler may send several. One asks; the others come while the process ends, and only
    interrupt that once it takes too long.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = -math.inf

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if time.monotonic() - asked > PATIENCE:
            asked = time.monotonic()
            raise KeyboardInterrupt(signal.Signals(number).name)

    def lost(unraisable: "sys.UnraisableHookArgs") -> None:
        """Ask again: Python drops what is raised within a finalizer, such as ``__del__``."""
        nonlocal asked
        error = unraisable.exc_value
        if not isinstance(error, KeyboardInterrupt):
            hook(unraisable)
            return
        asked = -math.inf
        number = signal.Signals[error.args[0] if error.args else "SIGINT"]
        threading.Timer(AGAIN, os.kill, (os.getpid(), number)).start()

    before = {number: signal.signal(number, stop) for number in STOPS}
    hook, sys.unraisablehook = sys.unraisablehook, lost
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _failure(error: RuntimeError | MemoryError) -> str:
    """Explain an error that is known; raise any other again."""
    message = str(error)
    if "DataLoader worker" in message:
        from ltbench.data import loading as workers

        return workers.death(error) or message
    if isinstance(error, MemoryError) or re.search("out of memory|can't allocate memory", message):
        request = re.search("tried to allocate [^.(]*", message, re.IGNORECASE)
        return (
            f"memory ran out{f' ({request[0].strip()})' if request else ''}: set a smaller "
            "data.batch_size, data.eval_batch_size or data.image_size."
        )
    from ltbench.runs import peers

    if said := peers.lost(error):
        return said
    raise error


def _stop(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    sys.stderr.write(printable(message) + "\n")
    raise SystemExit(code)


def _run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return
    command, *rest = argv
    if command == "--version":
        print(f"ltbench {__version__}")
    elif command in ("list", "show"):
        from ltbench import catalog

        {"list": catalog.list_command, "show": catalog.show_command}[command](rest)
    elif command == "fit" and "--dry-run" in rest:
        from ltbench.runs.cost import cost_command

        cost_command([word for word in rest if word != "--dry-run"])
    elif command in ("test", "predict") and _names_run(rest):
        from ltbench.runs import elsewhere

        {"test": elsewhere.test_command, "predict": elsewhere.predict_command}[command](rest)
    elif command in ("fit", "validate", "test", "predict"):
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        from ltbench.runs.training import run_command

        try:
            run_command(command, rest)
        except MisconfigurationException as error:
            hint = " Clip with --model.clip_norm." if "clip" in str(error) else ""
            raise UserError(f"{str(error).splitlines()[0]}{hint}") from error
        except (ValueError, RuntimeError) as error:  # Lightning's, once it knows the data
            if not re.search("val_check_interval|conditioned on metric", str(error)):
                raise
            raise UserError(f"trainer: {str(error).split('. If')[0].strip()}.") from error
    elif command == "data":
        from ltbench.runs.data_report import data_command

        data_command(rest)
    elif command == "export":
        from ltbench.runs.export import export_command

        export_command(rest)
    elif command == "bench":
        from ltbench.bench.run.command import bench_command

        bench_command(rest)
    elif command == "leaderboard":
        from ltbench.bench.show.command import leaderboard_command

        leaderboard_command(rest)
    elif command == "analyze":
        from ltbench.analysis.command import analyze_command

        analyze_command(rest)
    else:
        raise unknown_name("command", command, _COMMANDS)


def _names_run(argv: Sequence[str]) -> bool:
    return any(word == "--run" or word.startswith("--run=") for word in argv)


_COMMANDS = (
    *("fit", "validate", "test", "predict", "export", "data", "list", "show", "bench"),
    *("leaderboard", "analyze"),
)
