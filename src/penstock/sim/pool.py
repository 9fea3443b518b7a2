"""Processes that share the tasks of a study; one alone works in this process."""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast

from penstock.errors import UserError
from penstock.sim.shared_directory import shared_directory
from penstock.sim.simulator import StepSink
from penstock.sim.study import Cell
from penstock.sim.trace_source import one_at_a_time
from penstock.sim.worker import Finished, Progress, Task, Worker

_TELL_EVERY_S = 0.2


def run_tasks(
    cells: Sequence[Cell], tasks: Sequence[Task], jobs: int, progress: Progress, each_step: StepSink | None = None
) -> Iterator[Finished]:
    """Run all tasks and yield what came of each as it ends.

    progress is told token steps done, counted once for every pair; each_step is for a single task of one pair, which
    runs in this process. Raises UserError for the first mistake, and where a process was killed; then, and where the
    caller stops early, the other processes are ended.
    """
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        worker = Worker(cells)
        for task in tasks:
            yield worker.run(task, progress, each_step)
        return
    with shared_directory() as shared, _Pool(cells, jobs, shared) as pool:
        yield from pool.run(tasks, progress)


class _Pool:
    """Processes, each at the other end of a pipe that carries tasks there, and results and progress back."""

    def __init__(self, cells: Sequence[Cell], jobs: int, shared: Path) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy the locks of whatever threads there are
        self._processes: dict[Connection, BaseProcess] = {}
        for _ in range(jobs):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, cells, shared), daemon=True)
            process.start()
            there.close()  # so that a process that dies is heard of
            self._processes[here] = process

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *error: object) -> None:
        for connection, process in self._processes.items():
            connection.close()
            process.terminate()
        for process in self._processes.values():
            process.join()

    def run(self, tasks: Sequence[Task], progress: Progress) -> Iterator[Finished]:
        """Hand out tasks until all are done."""
        left = list(tasks)
        at_work: dict[Connection, Task] = {}
        for connection in self._processes:
            self._hand_out(connection, left, at_work, None)
        while at_work:
            for ready in wait(list(at_work)):
                connection = cast(Connection, ready)
                try:
                    message = connection.recv()
                except (EOFError, ConnectionResetError):
                    raise UserError(_told_end(self._processes[connection])) from None
                if isinstance(message, int):
                    progress(message)
                elif isinstance(message, Finished):
                    self._hand_out(connection, left, at_work, at_work.pop(connection).cell)
                    yield message
                else:
                    raise UserError(message)

    def _hand_out(self, to: Connection, left: list[Task], at_work: dict[Connection, Task], cell: int | None) -> None:
        """Give a process its next task: of the cell whose trace it holds, else of the one that fewest work on.

        The longest goes first, so that none waits long for another in the end.
        """
        if not left:
            return
        held = [task.cell for task in at_work.values()]
        task = min(left, key=lambda task: (task.cell != cell, held.count(task.cell), -task.effort))
        left.remove(task)
        at_work[to] = task
        to.send(task)


def _serve(connection: Connection, cells: Sequence[Cell], shared: Path) -> None:
    """Run tasks until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told too, and ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    worker = Worker(cells, shared)
    if find_spec("numba") is not None:
        from penstock.sim.kernel_form import compile_kernels  # imports numba

        with one_at_a_time(shared / "kernels.lock"):
            compile_kernels()
    try:
        while True:
            task = connection.recv()
            tell = _Telling(connection.send)
            try:
                finished = worker.run(task, tell.add)
            except UserError as error:
                connection.send(str(error))
                return
            tell.close()
            connection.send(finished)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


class _Telling:
    """Progress sent now and then."""

    def __init__(self, send: Callable[[object], None]) -> None:
        self._send = send
        self._steps = 0
        self._next_s = time.monotonic() + _TELL_EVERY_S

    def add(self, steps: int) -> None:
        self._steps += steps
        if time.monotonic() >= self._next_s:
            self.close()

    def close(self) -> None:
        """Send what has not been sent."""
        self._send(self._steps)
        self._steps = 0
        self._next_s = time.monotonic() + _TELL_EVERY_S


def _told_end(process: BaseProcess) -> str:
    process.join()
    return (
        f"a process of this simulation was ended from outside (status {process.exitcode}); if memory ran out, "
        "run it again with fewer --jobs: with --output it goes on where it stopped"
    )
