"""The processes that train one network together: who is the chief, and how all of them come to do the same.

One process alone is its own chief. With `strategy=multi_worker` the environment variable TF_CONFIG names all workers; the chief
alone writes, and tells the others what it has decided. That state is of the whole process, as the environment is.
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
"""Seconds that a worker waits for the others when it starts."""
_FORM = '{"cluster": {"worker": ["host:port", "host:port"]}, "task": {"type": "worker", "index": 0}}'


class Cluster(NamedTuple):
    """All workers. Attributes: their addresses, `"host:port"`, the chief's first; the number of this one among them."""

    addresses: tuple[str, ...]
    number: int


class _Process:
    """What this process is among the workers, and how it talks to the others."""

    cluster: Cluster | None = None
    exchange: Callable[[bytes], list[bytes]] | None = None
    deciding = False


def cluster_of(text: str | None) -> Cluster:
    """Reads the value of TF_CONFIG.

    Raises:
        UserError: if it names no cluster of workers, and of them this one.
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
    """Reads which worker this process is, where the strategy is `"multi_worker"`; before anything is written.

    Raises:
        UserError: if TF_CONFIG does not tell.
    """
    if strategy == "multi_worker" and _Process.cluster is None:
        _Process.cluster = cluster_of(os.environ.get("TF_CONFIG"))


def number() -> int:
    """Of this process among the workers; 0 is the chief."""
    return 0 if _Process.cluster is None else _Process.cluster.number


def count() -> int:
    """How many workers there are."""
    return 1 if _Process.cluster is None else len(_Process.cluster.addresses)


def is_chief() -> bool:
    """Whether this process writes, and decides."""
    return number() == 0


def gather_all(limit: float = START_LIMIT) -> None:
    """Waits until every worker has come as far as this, so that none of them waits for a missing one within TensorFlow.

    Each listens at its own address until it has reached all others, where later TensorFlow's server listens.

    Args:
        limit: seconds to wait.

    Raises:
        UserError: naming those that are missing then; or if this one cannot listen at its address.
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
    """Lets the workers talk.

    Args:
        exchange: called by all at once, each with content of its own; gives that of all, by number.
    """
    _Process.exchange = exchange


def exchange(content: bytes) -> list[bytes]:
    """What each worker has given, by number. All must call it at the same point of their work.

    Raises:
        LostWorkerError: if one of them has ended.
    """
    return [content] if _Process.exchange is None or _Process.deciding else _Process.exchange(content)


def wait() -> None:
    """Waits for all workers to come to this point."""
    exchange(b"")


def any_of(flag: bool) -> bool:
    """Whether the flag is set at any worker."""
    return any(exchange(b"1" if flag else b""))


def decided(decide: Callable[[], Any]) -> Any:
    """What the chief decides or does, told to all, which wait for it.

    Args:
        decide: called at the chief alone, which within it is like a process alone; gives what JSON can say, or raises a
            UserError, which all of them then raise.
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
    told = json.loads(exchange(json.dumps(answer).encode())[0])
    if "error" in told:
        raise UserError(told["error"])
    return told["value"]


def check_same(what: str, fields: dict[str, Any], differing: Callable[[Any, Any], Sequence[str]]) -> None:
    """Raises UserError, naming the fields, unless all workers have the same.

    Args:
        what: they have, for the message.
        fields: of this worker, as JSON.
        differing: names the fields in which two differ.
    """
    everyone = [json.loads(content) for content in exchange(json.dumps(fields).encode())]
    for other, theirs in enumerate(everyone):
        if names := differing(everyone[0], theirs):
            raise UserError(f"all workers must have the same {what}. Received: another one at worker {other}, in {', '.join(names)}")
