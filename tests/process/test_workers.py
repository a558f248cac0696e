"""Numbers of workers, their meeting, and the chief's decisions."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from dfa_tf.errors import UserError
from dfa_tf.process import workers
from dfa_tf.process.workers import cluster_of

Process = Callable[..., subprocess.CompletedProcess[str]]
TWO = ["one:11", "two:22"]


def text(cluster: object, kind: str = "worker", index: object = 0) -> str:
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


def test_workers_are_numbered_in_their_order_and_a_chief_before_them() -> None:
    assert cluster_of(text({"worker": TWO}, index=1)) == (("one:11", "two:22"), 1)
    assert cluster_of(text({"worker": TWO}, index="1")).number == 1  # as some schedulers write it
    both = {"worker": TWO, "chief": ["head:33"]}
    assert cluster_of(text(both, "chief")) == (("head:33", "one:11", "two:22"), 0)
    assert cluster_of(text(both, "worker", 1)).number == 2


@pytest.mark.parametrize(
    "mistaken",
    [
        None,
        "",
        "null",
        "workers",
        "[" * 100_000,
        "{}",
        text({}),
        text("worker"),
        text({"worker": []}),
        text({"worker": "one:11"}),
        text({"worker": TWO}, index=2),
        text({"worker": TWO}, index=-1),
        text({"worker": TWO}, index="first"),
        text({"worker": TWO}, "chief"),
        text({"worker": TWO, "ps": ["three:33"]}),
        text({"worker": ["one:11", "one:11"]}),
        text({"worker": ["one", "two"]}),
        text({"worker": ["one:11", "two:port"]}),
        json.dumps({"cluster": {"worker": TWO}}),
    ],
)
def test_a_cluster_that_cannot_be_is_reported(mistaken: str | None) -> None:
    with pytest.raises(UserError, match=r"strategy=multi_worker needs TF_CONFIG in the environment, as \{\"cluster\".*\. Received: "):
        cluster_of(mistaken)


def test_a_process_alone_is_its_own_chief() -> None:
    workers.begin("mirrored")
    assert (workers.number(), workers.count(), workers.is_chief()) == (0, 1, True)
    assert workers.exchange(b"mine") == [b"mine"]
    assert (workers.any_of(True), workers.any_of(False)) == (True, False)
    assert workers.decided(lambda: (1, 2)) == (1, 2)  # as it is, and not by way of JSON
    workers.gather_all()
    workers.check_same("configuration", {"seed": 0}, lambda one, other: ["seed"] if one != other else [])


@pytest.fixture
def pair() -> Callable[[str], list[tuple[int, str]]]:
    """Runs code as two workers that talk through a socket; gives the exit status and stdout of each, the chief's first."""

    def pair(code: str) -> list[tuple[int, str]]:
        with socket.socket() as one, socket.socket() as two:
            for each in (one, two):
                each.bind(("127.0.0.1", 0))
            addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (one, two)]
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            processes = [
                subprocess.Popen(
                    [sys.executable, "-c", TALK + code, str(port)],
                    env={**os.environ, "TF_CONFIG": text({"worker": addresses}, index=number)},
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for number in (0, 1)
            ]
            thread = threading.Thread(target=relay, args=(server,), daemon=True)
            thread.start()
            outputs = [process.communicate(timeout=60)[0] for process in processes]
            thread.join(timeout=10)
        return [(process.returncode, out) for process, out in zip(processes, outputs, strict=True)]

    return pair


TALK = """
import base64, json, socket, sys
from dfa_tf.process import workers
from dfa_tf.errors import UserError
workers.begin("multi_worker")
line = socket.create_connection(("127.0.0.1", int(sys.argv[1]))).makefile("rw")

def exchange(content):
    line.write(json.dumps([workers.number(), base64.b64encode(content).decode()]) + "\\n")
    line.flush()
    return [base64.b64decode(each) for each in json.loads(line.readline())]

workers.connect(exchange)
"""


def relay(server: socket.socket) -> None:
    """Sends to each of two what both have sent, by number, until they have no more to say."""
    with ExitStack() as stack:
        lines = []
        for _ in range(2):
            connection = stack.enter_context(server.accept()[0])
            lines.append(stack.enter_context(connection.makefile("rw")))
        while all(said := [line.readline() for line in lines]):
            answer = json.dumps([content for _, content in sorted(map(json.loads, said))])
            for line in lines:
                line.write(answer + "\n")
                line.flush()


def test_workers_learn_what_the_others_say_and_the_chief_decides(pair: Callable[[str], list[tuple[int, str]]]) -> None:
    (status, chief), (_, other) = pair(
        "me = workers.number()\n"
        "print(workers.exchange(b'of %d' % me), workers.any_of(me == 1), workers.any_of(False))\n"
        "print(workers.decided(lambda: [me, workers.exchange(b'within')[0].decode(), workers.decided(lambda: me)]))\n"
    )
    assert status == 0
    # Within its decision the chief is like a process alone.
    assert chief == other == "[b'of 0', b'of 1'] True False\n[0, 'within', 0]\n"


def test_a_mistake_that_the_chief_finds_ends_all(pair: Callable[[str], list[tuple[int, str]]]) -> None:
    for _, said in pair(
        "def refuse(): raise UserError('no room')\ntry: workers.decided(refuse)\nexcept UserError as error: print(error)\n"
        "print(workers.decided(lambda: 3))\n"
    ):
        assert said == "no room\n3\n"


def test_workers_must_have_the_same(pair: Callable[[str], list[tuple[int, str]]]) -> None:
    for _, said in pair(
        "from dfa_tf.storage.reading import differing\nworkers.check_same('stage', {'seed': 1}, differing)\n"
        "try: workers.check_same('configuration', {'seed': 1, 'data': {'size': workers.number()}}, differing)\n"
        "except UserError as error: print(error)\n"
    ):
        assert said == "all workers must have the same configuration. Received: another one at worker 1, in data.size\n"


def test_what_another_worker_than_the_chief_writes_is_thrown_away(pair: Callable[[str], list[tuple[int, str]]], tmp_path) -> None:
    code = (
        "from dfa_tf.storage.files import write_text\nfrom dfa_tf.storage.run_directory import RunDir\nfrom pathlib import Path\n"
        f"run = RunDir({str(tmp_path / 'run')!r})\n"
        "with run.lock():\n"
        "    workers.wait()\n"  # both hold it at once
        "    write_text(run.path / f'of{workers.number()}', 'text')\n"
    )
    assert [status for status, _ in pair(code)] == [0, 0]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "of0"]


