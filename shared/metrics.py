"""Metrics: the one annotated list of what Dateline counts, in Prometheus' terms.

Owns names and help texts. A registry belongs to a process and is passed down, never global.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# From what one reader's socket takes to what everybody notices.
SECONDS_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    def __init__(self) -> None:
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
        self.shards = Gauge("dateline_shards_owned", "Shards whose lease this projector holds", registry=self.registry)
        # Of the shards that this projector holds, as of a few seconds ago: what a nightly alarm asks for.
        self.lag_events = Gauge("dateline_lag_events", "Events not folded yet", registry=self.registry)
        self.lag_seconds = Gauge("dateline_lag_seconds", "Age of the oldest event not folded", registry=self.registry)
        self.quarantined_open = Gauge(
            "dateline_events_in_quarantine", "Events in quarantine that nobody discarded", registry=self.registry
        )
        self.readers = Gauge("dateline_readers", "Connected SSE readers", registry=self.registry)
        self.readers_behind = Gauge(
            "dateline_readers_behind", "Readers that cannot take what waits for them", registry=self.registry
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
        return generate_latest(self.registry)
