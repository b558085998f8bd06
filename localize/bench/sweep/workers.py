"""Many models, one after the other, in worker processes: a model that crashes its worker does not end the sweep."""

from __future__ import annotations

import fnmatch
import gc
import logging
import math
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait

import torch

from localize.bench.sweep.record import ExamineSettings, ModelRecord, Progress, SweepError
from localize.bench.zoo import ModelError

SOURCES = ("timm", "torchvision")
MODELS_PER_WORKER = 100
"""Models after which a worker is replaced: libraries keep a little of each model (compiled code, names, caches).

Fewer would be slower: torch caches what it learns about operators on fake tensors, and neighbours in the list are
of one family.
"""

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
"""Environment variables of workers: they share the cores among them, and libraries warn when they are imported."""

Subject = tuple[str, str]
"""Name and family of a model."""

Examine = Callable[[str, str, ExamineSettings, Progress], ModelRecord]
"""A function of a file's top level, from name, family, settings and progress; a worker process imports it by name."""


def subjects(sources: Sequence[str] = SOURCES, patterns: Sequence[str] = ()) -> list[Subject]:
    """Return the models of libraries, in the libraries' own order.

    Args:
        sources: Libraries, from :data:`SOURCES`.
        patterns: Keep models that match one of these, as a shell matches file names, with or without the prefix
            ``timm:`` or ``torchvision:``; without patterns, keep all.

    Raises:
        ModelError: A library is unknown or not installed, or no model matches.
    """
    every = [subject for source in sources for subject in _listed(source)]
    kept = [subject for subject in every if not patterns or _matches(subject[0], patterns)]
    if not kept:
        raise ModelError(f"no model of {' or '.join(sources)} matches {' or '.join(patterns)}")
    return kept


def _listed(source: str) -> Iterator[Subject]:
    if source not in SOURCES:
        raise ModelError(f"unknown source of models {source!r}", remedy=f"Give {', '.join(SOURCES)} or all")
    try:
        if source == "timm":
            import timm

            names, entry = timm.list_models(), timm.models.model_entrypoint
        else:
            from torchvision import models

            names, entry = models.list_models(module=models), models.get_model_builder
    except ImportError as error:
        raise ModelError(f"{source} is not installed", why=str(error), remedy=f"pip install {source}") from error
    for name in names:
        yield f"{source}:{name}", entry(name).__module__.rpartition(".")[2]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(form, pattern) for form in (name, name.partition(":")[2]) for pattern in patterns)


def sweep(
    models: Iterable[Subject],
    settings: ExamineSettings,
    examine: Examine,
    *,
    jobs: int | None = None,
    timeout: float = 600,
) -> Generator[ModelRecord, None, None]:
    """Examine models in worker processes of one thread each.

    A worker that dies or takes too long is replaced. Closing the iterator, or an exception in it, ends all workers.

    Args:
        models: Names and families.
        settings: How to localize the models.
        examine: Examines one model; :func:`~localize.bench.sweep.examine.examine`.
        jobs: Number of workers; by default one per core.
        timeout: Seconds after which a model is given up.

    Yields:
        Records, in the order in which models are done.

    Raises:
        SweepError: A worker process cannot be started.
    """
    waiting = deque(models)
    workers: list[_Worker] = []
    try:
        while waiting or any(worker.subject for worker in workers):
            busy = sum(worker.subject is not None for worker in workers)
            for _ in range(min(jobs or _cores(), len(waiting) + busy) - len(workers)):
                workers.append(_Worker(settings, examine))
            for worker in workers:
                if worker.idle and waiting:
                    worker.examine(waiting.popleft(), timeout)
            at_work = [worker for worker in workers if not worker.idle]
            soonest = min(worker.deadline for worker in at_work) - time.monotonic()
            wait([worker.connection for worker in at_work], None if soonest == math.inf else max(0.0, soonest))
            yield from (record for worker in at_work if (record := worker.poll()) is not None)
            for worker in [worker for worker in workers if worker.spent]:
                worker.end()
                workers.remove(worker)
    finally:
        for worker in workers:
            worker.end()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    """A process that examines models by name. It sends the stage that begins (``ready`` at first), and records."""

    def __init__(self, settings: ExamineSettings, examine: Examine) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process that has run torch may hang
        self.connection, far = context.Pipe()
        self.process = context.Process(target=_serve, args=(far, settings, examine), daemon=True)
        with _environment(ENVIRONMENT), _no_interrupts():
            self.process.start()
        far.close()
        self.subject: Subject | None = None
        self.deadline = math.inf
        self.spent = False
        self._stage = ""
        self._done = 0
        self._start = 0.0

    @property
    def idle(self) -> bool:
        """True when the worker has started and waits for a model."""
        return bool(self._stage) and self.subject is None and not self.spent

    def examine(self, subject: Subject, timeout: float) -> None:
        """Give the worker a model."""
        self.subject, self._stage, self._start = subject, "build", time.monotonic()
        self.deadline = self._start + timeout
        with suppress(OSError):  # the worker has died: poll() finds out
            self.connection.send(subject)

    def poll(self) -> ModelRecord | None:
        """Return the record of the worker's model if it is done, has failed or is late; else None."""
        try:
            while self.connection.poll():
                message = self.connection.recv()
                if isinstance(message, ModelRecord):
                    self._done += 1
                    self.subject, self.deadline = None, math.inf
                    self.spent = self._done >= MODELS_PER_WORKER
                    return message
                self._stage = message
        except (EOFError, OSError):
            self.spent = True
            return self._died()
        if time.monotonic() < self.deadline:
            return None
        self.spent = True
        return self._lost("timeout", f"not done after {time.monotonic() - self._start:.0f} s")

    def _died(self) -> ModelRecord:
        self.process.join()
        code = self.process.exitcode or 0
        cause = f"exit code {code}" if code >= 0 else _signal_name(-code)
        if self.subject is None:
            raise SweepError("a worker process cannot be started", why=cause)
        return self._lost("failed", f"the worker process died: {cause}")

    def _lost(self, status: str, reason: str) -> ModelRecord:
        assert self.subject is not None
        name, family = self.subject
        self.subject, self.deadline = None, math.inf
        return ModelRecord(name=name, family=family, status=status, stage=self._stage, reason=reason)  # type: ignore[arg-type]

    def end(self) -> None:
        """Kill the process, whatever it is doing."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _signal_name(number: int) -> str:
    name = signal.Signals(number).name
    return f"{name}, as when memory runs out" if name == "SIGKILL" else name


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Start processes with these environment variables inside the ``with`` block."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Block Ctrl-C inside the ``with`` block, and in processes started there: the parent ends its workers itself."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, settings: ExamineSettings, examine: Examine) -> None:
    """Examine the models that arrive on a connection until its other end closes; a worker process runs this."""
    torch.set_num_threads(1)
    _hush()
    connection.send("ready")
    while True:
        try:
            name, family = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(examine(name, family, settings, connection.send))
        gc.collect()


def _hush() -> None:
    """Silence warnings, logs and prints of models and libraries: they do not belong on the sweep's terminal."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    sys.stdout.flush()
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
