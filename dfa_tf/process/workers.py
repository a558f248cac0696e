"""The worker processes that train one network together: which one is the chief, and how all reach the same decisions.

A single process is its own chief. With `strategy=multi_worker` the environment variable TF_CONFIG names all workers; only the chief
writes files, and it sends its decisions to the others. The state belongs to the whole process, as the environment does.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dfa_tf.errors import UserError, shortened
from dfa_tf.process.status import doing

START_LIMIT = 120
"""Seconds that a worker waits for the others at the start."""
_FORM = '{"cluster": {"worker": ["host:port", "host:port"]}, "task": {"type": "worker", "index": 0}}'


class Cluster(NamedTuple):
    """Attributes: the addresses of all workers, `"host:port"`, the chief's first; the number of this worker."""

    addresses: tuple[str, ...]
    number: int


class _Process:
    """The place of this process among the workers, and how it exchanges messages with them."""

    cluster: Cluster | None = None
    exchange: Callable[[bytes], list[bytes]] | None = None
    deciding = False


def cluster_of(text: str | None) -> Cluster:
    """Reads the value of TF_CONFIG.

    Raises:
        UserError: if it does not name a cluster of workers and this worker.
    """
    try:
        value = json.loads(text or "")
        jobs, task = value["cluster"], value["task"]
        if not {"worker"} <= set(jobs) <= {"chief", "worker"}:
            raise ValueError
        addresses = {job: [str(address) for address in jobs.get(job, ())] for job in ("chief", "worker")}
        number = range(len(addresses[task["type"]]))[int(task["index"])] + (len(addresses["chief"]) if task["type"] == "worker" else 0)
        both = (*addresses["chief"], *addresses["worker"])
        if int(task["index"]) < 0 or len(set(both)) < len(both) or not all(_port(address) for address in both):
            raise ValueError
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError):
        raise UserError(f"strategy=multi_worker needs TF_CONFIG in the environment, as {_FORM}. Received: {shortened(text)}") from None
    return Cluster(both, number)


def _port(address: str) -> int:
    host, _, port = address.rpartition(":")
    return int(port) if host else 0


def begin(strategy: str) -> None:
    """Reads from TF_CONFIG which worker this process is, if the strategy is `"multi_worker"`. Call it before anything is written.

    Raises:
        UserError: if TF_CONFIG is missing or wrong.
    """
    if strategy == "multi_worker" and _Process.cluster is None:
        _Process.cluster = cluster_of(os.environ.get("TF_CONFIG"))


def number() -> int:
    """The number of this worker; 0 is the chief."""
    return 0 if _Process.cluster is None else _Process.cluster.number


def count() -> int:
    """The number of workers."""
    return 1 if _Process.cluster is None else len(_Process.cluster.addresses)


def is_chief() -> bool:
    """Whether this process writes files and decides."""
    return number() == 0


def gather_all(limit: float = START_LIMIT) -> None:
    """Waits until every worker has reached this point, so that none of them waits inside TensorFlow for a missing one.

    Each worker listens at its own address until it has reached all others; TensorFlow's server listens there later.

    Args:
        limit: seconds to wait.

    Raises:
        UserError: naming the workers that are still missing; or if this worker cannot listen at its address.
    """
    if _Process.cluster is None:
        return
    addresses, own = _Process.cluster
    missing, end = [address for address in addresses if address != addresses[own]], time.monotonic() + limit
    try:
        listening = socket.create_server(("", _port(addresses[own])), backlog=len(addresses))
    except OSError as error:
        raise UserError(f"worker {own} of TF_CONFIG must be able to listen at {addresses[own]}. Received: {error.strerror}") from None
    with listening, doing("waiting for the other workers"):
        while missing:
            missing = [address for address in missing if not _answers(address)]
            if missing and time.monotonic() > end:
                raise UserError(
                    f"all {len(addresses)} workers of TF_CONFIG must be started within {limit:g} seconds. "
                    f"Received: no answer from {', '.join(missing)}"
                )
            time.sleep(0.1 if missing else 0)


def _answers(address: str) -> bool:
    try:
        socket.create_connection((address.rpartition(":")[0].strip("[]"), _port(address)), timeout=1).close()
    except OSError:
        return False
    return True


def connect(exchange: Callable[[bytes], list[bytes]]) -> None:
    """Sets how the workers exchange messages.

    Args:
        exchange: called by all workers at once, each with its own content; returns the contents of all, by number.
    """
    _Process.exchange = exchange


def exchange(content: bytes) -> list[bytes]:
    """The contents of all workers, by number. All workers must call it at the same point of their work.

    Raises:
        LostWorkerError: if a worker has ended.
    """
    return [content] if _Process.exchange is None or _Process.deciding else _Process.exchange(content)


def wait() -> None:
    """Waits until all workers have reached this point."""
    exchange(b"")


def any_of(flag: bool) -> bool:
    """Whether any worker sets the flag."""
    return any(exchange(b"1" if flag else b""))


def decided(decide: Callable[[], Any]) -> Any:
    """The decision of the chief, which it sends to all workers; they wait for it.

    Args:
        decide: called by the chief only, which acts as a single process meanwhile; returns a JSON value, or raises a UserError,
            which all workers then raise.
    """
    if count() == 1 or _Process.deciding:
        return decide()
    answer: dict[str, Any] = {}
    if is_chief():
        _Process.deciding = True
        try:
            answer = {"value": decide()}
        except UserError as error:
            answer = {"error": str(error)}
        finally:
            _Process.deciding = False
    received = json.loads(exchange(json.dumps(answer).encode())[0])
    if "error" in received:
        raise UserError(received["error"])
    return received["value"]


def check_same(what: str, fields: dict[str, Any], differing: Callable[[Any, Any], Sequence[str]]) -> None:
    """Raises UserError, naming the fields, unless all workers have equal ones.

    Args:
        what: the fields are, for the message.
        fields: of this worker, as JSON values.
        differing: names the fields in which two workers differ.
    """
    everyone = [json.loads(content) for content in exchange(json.dumps(fields).encode())]
    for other, theirs in enumerate(everyone):
        if names := differing(everyone[0], theirs):
            raise UserError(f"all workers must have the same {what}. Received: another one at worker {other}, in {', '.join(names)}")
