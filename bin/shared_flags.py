"""The flags that binaries share, how a command line is parsed, and the text of `--help`."""

from collections.abc import Sequence

from absl import flags

from dfa_tf.config import fields_of

CONFIG = flags.DEFINE_string(
    "config",
    None,
    "The experiment: a Python file with get_config(), which is executed; a JSON file; or the name of a shipped one, such as bundled.",
)
WORKDIR = flags.DEFINE_string("workdir", None, "The run directory. Default: runs/ and the name of the config.")
SET = flags.DEFINE_multi_string("set", [], "Replace a field of the config, for example search.epochs=5. Repeatable.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace results of this run directory that do not fit the config.")
QUIET = flags.DEFINE_bool("quiet", False, "Show no progress.")
# Flags of several binaries, though not of all.
MODEL = flags.DEFINE_string("model", None, "The network.")
OUTPUT = flags.DEFINE_string("output", None, "The file to write: a PNG picture of the networks (describe), or an .html page (report).")
JSON = flags.DEFINE_bool("json", False, "Print JSON, for machines.")

Shown = tuple[flags.FlagHolder, str]
"""A flag, and how `--help` shows its value."""
RUN_FLAGS: list[Shown] = [(CONFIG, "=FILE"), (WORKDIR, "=DIR"), (SET, "=KEY.PATH=VALUE"), (OVERWRITE, ""), (QUIET, "")]
"""Of every binary that works in a run directory."""
HELP = ("--help", "-h", "-help", "--helpfull")


def parse(arguments: Sequence[str], shown: Sequence[Shown]) -> Sequence[str]:
    """Reads a command line.

    Args:
        arguments: with the program first.
        shown: the flags of the binary.

    Returns:
        What is beside flags, with the program first.

    Raises:
        flags.Error: if a flag is unknown, or of another binary, or its value is mistaken.
    """
    flags.FLAGS.unparse_flags()  # a main may be called more than once in a process
    rest: Sequence[str] = flags.FLAGS(arguments)
    own = {holder.name for holder, _ in shown}
    if foreign := [name for name in flags.FLAGS if flags.FLAGS[name].present and name not in own]:
        raise flags.UnrecognizedFlagError(foreign[0])  # another binary's, or absl's
    return rest


def usage(doc: str, shown: Sequence[Shown], sections: Sequence[str], statuses: str) -> str:
    """The text of `--help`.

    Args:
        doc: the docstring of the binary.
        shown: its flags.
        sections: of the configuration, whose fields are listed.
        statuses: what the exit statuses mean.
    """
    lines = [doc.strip(), "", "Flags:"]
    for holder, value in shown:
        text = flags.FLAGS[holder.name].help.partition("\n")[0].removesuffix(";")  # in the next line absl says that a flag repeats
        lines.append(f"  --{holder.name}{value}\n      {text}")
    if sections:
        lines += ["", "Fields of the config for --set, with their defaults:"]
    for name, default, meaning in (field for section in sections for field in fields_of(section)):
        lines.append(f"  {name}={default}\n      {meaning}")
    return "\n".join([*lines, "", "Exit status:", statuses])
