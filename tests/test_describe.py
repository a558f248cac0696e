"""The binary `describe`: networks by file, by name and by configuration; and what it says of mistakes."""

import json
from pathlib import Path

import pytest
from calls import call_binary

from dfa_tf import plugins

NAMES = ("--model=wrn_16_1", "--student=wrn_10_1", "--image_shape=8,8,1", "--num_classes=10")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wrn_10_1 of 8x8x1 pixels and four classes."""
    path = tmp_path_factory.mktemp("describe") / "mine.keras"
    plugins.build("models", "wrn_10_1", image_shape=(8, 8, 1), num_classes=4).save(path)
    return path


def test_names_with_the_shape_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = call_binary("describe", *NAMES, "--output=both.png", "--batch_size=7")
    assert (done.status, done.err) == (0, "")
    for text in ("wrn_16_1", "wrn_10_1", "8x8x1", "pair in order", "7 images", "both.png"):
        assert text in done.out
    assert [path.name for path in tmp_path.iterdir()] == ["both.png"], "nothing is trained or kept"


def test_a_file_brings_the_shape_for_a_name(file: Path) -> None:
    tree = json.loads(call_binary("describe", f"--model={file}", "--student=resnet8", "--json").out)
    assert [tree[who]["image_shape"] for who in ("teacher", "student")] == [[8, 8, 1], [8, 8, 1]]
    assert [tree[who]["num_classes"] for who in ("teacher", "student")] == [4, 4]
    assert tree["batch_size"] == 128


def test_a_file_alone() -> None:
    """Without a student nothing pairs."""
    done = call_binary("describe", "--model=wrn_10_1", "--image_shape=8,8,1", "--num_classes=4", "--json")
    tree = json.loads(done.out)
    assert (tree["student"], tree["pairs"]) == (None, [])
    assert tree["config"] == {"teacher": {"groups": [[f"group{group}_block1_add"] for group in (1, 2, 3)]}}


def test_the_groups_that_are_printed_are_taken_by_a_configuration(tmp_path: Path) -> None:
    chosen = ["--set", 'teacher.groups=[["group2_block1_add", "group2_block2_add"]]', "--set", "teacher.tap=output"]
    tree = json.loads(call_binary("describe", *NAMES, *chosen, "--json").out)
    assert [(pair["teacher"], pair["student"], pair["candidates"]) for pair in tree["pairs"]] == [(1, 2, 2)]
    assert tree["teacher"]["tap"] == "output"
    (tmp_path / "mine.json").write_text(json.dumps({**tree["config"], "data": {"batch_size": 3}}))
    again = json.loads(call_binary("describe", f"--config={tmp_path / 'mine.json'}", "--set", "student.name=wrn_10_1", "--json").out)
    assert [(pair["teacher"], pair["student"]) for pair in again["pairs"]] == [(1, 1)]
    assert again["student"]["groups"][0]["blocks"] == ["group2_block1_add"]
    assert again["batch_size"] == 3


def test_the_networks_of_a_configuration_take_the_shape_of_its_data() -> None:
    tree = json.loads(call_binary("describe", "--config=bundled", "--json").out)
    assert (tree["teacher"]["image_shape"], tree["teacher"]["num_classes"]) == ([8, 8, 1], 10)
    away = call_binary("describe", "--config=bundled", "--set=data.name=cifar100", "--image_shape=32,32,3", "--num_classes=100", "--json")
    assert json.loads(away.out)["teacher"]["image_shape"] == [32, 32, 3], away.err


def test_precision_counts() -> None:
    full, half = (
        json.loads(call_binary("describe", *NAMES, "--set", f"train.precision={precision}", "--json").out)
        for precision in ("float32", "mixed_bfloat16")
    )
    assert half["memory"]["activations"] < full["memory"]["activations"]
    assert half["memory"]["weights"] == full["memory"]["weights"], "weights are kept in float32"


MISTAKES = [
    ([], "--model is needed"),
    (["--model=wrn_28_44", *NAMES[2:]], "--model must be a .keras file or the name of a network. Received: 'wrn_28_44'. Did you"),
    ([NAMES[0], "--student=wrm_10_1", *NAMES[2:]], "--student must be"),
    (["--model=nothing.keras"], "must be a .keras file. Received: 'nothing.keras', which is not there"),
    (["--model=FOLDER/text.keras"], "text.keras', which is cut off, or of another format"),
    ([NAMES[0]], "--image_shape and --num_classes, as 32,32,3 and 100"),
    ([NAMES[0], "--num_classes=10"], "--image_shape and --num_classes"),
    ([NAMES[0], "--image_shape=32x32", "--num_classes=10"], "as 32,32,3. Received: '32x32'"),
    ([NAMES[0], "--image_shape=8,0,1", "--num_classes=10"], "as 32,32,3. Received: '8,0,1'"),
    ([NAMES[0], "--image_shape=8,8,1", "--num_classes=0"], "num_classes"),
    (["--model=keras_applications:Xception", *NAMES[2:]], "71x71 pixels or more"),
    (["--model=FILE", "--student=wrn_10_1", "--num_classes=5"], "agree in num_classes. Received: 5 of 'wrn_10_1', 4 of 'wrn_10_1'"),
    ([*NAMES, "--output=picture.svg"], "--output must be a .png file"),
    ([*NAMES, "--output=/dev/null/picture.png"], "/dev/null/picture.png must be writable"),
    (["--config=bundled", "--model=wrn_10_1"], "--set teacher.name"),
    ([*NAMES, "--set", "teacher.nam=x"], "teacher.name"),
    ([*NAMES, "--set", 'teacher.groups=[["group1_block1_ad"]]'], "group1_block1_add"),
    (
        [
            *NAMES,
            *("--set", 'teacher.groups=[["group1_block1_add"]]'),
            *("--set", 'student.groups=[["group2_block1_add"], ["group3_block1_add"]]'),
        ],
        "by stride. Received: ['4x4', '2x2'] in 'wrn_10_1' and ['8x8'] in 'wrn_16_1'; name as many groups in student.groups as in",
    ),
    ([*NAMES, "--workdir=x"], "workdir"),
    ([*NAMES, "more"], "'more'"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "told"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_a_mistake_is_told_in_one_line(arguments: list[str], told: str, file: Path, tmp_path: Path) -> None:
    (tmp_path / "text.keras").write_text("no model")
    done = call_binary("describe", *(text.replace("FILE", str(file)).replace("FOLDER", str(tmp_path)) for text in arguments))
    assert (done.status, done.out) == (2, "")
    assert told in done.err
    assert done.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["text.keras"]


def test_help_tells_what_it_does() -> None:
    done = call_binary("describe", "--help")
    assert done.status == 0
    for text in ("python bin/describe.py --model", "--student=FILE_OR_NAME", "--image_shape=", "--output=FILE.png", "--json", "--set="):
        assert text in done.out
    assert "--workdir" not in done.out
