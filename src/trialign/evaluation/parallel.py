"""Work of several threads that wait for others' answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Unit = TypeVar("Unit")
Made = TypeVar("Made")


class _Raised:
    """What the work's own iterator raised in place of a unit."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _next(units: Iterator[Unit]) -> Unit | _Raised | None:
    try:
        return next(units, None)
    except Exception as error:
        return _Raised(error)


def _nothing() -> None:
    """Do nothing."""


def in_parallel(
    function: Callable[[Unit], Made],
    work: Iterable[Unit],
    workers: int,
    end: Callable[[], object] = _nothing,
    meanwhile: Callable[[], object] = _nothing,
) -> Iterator[tuple[Unit, Made]]:
    """Yield each unit of `work` with what `function` makes of it, as it comes; at most `workers` are under way.

    The first failure, or one of the caller's, calls `end`, lets what is under way finish, and is raised; what `work`
    itself raises is raised after all that is under way has been yielded. `meanwhile` is called once, after the first
    has come, if more are to be waited for.
    """
    under_way: dict[Future[Made], Unit] = {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            units = iter(work)
            while (unit := _next(units)) is not None:
                if isinstance(unit, _Raised):
                    while under_way:
                        yield from _finished(under_way)
                    raise unit.error
                under_way[pool.submit(function, unit)] = unit
                while len(under_way) >= workers:
                    yield from _finished(under_way)
                    meanwhile()
                    meanwhile = _nothing
            while under_way:
                yield from _finished(under_way)
        except BaseException:
            end()
            raise


def _finished(under_way: dict[Future[Made], Unit]) -> Iterator[tuple[Unit, Made]]:
    done, _ = wait(under_way, return_when=FIRST_COMPLETED)
    for future in done:
        yield under_way.pop(future), future.result()
