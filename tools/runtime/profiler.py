"""Where the time of training goes, recorded by torch.profiler."""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import profile, schedule

from tools.base.files import write_bytes

ROWS = 20  # of the table


@contextmanager
def profile_updates(num_updates: int, path: Path) -> Iterator[Callable[[], object]]:
    """Records `num_updates` updates after one that warms up; 0 records nothing.

    Yields the function to call after every update. Writes a trace for https://ui.perfetto.dev or chrome://tracing to
    `path`, and logs a table of the operations that took longest. A block that ends earlier records fewer updates.
    """
    if not num_updates:
        yield lambda: None
        return

    def write(profiler: profile) -> None:
        averages = profiler.key_averages()
        by = "self_device_time_total" if any(row.self_device_time_total for row in averages) else "self_cpu_time_total"
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            profiler.export_chrome_trace(file.name)
            write_bytes(path, Path(file.name).read_bytes(), make_folder=False)
        table = averages.table(sort_by=by, row_limit=ROWS)
        logging.getLogger("plantswin").info(f"profile of {num_updates} update(s), as a trace in {path}\n{table}")

    steps = schedule(wait=0, warmup=1, active=num_updates, repeat=1)
    with profile(schedule=steps, on_trace_ready=write) as profiler:
        yield profiler.step
