"""Metrics: the one annotated list of what Dateline counts, in Prometheus' terms.

Owns names and help texts, and how several processes of one installation show theirs as one: each keeps its own in files of a
directory that all know, and whoever is asked adds them up. A registry belongs to a process and is passed down, never global.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

# The library's own variable. It looks there for each kind of metric when the first of that kind is made.
DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"

# From what one reader's socket takes to what everybody notices.
SECONDS_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


@contextmanager
def shared_metrics() -> Iterator[None]:
    """While this lasts, processes that are started from here, and this one, can show their metrics as one."""
    with tempfile.TemporaryDirectory(prefix="dateline-metrics-") as directory:
        os.environ[DIRECTORY] = directory
        try:
            yield
        finally:
            del os.environ[DIRECTORY]


def forget_gauges(name: str) -> None:
    """The process that was `shared_as` this name has ended: what it counted stays counted, what it had it has no more."""
    mark_process_dead(name)  # type: ignore[no-untyped-call]  # the library has no types here


def discard_shared_metrics() -> None:
    """For a process whose supervisor could not do it: was killed."""
    shutil.rmtree(os.environ[DIRECTORY], ignore_errors=True)


class Metrics:
    """The metrics of one process. `shared_as`: its name among the processes that show theirs as one (`shared_metrics`).

    A process that comes after another under the same name counts on from there, so counters never run backwards, and as
    many files are kept as there are names, however often one is started again.
    """

    def __init__(self, *, shared_as: str | None = None) -> None:
        self._shared = shared_as is not None
        if shared_as is not None:
            # The library knows a process by its pid, unless told otherwise, and keeps values for the process.
            values.ValueClass = values.MultiProcessValue(lambda: shared_as)  # type: ignore[no-untyped-call]  # likewise
        self.registry = CollectorRegistry()
        # Every answer that is a problem document, by its code: bad input is counted, not logged.
        self.problems = Counter("dateline_problems", "Problem documents sent", ["code"], registry=self.registry)
        self.appended = Counter("dateline_events_appended", "Events appended to logs", registry=self.registry)
        self.folded = Counter("dateline_events_folded", "Events committed to read models", registry=self.registry)
        self.append_seconds = Histogram(
            "dateline_append_seconds",
            "From what a writer decided to the log's answer",
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.quarantined = Counter("dateline_events_quarantined", "Events set aside", registry=self.registry)
        # Of several processes the living ones count (`live…`), together or the worst of them.
        self.shards = Gauge(
            "dateline_shards_owned",
            "Shards whose lease this projector holds",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        # Of the shards that this projector holds, as of a few seconds ago: what a nightly alarm asks for.
        self.lag_events = Gauge(
            "dateline_lag_events", "Events not folded yet", registry=self.registry, multiprocess_mode="livesum"
        )
        self.lag_seconds = Gauge(
            "dateline_lag_seconds",
            "Age of the oldest event not folded",
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.quarantined_open = Gauge(
            "dateline_events_in_quarantine",
            "Events in quarantine that nobody discarded",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.readers = Gauge(
            "dateline_readers", "Connected SSE readers", registry=self.registry, multiprocess_mode="livesum"
        )
        self.readers_behind = Gauge(
            "dateline_readers_behind",
            "Readers that cannot take what waits for them",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.deliveries = Counter("dateline_deliveries", "Frames given to readers' sockets", registry=self.registry)
        self.bytes_sent = Counter("dateline_sent_bytes", "Bytes given to readers' sockets", registry=self.registry)
        self.publish_seconds = Histogram(
            "dateline_publish_seconds",
            "From an event's recorded_at to the write of its frame to sockets",
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.catch_ups = Counter(
            "dateline_catch_ups", "Readers brought up by a folded difference", registry=self.registry
        )
        self.resets = Counter(
            "dateline_resets", "Readers that had to forget what they held", ["reason"], registry=self.registry
        )
        # A histogram and no gauge: a stall between two scrapes is counted all the same.
        self.loop_lag_seconds = Histogram(
            "dateline_loop_lag_seconds",
            "How late the event loop woke a sleeper",
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )

    def render(self) -> bytes:
        if not self._shared:
            return generate_latest(self.registry)
        # Apart from the registry that the metrics are in: there each would be shown twice.
        of_all = CollectorRegistry()
        MultiProcessCollector(of_all)  # type: ignore[no-untyped-call]  # likewise
        return generate_latest(of_all)
