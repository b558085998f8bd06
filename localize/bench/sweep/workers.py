"""Many models, one by one, in worker processes: whatever one model does to its worker, the sweep goes on."""

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
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait

import torch

from localize.bench.sweep.examine import ExamineSettings, ModelRecord, SweepError, examine
from localize.bench.zoo import ModelError

SOURCES = ("timm", "torchvision")
MODELS_PER_WORKER = 100
"""A worker is replaced after so many models: libraries keep a little of each (compiled code, names, caches).

What torch knows of fake operators is worth keeping that long: neighbours in the list are of one family.
"""

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
"""Of workers: they share the cores among them, and libraries warn on being imported."""

Subject = tuple[str, str]
"""Name and family of a model."""


def subjects(sources: Sequence[str] = SOURCES, patterns: Sequence[str] = ()) -> list[Subject]:
    """The models of libraries, by name, in the libraries' own order.

    Args:
        sources: Of :data:`SOURCES`.
        patterns: Keep models that match one of these, as a shell matches file names, with or without the prefix
            ``timm:`` or ``torchvision:``; without patterns, keep all.

    Raises:
        ModelError: A library is unknown or not installed, or no model matches.
    """
    found = [subject for source in sources for subject in _listed(source)]
    kept = [subject for subject in found if not patterns or _matches(subject[0], patterns)]
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
    models: Iterable[Subject], settings: ExamineSettings, *, jobs: int | None = None, timeout: float = 600
) -> Generator[ModelRecord, None, None]:
    """Examines models in worker processes, of one thread each.

    A worker that dies or takes too long is replaced. Closing the iterator, or an exception in it, ends all workers.

    Args:
        models: Names and families.
        settings: How to localize.
        jobs: Number of workers; by default one a core.
        timeout: Seconds for a model.

    Yields:
        Records, in the order in which models are done.

    Raises:
        SweepError: A worker process does not start.
    """
    waiting = deque(models)
    workers: list[_Worker] = []
    try:
        while waiting or any(worker.subject for worker in workers):
            busy = sum(worker.subject is not None for worker in workers)
            for _ in range(min(jobs or _cores(), len(waiting) + busy) - len(workers)):
                workers.append(_Worker(settings))
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
    """A process that examines models by name. Its messages: the stage that begins (``ready`` at first), and records."""

    def __init__(self, settings: ExamineSettings) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process that has run torch may hang
        self.connection, far = context.Pipe()
        self.process = context.Process(target=_serve, args=(far, settings), daemon=True)
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
        """Whether it has started and waits for a model."""
        return bool(self._stage) and self.subject is None and not self.spent

    def examine(self, subject: Subject, timeout: float) -> None:
        """Hands it a model."""
        self.subject, self._stage, self._start = subject, "build", time.monotonic()
        self.deadline = self._start + timeout
        with suppress(OSError):  # it has died since: poll() finds out
            self.connection.send(subject)

    def poll(self) -> ModelRecord | None:
        """What has come of its model, if anything has yet."""
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
            raise SweepError("a worker process does not start", why=cause)
        return self._lost("failed", f"the worker process died: {cause}")

    def _lost(self, status: str, reason: str) -> ModelRecord:
        assert self.subject is not None
        name, family = self.subject
        self.subject, self.deadline = None, math.inf
        return ModelRecord(name=name, family=family, status=status, stage=self._stage, reason=reason)  # type: ignore[arg-type]

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _signal_name(number: int) -> str:
    name = signal.Signals(number).name
    return f"{name}, as when memory runs out" if name == "SIGKILL" else name


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Inside, processes start with these environment variables."""
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
    """Inside, processes start deaf to Ctrl-C, which is for the parent: it ends its workers. One that comes waits."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, settings: ExamineSettings) -> None:
    """A worker's life: examines what it is handed until the other end closes."""
    torch.set_num_threads(1)
    _hush()
    connection.send("ready")
    while True:
        try:
            name, family = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(examine(name, family, settings, progress=connection.send))
        gc.collect()


def _hush() -> None:
    """Models warn, log and print as they like; none of it belongs on the sweep's terminal."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    sys.stdout.flush()
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
