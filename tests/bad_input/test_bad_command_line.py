"""Mistakes on the command line: flags, overrides, and what --config and --workdir name."""

from collections.abc import Callable

import pytest
from mistakes import Mistake, text

SPACE = '{"train.momentum": {"kind": "float", "low": 0.5, "high": 0.9}}'
MISTAKES = [
    Mistake("--confg=x", "Unknown command line flag 'confg'. Did you mean: config"),
    Mistake("--sett=seed=1", "Unknown command line flag 'sett'. Did you mean: set", "run"),
    Mistake("-x", "Unknown command line flag 'x'"),
    Mistake("--overwrite=perhaps", "perhaps"),
    Mistake("--quiet=2", "quiet ... 2"),
    Mistake("--config", "Missing value for flag --config"),
    Mistake("--set", "Missing value for flag --set"),
    Mistake("--workdir", "Missing value for flag --workdir"),
    Mistake("--flagfile=INPUT/none", "Unable to open flagfile ... none"),
    Mistake("more", "there are no arguments beside flags. Received: 'more'"),
    Mistake("-- --config=x", "there are no arguments beside flags. Received: '--config=x'"),
    Mistake("''", "there are no arguments beside flags. Received: ''"),
    Mistake("--config=", "--config must be a file or the name of a shipped config. Received: ''"),
    Mistake("--config=bundeld", "--config must be a file or the name of a shipped config. Received: 'bundeld'. Did you mean 'bundled'"),
    Mistake("--config=INPUT/none.json", "--config must be a file ... none.json"),
    Mistake("--config=INPUT", "--config must be a file or the name of a shipped config"),
    Mistake(
        "--config=INPUT/mine.yaml", "--config must be a .py or a .json file. Received: ... mine.yaml", write=text("mine.yaml", "seed: 1")
    ),
    Mistake(f"--config={'a' * 5000}", "--config must be a file or the name of a shipped config. Received: 'aaa"),
    Mistake("--config=WORLD/config.json/more", "--config must be a file or the name of a shipped config"),
    Mistake("--workdir=", "--workdir must name a directory. Received: nothing"),
    Mistake("--workdir=WORLD/config.json", "the run directory must be writable. Received: ... config.json"),
    Mistake("--workdir=WORLD/config.json/run", "the run directory must be writable. Received: ... config.json/run"),
    Mistake(f"--workdir=INPUT/{'a' * 300}", "the run directory must be writable. Received: ... File name too long"),
    Mistake("--set seed", "an override must read key.path=value. Received: 'seed'"),
    Mistake("--set ''", "an override must read key.path=value. Received: ''"),
    Mistake("--set =1", "unknown field. Received: ''"),
    Mistake("--set ..=1", "unknown field. Received: ''"),
    Mistake("--set sed=1", "unknown field. Received: 'sed'. Did you mean 'seed'"),
    Mistake("--set search.epoch=1", "unknown field. Received: 'search.epoch'. Did you mean 'search.epochs'"),
    Mistake("--set searhc.epochs=1", "unknown field. Received: 'searhc'. Did you mean 'search'"),
    Mistake("--set seed.more=1", "unknown field. Received: 'seed.more'. Did you mean 'seed'"),
    Mistake(f"--set {'a' * 5000}=1", "unknown field. Received: 'aaa"),
    Mistake(f"--set data.options.x={'[' * 5000}{']' * 5000}", "unknown option of bundled. Received: 'x'"),
    Mistake(f"--set data.options.x={'[' * 300}{']' * 300}", "data.options.x: must have at most 100 levels. Received: [[["),
    Mistake("--set data.options.x=1e400", "overrides must be finite numbers and UTF-8 text. Received: ['data.options.x=1e400']"),
    Mistake("--set data.data_dir=\udcff", "overrides must be finite numbers and UTF-8 text. Received: ['data.data_dir="),
    Mistake("--seeds=0,x", "--seeds must be whole numbers, such as 0,1,2. Received: '0,x'", "compare"),
    Mistake("--seeds=-1", "--seeds must be whole numbers, such as 0,1,2. Received: '-1'", "compare"),
    Mistake("--seeds=", "seeds must be different, and at least one. Received: []", "compare"),
    Mistake("--seeds=3,3", "seeds must be different, and at least one. Received: [3, 3]", "compare"),
    Mistake("--seeds=99999999999", "seed: Input should be less than 2147483648. Received: 99999999999", "compare"),
    Mistake("--methods=kdd", "a row is plain, or methods joined by +. Received: 'kdd' ... Did you mean 'kd'", "compare"),
    Mistake("--methods=", "rows must be different, and at least one. Received: []", "compare"),
    Mistake("--row=kd;seed=1", "a row with overrides reads NAME: METHODS; KEY=VALUE; ...", "compare"),
    Mistake("", "the directory of a run is needed, or several: report.py RUN [RUN ...]", "report"),
    Mistake("WORLD/run ''", "the directory of a run is needed, or several: report.py RUN [RUN ...]", "report"),
    Mistake("WORLD/run --output=page.pdf", "--output must be an .html file. Received: page.pdf", "report"),
    Mistake("WORLD/run --output=", "--output must be an .html file. Received:", "report"),
    Mistake("WORLD/run --config=x", "Unknown command line flag 'config'", "report"),
    Mistake("--baseline=x", "the baseline must be a row. Received: 'x'. Choose from dfa, plain", "compare"),
    Mistake("--methods=kd", "Unknown command line flag 'methods'", "tune"),
    Mistake("", "tune.space must name a field and its values. Received: {}", "tune"),
    Mistake(f"--set 'tune.space={SPACE}'", "tuning chooses by the validation split, and there is none", "tune"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.name for mistake in MISTAKES])
def test_a_mistaken_command_line_is_refused(mistake: Mistake, refused: Callable[[Mistake], None]) -> None:
    refused(mistake)
