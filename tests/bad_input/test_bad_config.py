"""Mistakes in a configuration: files that are none, and fields that are unknown, of another type or out of their range."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mistakes import Mistake, text

from dfa_tf.config import Config
from dfa_tf.storage.reading import JSON_LIMIT

LEAST, MORE, MOST, LESS = ("greater than or equal to", "greater than", "less than or equal to", "less than")
WHOLE = 2**31


def file(name: str, content: str | bytes, told: str) -> Mistake:
    """A configuration file of this content."""
    return Mistake(f"--config=INPUT/{name}", told, write=text(name, content))


def code(body: str, told: str) -> Mistake:
    """A Python file whose get_config() has this body."""
    return file("mine.py", f"from dfa_tf.config import *\ndef get_config():\n    {body}\n", told)


def field(override: str, told: str) -> Mistake:
    return Mistake(f"--set '{override}'", told)


RUNS = "mine.py must be a Python file that runs. Received: "
RETURNS = "mine.py must define get_config() that returns a Config. Received: "
JSON = "a configuration must be JSON. Invalid JSON: "
FILES = [
    file("mine.py", "def get_config(:\n", f"{RUNS}SyntaxError"),
    file("mine.py", b"\x00\x01", f"{RUNS}"),
    file("mine.py", b"x = '\xff'\n", f"{RUNS}SyntaxError"),
    file("mine.py", "import no_such_module\n", f"{RUNS}ModuleNotFoundError: No module named 'no_such_module'"),
    file("mine.py", "from dfa_tf.config import Confg\n", f"{RUNS}ImportError"),
    file("mine.py", "import sys\nsys.exit(0)\n", f"{RUNS}SystemExit: 0"),
    file("mine.py", "get_config = 5\n", f"{RUNS}TypeError"),
    file("mine.py", "def get_config(seed):\n    return None\n", f"{RUNS}TypeError: get_config() missing"),
    file("mine.py", "", f"{RETURNS}NoneType"),
    file("mine.py", "def get_confg():\n    return None\n", f"{RETURNS}NoneType"),
    code("return 1 / 0", f"{RUNS}ZeroDivisionError: division by zero"),
    code("raise ValueError('one\\ntwo\\n' * 1000)", f"{RUNS}ValueError: one two one"),
    code("return get_config()", f"{RUNS}RecursionError"),
    code("return None", f"{RETURNS}NoneType"),
    code("return {'seed': 1}", f"{RETURNS}dict"),
    code("return Config", f"{RETURNS}ModelMetaclass"),
    code("return TrainConfig()", f"{RETURNS}TrainConfig"),
    code("return Config(sed=0)", "mine.py: unknown field. Received: 'sed'. Did you mean 'seed'"),
    code("return Config(train=TrainConfig(epoch=2))", "mine.py: unknown field. Received: 'train.epoch'. Did you mean 'train.epochs'"),
    code("return Config(data=DataConfig(batch_size=0))", "mine.py: data.batch_size: Input should be greater than or equal to 1"),
    code("return Config(data=DataConfig(options={'x': float('nan')}))", "mine.py: data.options: numbers must be finite"),
    file("mine.json", "", f"{JSON}EOF while parsing a value"),
    file("mine.json", "{", f"{JSON}EOF while parsing an object"),
    file("mine.json", '{"seed": 1', f"{JSON}EOF while parsing an object"),
    file("mine.json", '{"seed": 1,}', f"{JSON}trailing comma"),
    file("mine.json", "{'seed': 1}", f"{JSON}key must be a string"),
    file("mine.json", "seed: 1", f"{JSON}expected value"),
    file("mine.json", b"\xff\xfe{}", f"{JSON}expected value"),
    file("mine.json", b'{"seed": "\xff"}', f"{JSON}invalid unicode code point"),
    file("mine.json", b"\x93NUMPY" + bytes(100), f"{JSON}expected value"),
    file("mine.json", "[" * 100_000, f"{JSON}recursion limit exceeded"),
    file("mine.json", '{"data":' * 1000, f"{JSON}recursion limit exceeded"),
    file("mine.json", " " * (JSON_LIMIT + 1), f"--config must have at most {JSON_LIMIT} bytes. Received: "),
    file("mine.json", "[]", "config: Input should be an object. Received: []"),
    file("mine.json", "null", "config: Input should be an object. Received: None"),
    file("mine.json", '"{}"', "config: Input should be an object. Received: '{}'"),
    file("mine.json", '{"data": []}', "data: Input should be an object. Received: []"),
    file("mine.json", '{"train": {"learning_rate": NaN}}', "train.learning_rate: Input should be a finite number. Received: nan"),
    file("mine.json", '{"train": {"weight_decay": 1e999}}', "train.weight_decay: Input should be a finite number. Received: inf"),
    file("mine.json", '{"data": {"options": {"x": [Infinity]}}}', "data.options: numbers must be finite. Received: {'x': [inf]}"),
    file("mine.json", '{"distil": {"options": {"kd": {"x": NaN}}}}', "distil.options.kd: numbers must be finite"),
    file("mine.json", '{"sed": 1}', "unknown field. Received: 'sed'. Did you mean 'seed'"),
    file("mine.json", '{"schema": 1, "teacher": "t", "groups": []}', "teacher: Input should be an object. Received: 't' (and 2 more)"),
]  # fmt: skip

TYPES = [
    field("seed=one", "seed: Input should be a valid integer. Received: 'one'"),
    field("seed=1.0", "seed: Input should be a valid integer. Received: 1.0"),
    field("seed=true", "seed: Input should be a valid integer. Received: True"),
    field("seed=null", "seed: Input should be a valid integer. Received: None"),
    field(f"seed={'9' * 4000}", "seed: Input should be less than 2147483648. Received: 999"),
    field(f"seed={'9' * 5000}", "seed: Input should be a valid integer. Received: '999"),
    field("train.learning_rate=fast", "train.learning_rate: Input should be a valid number. Received: 'fast'"),
    field("train.learning_rate=NaN", "train.learning_rate: Input should be a valid number. Received: 'NaN'"),
    field("train.nesterov=1", "train.nesterov: Input should be a valid boolean. Received: 1"),
    field("data.flip=yes", "data.flip: Input should be a valid boolean. Received: 'yes'"),
    field("data=5", "data: Input should be an object. Received: 5"),
    field("data.options=[1]", "data.options: Input should be an object. Received: [1]"),
    field("data.name=5", "data.name: Input should be a valid string. Received: 5"),
    field("teacher.path=5", "teacher.path: Input should be a valid string. Received: 5"),
    field("student.groups=conv1", "student.groups: Input should be a valid"),
    field("student.groups=[[5]]", "student.groups.0.0: Input should be a valid string. Received: 5"),
    field("train.milestones=0.5", "train.milestones: Input should be a valid"),
    field("train.milestones=[0.6,0.3]", "train.milestones: must ascend. Received: [0.6, 0.3]"),
    field("search.beta_decays=[0.5]", "search.beta_decays.1: Field required"),
    field("distil.methods=kd", "distil.methods: Input should be an object. Received: 'kd'"),
    field('distil.methods={"kd": "much"}', "distil.methods.kd: Input should be a valid number. Received: 'much'"),
    field('distil.methods={"kdd": 1}', "distil.methods: unknown name in losses. Received: 'kdd'. Did you mean 'kd'"),
    field('distil.options={"kd": {}}', "distil: options names a method that is not in distil.methods. Received: 'kd'"),
    field('distil.warmup_epochs={"kd": 1}', "distil: warmup_epochs names a method that is not in distil.methods. Received: 'kd'"),
    field("distil.aggregation=frist", "must be a known word or the path of a .json file. Received: 'frist'. Did you mean 'first'"),
    field("distil.aggregation=1", "distil.aggregation.alpha: Input should be a valid array. Received: 1"),
    field("distil.aggregation=[0.5,0.5]", "distil.aggregation.alpha.0: Input should be a valid array. Received: 0.5"),
    field("data.name=bundeld", "data.name: unknown name in data. Received: 'bundeld'. Did you mean 'bundled'"),
    field("teacher.name=wrn_16_22", "teacher.name: unknown name in models. Received: 'wrn_16_22'. Did you mean 'wrn_16_2'"),
    field("student.tap=outputs", "student.tap: Input should be 'pre_activation' or 'output'. Received: 'outputs'"),
    field("train.schedule=cos", "train.schedule: Input should be 'cosine', 'step' or 'constant'. Received: 'cos'"),
    field("train.precision=float16", "train.precision: Input should be 'auto' ... or 'mixed_float16'. Received: 'float16'"),
    field("search.mode=jont", "search.mode: Input should be 'group_wise' or 'joint'. Received: 'jont'"),
    field("strategy=tpu", "strategy: Input should be 'auto', 'gpu', 'mirrored' or 'multi_worker'. Received: 'tpu'"),
    field("tune.tuner=grid", "tune.tuner: Input should be 'random', 'bayesian' or 'hyperband'. Received: 'grid'"),
    field("tune.objective=test_accuracy", "tune.objective: Input should be 'validation_accuracy' or 'validation_loss'"),
    field("tune.space=[]", "tune.space: Input should be an object. Received: []"),
    field(
        'tune.space={"train.epoch": {"kind": "int", "low": 1, "high": 2}}',
        "config: tune.space: unknown field. Received: 'train.epoch'. Did you mean 'train.epochs'",
    ),
    field("search.warmup_epochs=1", "search: warmup_epochs must be smaller than epochs=1. Received: 1"),
    field('search={"gamma_st": 0, "gamma_ts": 0}', "search: objective='bridge' needs a gamma above 0 for its path"),
    field('data={"search_fraction": 0.5, "validation_fraction": 0.5}', "data.search_fraction + data.validation_fraction must be below 1"),
]  # fmt: skip

# An override beyond each bound of a number in the schema, and what is told of it.
BOUNDS = [
    ("seed=-1", LEAST, 0), (f"seed={WHOLE}", LESS, WHOLE),
    ("data.batch_size=0", LEAST, 1), (f"data.batch_size={WHOLE}", LESS, WHOLE),
    ("data.search_fraction=0", MORE, 0), ("data.search_fraction=1", LESS, 1),
    ("data.validation_fraction=-0.1", LEAST, 0), ("data.validation_fraction=1", LESS, 1),
    ("data.train_limit_per_class=0", LEAST, 1), (f"data.train_limit_per_class={WHOLE}", LESS, WHOLE),
    ("data.crop_padding=-1", LEAST, 0), (f"data.crop_padding={WHOLE}", LESS, WHOLE),
    ("data.resized_crop=0", MORE, 0), ("data.resized_crop=1.1", MOST, 1),
    ("data.views=0", LEAST, 1), (f"data.views={WHOLE}", LESS, WHOLE),
    ("data.seed=-1", LEAST, 0), (f"data.seed={WHOLE}", LESS, WHOLE),
    ("train.steps_per_execution=0", LEAST, 1), (f"train.steps_per_execution={WHOLE}", LESS, WHOLE),
    ("teacher.cache_gib=-1", LEAST, 0),
    ("checkpoints.every=0", LEAST, 1), (f"checkpoints.every={WHOLE}", LESS, WHOLE),
    ("checkpoints.keep=0", LEAST, 1), (f"checkpoints.keep={WHOLE}", LESS, WHOLE),
    ("train.epochs=0", LEAST, 1), (f"train.epochs={WHOLE}", LESS, WHOLE),
    ("train.learning_rate=0", MORE, 0), ("train.learning_rate=101", MOST, 100),
    ("train.milestones=[0]", MORE, 0), ("train.milestones=[1]", LESS, 1),
    ("train.decay=0", MORE, 0), ("train.decay=1", LESS, 1),
    ("train.momentum=-0.1", LEAST, 0), ("train.momentum=1", LESS, 1),
    ("train.weight_decay=-1", LEAST, 0),
    ("train.clip_norm=0", MORE, 0), ("train.clip_norm=101", MOST, 100),
    ("train.ema=-0.1", LEAST, 0), ("train.ema=1", LESS, 1),
    ("train.label_smoothing=-0.1", LEAST, 0), ("train.label_smoothing=1", LESS, 1),
    ("train.mixup=-1", LEAST, 0),
    ("train.evaluate_every=0", LEAST, 1), (f"train.evaluate_every={WHOLE}", LESS, WHOLE),
    ("search.repetitions=0", LEAST, 1), (f"search.repetitions={WHOLE}", LESS, WHOLE),
    ("search.epochs=0", LEAST, 1), (f"search.epochs={WHOLE}", LESS, WHOLE),
    ("search.warmup_epochs=-1", LEAST, 0), (f"search.warmup_epochs={WHOLE}", LESS, WHOLE),
    ("search.gamma_st=-1", LEAST, 0), ("search.gamma_ts=-1", LEAST, 0), ("search.gamma_fd=-1", LEAST, 0),
    ("search.lambda_=-1", LEAST, 0),
    ("search.learning_rate=0", MORE, 0), ("search.learning_rate=101", MOST, 100),
    ("search.momentum=-0.1", LEAST, 0), ("search.momentum=1", LESS, 1),
    ("search.weight_decay=-1", LEAST, 0),
    ("search.beta_learning_rate=0", MORE, 0), ("search.beta_learning_rate=101", MOST, 100),
    ("search.beta_decays=[-0.1,0.5]", LEAST, 0), ("search.beta_decays=[0.5,1]", LESS, 1),
    ("search.beta_init=-1", LEAST, 0),
    ("search.entropy_bound=-0.1", LEAST, 0), ("search.entropy_bound=1", LESS, 1),
    ('distil.methods={"kd": -1}', LEAST, 0),
    ("distil.ce_weight=-1", LEAST, 0),
    ("distil.aggregation=[[-1]]", LEAST, 0),
    ('distil.warmup_epochs={"dfa": 0}', LEAST, 1), (f'distil.warmup_epochs={{"dfa": {WHOLE}}}', LESS, WHOLE),
    ("distil.epochs=0", LEAST, 1), (f"distil.epochs={WHOLE}", LESS, WHOLE),
    ("distil.learning_rate=0", MORE, 0), ("distil.learning_rate=101", MOST, 100),
    ("tune.trials=0", LEAST, 1), (f"tune.trials={WHOLE}", LESS, WHOLE),
    ("tune.initial_trials=0", LEAST, 1), (f"tune.initial_trials={WHOLE}", LESS, WHOLE),
    ("tune.factor=1", LEAST, 2), (f"tune.factor={WHOLE}", LESS, WHOLE),
    ("tune.seeds=0", LEAST, 1), (f"tune.seeds={WHOLE}", LESS, WHOLE),
]  # fmt: skip
OUT_OF_RANGE = [field(override, f"{override.partition('=')[0]} ... Input should be {rule} {bound}") for override, rule, bound in BOUNDS]
MISTAKES = [*FILES, *TYPES, *OUT_OF_RANGE]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.name for mistake in MISTAKES])
def test_a_mistaken_configuration_is_refused(mistake: Mistake, refused: Callable[[Mistake], None]) -> None:
    refused(mistake)


KEYWORDS = {"minimum": LEAST, "exclusiveMinimum": MORE, "maximum": MOST, "exclusiveMaximum": LESS}


def bounds(node: dict[str, Any], name: str, definitions: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Every bound of a number in a JSON schema: the dotted name of its field, the rule, the bound."""
    node = definitions[node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    for keyword, rule in KEYWORDS.items():
        if keyword in node:
            yield name, rule, node[keyword]
    inner = [each for keyword in ("anyOf", "oneOf", "allOf", "prefixItems") for each in node.get(keyword, [])]
    inner += [node[keyword] for keyword in ("items", "additionalProperties") if isinstance(node.get(keyword), dict)]
    for each in inner:
        yield from bounds(each, name, definitions)
    for key, each in node.get("properties", {}).items():
        yield from bounds(each, f"{name}.{key}".lstrip("."), definitions)


def test_the_table_goes_beyond_every_bound_of_the_schema() -> None:
    schema = Config.model_json_schema()
    table = {(override.partition("=")[0], rule, bound) for override, rule, bound in BOUNDS}
    assert table == set(bounds(schema, "", schema["$defs"]))


def test_a_json_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    """The limit is told of what is larger, and of nothing else."""
    from dfa_tf.config.experiments import load  # noqa: PLC0415

    (tmp_path / "mine.json").write_bytes(b'{"seed": 7}'.ljust(JSON_LIMIT))
    assert load(str(tmp_path / "mine.json")).seed == 7
