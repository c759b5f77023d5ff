"""Work in threads, with results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def map_in_threads(
    function: Callable[[_Job], _Result], jobs: Iterable[_Job], threads: int, ahead: int
) -> Generator[_Result, None, None]:
    """Apply a function to jobs in threads; yield the results in order, and raise what the function raises.

    ahead: jobs that are started before the caller needs their results, which bounds the memory. The jobs themselves are
    taken from the iterable in the caller's thread. Closing the iterator drops the jobs that no thread has begun, and
    waits for the others.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        waiting: deque[Future[_Result]] = deque()
        for job in jobs:
            waiting.append(pool.submit(function, job))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
