"""A thread beside the work: a lock's beat, a bar that follows work elsewhere, a watch over a cluster."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def beside(work: Callable[..., None], *args: Any) -> Iterator[None]:
    """Run work(*args, stop) in a thread of its own while the block runs; at its end `stop` is set and it is awaited."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(*args, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
