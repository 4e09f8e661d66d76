"""Metrics: the one annotated list of what Dateline counts, in Prometheus' terms.

Owns names and help texts. A registry belongs to a process and is passed down, never global.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # Every answer that is a problem document, by its code: bad input is counted, not logged.
        self.problems = Counter("dateline_problems", "Problem documents sent", ["code"], registry=self.registry)
        self.appended = Counter("dateline_events_appended", "Events appended to logs", registry=self.registry)
        self.folded = Counter("dateline_events_folded", "Events committed to read models", registry=self.registry)
        self.quarantined = Counter("dateline_events_quarantined", "Events set aside", registry=self.registry)
        self.shards = Gauge("dateline_shards_owned", "Shards whose lease this projector holds", registry=self.registry)
        # Of the shards that this projector holds, as of a few seconds ago: what a nightly alarm asks for.
        self.lag_events = Gauge("dateline_lag_events", "Events not folded yet", registry=self.registry)
        self.lag_seconds = Gauge("dateline_lag_seconds", "Age of the oldest event not folded", registry=self.registry)
        self.quarantined_open = Gauge(
            "dateline_events_in_quarantine", "Events in quarantine that nobody discarded", registry=self.registry
        )
        self.readers = Gauge("dateline_readers", "Connected SSE readers", registry=self.registry)
        self.deliveries = Counter("dateline_deliveries", "Frames given to readers' sockets", registry=self.registry)
        self.catch_ups = Counter(
            "dateline_catch_ups", "Readers brought up by a folded difference", registry=self.registry
        )
        self.resets = Counter(
            "dateline_resets", "Readers that had to forget what they held", ["reason"], registry=self.registry
        )

    def render(self) -> bytes:
        return generate_latest(self.registry)
