"""The configuration: validated, frozen, written and read back, hashed by stage; mistakes told in one line."""

import json
import subprocess
from collections.abc import Callable

import pydantic
import pytest

from dfa_tf.config import STAGES, Config, DataConfig, DistilConfig, StudentConfig, TeacherConfig, TrainConfig, field_names
from dfa_tf.errors import UserError

Process = Callable[..., subprocess.CompletedProcess[str]]


def changed_stages(*assignments: str) -> set[str]:
    """The stages whose hash an override changes."""
    old, new = Config(), Config().override(assignments)
    assert old != new
    return {stage for stage in STAGES if old.stage_hash(stage) != new.stage_hash(stage)}


def message(*assignments: str) -> str:
    with pytest.raises(UserError) as caught:
        Config().override(assignments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# JSON, overrides


def test_json_round_trip_keeps_every_field() -> None:
    config = Config(
        seed=7,
        data=DataConfig(data_dir="images", train_limit_per_class=5, crop_padding=1, flip=True),
        teacher=TeacherConfig(path="teacher.keras", batchnorm="training"),
        student=StudentConfig(name="wrn_16_2", groups=(("a", "b"), ("c",)), options={"mean": [1, 2.5], "std": None}),
        distil=DistilConfig(methods={"dfa": None, "kd": 0.9}, options={"kd": {"temperature": 2.0}}, warmup_epochs={"kd": 3}),
    )
    assert Config.from_json(config.to_json()) == config
    assert Config.from_json(config.to_json()).to_json() == config.to_json()
    assert json.loads(config.to_json())["student"]["groups"] == [["a", "b"], ["c"]]


def test_an_empty_object_is_the_default_configuration() -> None:
    assert Config.from_json("{}") == Config()


def test_overrides_are_json_or_else_strings() -> None:
    config = Config().override(
        [
            "seed=3",
            "train.learning_rate=1e-2",
            "data.flip=true",
            "teacher.path=a=b.keras",
            "data.train_limit_per_class=null",
            "search.mode=joint",
        ]
    )
    assert (config.seed, config.train.learning_rate, config.data.flip) == (3, 0.01, True)
    assert (config.teacher.path, config.data.train_limit_per_class, config.search.mode) == ("a=b.keras", None, "joint")


def test_overrides_reach_into_lists_and_free_form_options() -> None:
    config = Config().override(
        ["distil.options.dfa.distance=l2", "distil.methods.kd=0.9", 'student.groups=[["a"],["b","c"]]', "student.options.mean=[1.5]"]
    )
    assert config.distil.options == {"dfa": {"distance": "l2"}}
    assert config.distil.methods == {"dfa": None, "kd": 0.9}
    assert config.student.groups == (("a",), ("b", "c"))
    assert config.student.options == {"mean": [1.5]}


def test_of_two_overrides_the_last_counts() -> None:
    assert Config().override(["seed=1", "seed=2"]).seed == 2


def test_overrides_leave_the_original_as_it_was() -> None:
    config = Config()
    config.override(["seed=9", "distil.options.dfa.distance=l2", "distil.methods.kd=1"])
    assert config == Config()
    assert config.distil.options == {}


@pytest.mark.parametrize("section", ["data", "teacher", "student", "train", "search", "distil"])
def test_sections_are_frozen(section: str) -> None:
    part = getattr(Config(), section)
    name = next(iter(type(part).model_fields))
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        setattr(part, name, getattr(part, name))
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        setattr(Config(), section, part)


def test_field_names_are_the_leaves_of_the_json() -> None:
    tree = Config().model_dump(mode="json")
    leaves = [f"{name}.{field}" for name, section in tree.items() if isinstance(section, dict) for field in section]
    assert field_names() == ["seed", *leaves, "tensorboard", "strategy"]


def test_values_are_replaced_by_name() -> None:
    config = Config().replace({"seed": 3, "distil.methods.kd": 0.9, "student.groups": (("a",), ("b", "c")), "teacher.path": "t.keras"})
    assert config == Config().override(["seed=3", "distil.methods.kd=0.9", 'student.groups=[["a"],["b","c"]]', "teacher.path=t.keras"])
    assert config.replace({}) == config


def test_replacing_leaves_the_values_as_they_were() -> None:
    methods = {"dfa": 1.0}
    config = Config().replace({"distil.methods": methods, "distil.methods.kd": 2.0})
    assert config.distil.methods == {"dfa": 1.0, "kd": 2.0}
    assert methods == {"dfa": 1.0}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"train.epoch": 3}, "unknown field. Received: 'train.epoch'. Did you mean 'train.epochs'"),
        ({"train.epochs.last": 3}, "unknown field. Received: 'train.epochs.last'. Did you mean 'train.epochs'"),
        ({"train.epochs": "3"}, "train.epochs: Input should be a valid integer. Received: '3'"),
        ({"train.learning_rate": float("nan")}, "train.learning_rate: Input should be a finite number. Received: nan"),
        ({"data": 3}, "data: Input should be an object. Received: 3"),
        ({"data.options": [1]}, "data.options: Input should be an object. Received: [1]"),
        ({"student.groups": 3}, "student.groups: Input should be a valid array. Received: 3"),
        ({f"student.options{'.a' * 3000}": 1}, "student.options.a: must have at most 100 levels. Received: dict of too many levels"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_value_that_does_not_fit_is_refused(values: dict[str, object], told: str) -> None:
    with pytest.raises(UserError) as caught:
        Config().replace(values)
    assert told in str(caught.value)


# Derived values


def test_students_follow_the_schedule_of_train_unless_distil_says_otherwise() -> None:
    config = Config().override(["train.epochs=9", "train.learning_rate=0.3"])
    assert config.student_train == config.train
    own = config.override(["distil.epochs=4"])
    assert own.student_train == own.train.model_copy(update={"epochs": 4})
    assert config.override(["distil.learning_rate=0.7"]).student_train.learning_rate == 0.7


def test_the_method_is_named_by_its_parts_in_order() -> None:
    assert Config().method == "dfa"
    assert Config().override(['distil.methods={"kd": 0.9, "dfa": null}']).method == "dfa+kd"
    assert Config().override(["distil.methods={}"]).method == "plain"


# Mistakes


@pytest.mark.parametrize(
    ("assignments", "parts"),
    [
        (["train.epoch=3"], ["unknown field", "'train.epoch'", "Did you mean 'train.epochs'"]),
        (["epochs=3"], ["unknown field", "'epochs'", "'train.epochs'"]),
        (["serch.epochs=3"], ["unknown field", "'serch'", "'search'"]),
        (["train.epochs.last=3"], ["unknown field", "'train.epochs.last'", "'train.epochs'"]),
        (["train.epochs=many"], ["train.epochs: ", "integer", "Received: 'many'"]),
        (["train.epochs=2.5"], ["train.epochs: ", "Received: 2.5"]),
        (["train.epochs=0"], ["train.epochs: ", "greater than or equal to 1", "Received: 0"]),
        (["train.epochs=null"], ["train.epochs: ", "Received: None"]),
        (["train.learning_rate=0"], ["train.learning_rate: ", "greater than 0", "Received: 0"]),
        (["train.learning_rate=NaN"], ["train.learning_rate: ", "Received: 'NaN'"]),
        (["train.weight_decay=Infinity"], ["train.weight_decay: ", "Received: 'Infinity'"]),
        (["seed=-1"], ["seed: ", "greater than or equal to 0", "Received: -1"]),
        (["data.search_fraction=1.5"], ["data.search_fraction: ", "less than 1", "Received: 1.5"]),
        (["data.flip=1"], ["data.flip: ", "boolean", "Received: 1"]),
        (["data=3"], ["data: ", "Received: 3"]),
        (["data.name=bundle"], ["data.name: ", "Received: 'bundle'", "Did you mean 'bundled'?"]),
        (["teacher.name=wrn_16_22"], ["teacher.name: ", "Received: 'wrn_16_22'", "'wrn_16_2'"]),
        (["student.name=wrm_16_1"], ["student.name: ", "Received: 'wrm_16_1'", "'wrn_16_1'"]),
        (["student.tap=preactivation"], ["student.tap: ", "'pre_activation' or 'output'", "Received: 'preactivation'"]),
        (["teacher.batchnorm=frozen"], ["teacher.batchnorm: ", "'inference' or 'training'", "Received: 'frozen'"]),
        (["strategy=mirorred"], ["strategy: ", "'mirrored' or 'multi_worker'", "Received: 'mirorred'"]),
        (["distil.methods.dfaa=1"], ["distil.methods: ", "Received: 'dfaa'", "Did you mean 'dfa'?"]),
        (["distil.methods.dfa=-1"], ["distil.methods.dfa: ", "greater than or equal to 0", "Received: -1"]),
        (["distil.aggregation=lst"], ["distil.aggregation: ", "Received: 'lst'", "'last'"]),
        (["distil.options.kd.temperature=2"], ["distil: ", "options names a method that is not in distil.methods", "Received: 'kd'"]),
        (["distil.warmup_epochs.kd=2"], ["distil: ", "warmup_epochs names a method that is not in distil.methods", "Received: 'kd'"]),
        (["search.warmup_epochs=10"], ["search: ", "warmup_epochs must be smaller than epochs=10", "Received: 10"]),
        (["search.objective=st", "search.gamma_st=0"], ["search: ", "objective='st'", "gamma above 0"]),
        (["data.search_fraction=0.6", "data.validation_fraction=0.4"], ["data.search_fraction + data.validation_fraction must be below 1"]),
        (["seed"], ["key.path=value", "Received: 'seed'"]),
        (["seed=-1", "train.epochs=0"], ["seed: ", "(and 1 more)"]),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_a_mistake_names_the_field_what_was_received_and_the_nearest(assignments: list[str], parts: list[str]) -> None:
    told = message(*assignments)
    assert [part for part in parts if part not in told] == [], told


def test_long_values_are_cut_short() -> None:
    assert len(message(f"train.epochs={'x' * 1000}")) < 400


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"seed": }'])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"configuration must be JSON|Received"):
        Config.from_json(text)


# Hashes


def test_hash_is_the_same_for_the_same_content() -> None:
    for stage in STAGES:
        assert Config().stage_hash(stage) == Config.from_json(Config().to_json()).stage_hash(stage)
    assert len({Config().stage_hash(stage) for stage in STAGES}) == len(STAGES)


@pytest.mark.parametrize(
    ("assignment", "stages"),
    [
        ("distil.methods.kd=0.9", {"distil"}),
        ("distil.options.dfa.distance=l2", {"distil"}),
        ("distil.ce_weight=0.5", {"distil"}),
        ("distil.aggregation=last", {"distil"}),
        ("distil.epochs=7", {"plain", "distil"}),
        ("distil.learning_rate=0.01", {"plain", "distil"}),
        ("search.epochs=11", {"search"}),
        ("search.objective=ts", {"search"}),
        ("data.search_fraction=0.4", {"search"}),
        ("teacher.name=wrn_16_4", {"teacher"}),
        ("teacher.options.std=[50]", {"teacher"}),
        ("teacher.tap=output", {"search", "distil"}),
        ("teacher.batchnorm=training", {"search", "distil"}),
        ("student.name=wrn_10_1", {"plain", "search", "distil"}),
        ("student.tap=output", {"search", "distil"}),
        ("train.epochs=7", {"teacher", "plain", "distil"}),
        ("train.schedule=step", {"teacher", "plain", "distil"}),
        ("train.precision=mixed_bfloat16", {"teacher", "plain", "search", "distil"}),
        ("seed=1", set(STAGES)),
        ("data.batch_size=64", set(STAGES)),
        ("data.train_limit_per_class=4", set(STAGES)),
        ("data.data_dir=elsewhere", set()),
        ("strategy=mirrored", set()),
    ],
)
def test_a_field_counts_in_the_stages_that_read_it(assignment: str, stages: set[str]) -> None:
    assert changed_stages(assignment) == stages


def test_paths_never_count_but_the_content_behind_them_does() -> None:
    base = Config().override(["teacher.path=a.keras", "student.path=a.keras", "distil.aggregation=a.json"])
    moved = Config().override(["teacher.path=b.keras", "student.path=b.keras", "distil.aggregation=b.json"])
    for stage in STAGES:
        assert base.stage_hash(stage, "content") == moved.stage_hash(stage, "content")
        assert base.stage_hash(stage, "content") != base.stage_hash(stage, "other content")
        assert base.stage_hash(stage, "one", "two") != base.stage_hash(stage, "onetwo")


def test_the_name_of_a_network_that_comes_from_a_file_does_not_count() -> None:
    base = Config().override(["teacher.path=a.keras", "student.path=a.keras"])
    named = base.override(["teacher.name=wrn_16_4", "student.name=wrn_10_1", "student.options.std=[50]"])
    assert [base.stage_hash(stage) for stage in STAGES] == [named.stage_hash(stage) for stage in STAGES]


def test_a_teacher_from_a_file_does_not_depend_on_the_schedule() -> None:
    base = Config().override(["teacher.path=a.keras"])
    assert base.stage_hash("teacher") == base.override(["train.epochs=7"]).stage_hash("teacher")


def test_an_unknown_stage_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"Received: 'teachr'. Did you mean 'teacher'"):
        Config().stage_hash("teachr")


def test_lists_are_taken_where_the_schema_keeps_tuples() -> None:
    assert StudentConfig(groups=[["a", "b"], ["c"]]).groups == (("a", "b"), ("c",))
    assert TrainConfig(milestones=[0.5, 0.75]).milestones == (0.5, 0.75)


def test_milestones_ascend() -> None:
    with pytest.raises(UserError, match=r"train.milestones: must ascend. Received: \[0.75, 0.5\]"):
        Config().override(["train.milestones=[0.75, 0.5]"])