def test_workers_wait_for_one_another_and_name_who_is_missing(fresh_process: Process) -> None:
    with socket.socket() as one, socket.create_server(("127.0.0.1", 0)) as there, socket.socket() as missing:
        for each in (one, missing):
            each.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (one, there, missing)]
        one.close()
        code = "from dfa_tf.process import workers\nworkers.begin('multi_worker')\nworkers.gather_all(limit=0.5)"
        start = time.monotonic()
        done = fresh_process(code, TF_CONFIG=text({"worker": addresses}))
        assert time.monotonic() - start < 20
        assert done.stderr.endswith(
            f"all 3 workers of TF_CONFIG must be started within 0.5 seconds. Received: no answer from {addresses[2]}\n"
        )
        done = fresh_process(code, TF_CONFIG=text({"worker": addresses}, index=1))
        assert f"worker 1 of TF_CONFIG must be able to listen at {addresses[1]}. Received: Address already in use" in done.stderr


def test_workers_that_find_one_another_go_on(pair: Callable[[str], list[tuple[int, str]]]) -> None:
    """Each then listens at its address, as TensorFlow's server does: the other may not have reached it yet."""
    assert (
        pair(
            "import socket\nworkers.gather_all(limit=30)\naddress = workers._Process.cluster.addresses[workers.number()]\n"
            "with socket.create_server(('', int(address.split(':')[1]))): workers.wait()\nprint('here')\n"
        )
        == [(0, "here\n")] * 2
    )
