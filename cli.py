"""The `hapicl` command: gathers the commands of every room and turns a user's mistakes into one clear line.

Each room keeps its own commands in `<room>/commands.py`: parse, call, print; no logic. Those modules import
only click at the top, so that `hapicl --help` answers at once; torch, numba and the like load inside the
command that needs them.
"""

import errno
import importlib
import io
import os
import signal
import sys

import click

from . import __version__
from .common.errors import UserError, did_you_mean
from .engine.stop import Stopped, raise_on_signals

# command name -> (module, attribute, one line of help shown by `hapicl --help` without importing the
# module)
COMMANDS = {
    "data": ("hapicl.data.commands", "data", "Prepare images: pack a folder into one file."),
    "demo": (
        "hapicl.demo.commands",
        "demo",
        "Both stages on a small folder made offline, with a report.",
    ),
    "masks": ("hapicl.maskgen.commands", "masks", "Stage one: find the foreground of every image, once."),
    "pretrain": ("hapicl.pretrain.commands", "pretrain", "Stage two: train a backbone on images and masks."),
    "doctor": (
        "hapicl.pretrain.commands",
        "doctor",
        "Time every stage on your machine and name the slowest.",
    ),
    "report": ("hapicl.pretrain.commands", "report", "Compare runs on one page."),
    "methods": ("hapicl.pretrain.commands", "methods", "List the methods, what each needs, and its source."),
    "evaluate": (
        "hapicl.evaluate.commands",
        "evaluate",
        "Measure a backbone: segmentation, detection, kNN, linear.",
    ),
    "compare": (
        "hapicl.evaluate.compare.commands",
        "compare",
        "Did pretraining help? Initialisations by labels by seeds.",
    ),
    "export": ("hapicl.evaluate.export.commands", "export", "Write a backbone for other libraries."),
    "embed": (
        "hapicl.evaluate.embedding.commands",
        "embed",
        "Write a vector or map for every image; show neighbours and near-duplicates.",
    ),
    "show-matches": (
        "hapicl.evaluate.commands",
        "show_matches",
        "Draw which cells of two crops of an image match.",
    ),
}

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # errors of a write, which name no file


class RoomCommands(click.Group):
    """A click group that imports a room's commands only when one of them is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the command names in the order in which a user meets them."""
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Import and return one command, or None for an unknown name."""
        if name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; for an unknown name say the nearest."""
        if arguments[0] not in COMMANDS and not context.resilient_parsing:
            hint = did_you_mean(arguments[0], COMMANDS) or "; see hapicl --help"
            context.fail(f"no such command {arguments[0]!r}{hint}")
        return super().resolve_command(context, arguments)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with their one line of help, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.group(cls=RoomCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hapicl")
def command_line() -> None:
    """Pretraining for dense vision tasks, from unlabelled photographs.

    Two stages: `hapicl masks build --images DIR`, then `hapicl pretrain --masks masks.h5`. `hapicl demo`
    shows both.
    """


def main() -> None:
    """Run the command line; a `UserError` ends in its message and exit code 2, never in a traceback.

    So does what the system says of a file in the midst of work: a full disk, a folder that vanished. SIGTERM
    and Ctrl-C end a command as an error would, so that it clears up, with exit codes 143 and 130.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may hold bytes that are not UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with raise_on_signals([signal.SIGTERM, signal.SIGINT]):
            command_line.main(prog_name="hapicl")
    except Stopped as stopped:
        click.echo(f"stopped by {stopped.name}; give the same command again to go on", err=True)
        sys.exit(128 + stopped.number)
    except UserError as error:
        if str(error):  # else another process of this run has said it
            _say(str(error), error)
        sys.exit(2)
    except OSError as error:
        if error.filename is None and error.errno not in DISK_FULL:
            raise  # not about a file: a bug, or a lost connection
        where = f"{error.filename}: " if error.filename is not None else ""
        _say(f"{where}{error.strerror}; put that right and give the same command again", error)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].partition(". This is")[0]
        if _is_out_of_memory(error):
            advice = "lower --batch-size, --image-size or widths given by --set"
            _say(f"not enough memory: {reason}; {advice}", error)
        elif _is_lost_process(error):
            _say(f"another process of this run is gone, which may say why: {reason}", error)
        else:
            raise
        sys.exit(2)


def _say(text: str, error: BaseException) -> None:
    """Print an error and what was noted of it on the way, such as what a training has saved."""
    click.echo("\n".join([f"error: {text}", *getattr(error, "__notes__", [])]), err=True)


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether an allocation failed: Python says so by type, torch's CPU allocator and CUDA only in words."""
    return isinstance(error, MemoryError) or ("allocate" in str(error) and "memory" in str(error))


def _is_lost_process(error: MemoryError | RuntimeError) -> bool:
    """Whether one of several processes has lost another; torch has no class of its own for that."""
    return "WORLD_SIZE" in os.environ and "by peer" in str(error)


if __name__ == "__main__":  # torchrun starts modules by name: -m hapicl.cli
    main()
