"""Prometheus series by route, task, model and status; no label ever holds what a client wrote."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from gateway.exchange import Exchange

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Each gateway has a separate registry, so that two in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        labels = ("route", "task", "model", "status")
        self.requests = self.counter("requests", "Requests that ended", labels)
        self.seconds = self.histogram(
            "request_seconds", "Seconds from a request's begin to the end of its answer"
        )
        self.ttft = self.histogram("ttft_seconds", "Seconds to the first byte from the model")
        self.queue = self.histogram("queue_seconds", "Seconds that a request waited for its turn")
        self.tokens = self.counter("tokens", "Tokens by direction", ("model", "direction"))
        self.bytes = self.counter("bytes", "Bytes by direction", ("route", "direction"))
        self.refused = self.counter("refused", "Refused requests by reason", ("route", "code"))
        self.upstream_errors = self.counter(
            "upstream_errors", "Failures of the model's servers", ("model", "reason")
        )
        self.repaired = self.counter(
            "repaired", "Answers whose form had to be mended or cut", ("task",)
        )
        self.cache = self.counter("cache_lookups", "Looks into the cache", ("result",))
        self.running = self.gauge("running", "Requests at the model's servers")
        self.waiting = self.gauge("queue_depth", "Requests that wait for their turn")
        self.up = self.gauge("model_up", "Whether a model is listed by its server", ("model",))

    def counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"loraline_gateway_{name}", text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"loraline_gateway_{name}", text, labels, registry=self.registry)

    def histogram(self, name: str, text: str) -> Histogram:
        return Histogram(
            f"loraline_gateway_{name}",
            text,
            ("route", "model"),
            buckets=SECONDS,
            registry=self.registry,
        )

    def observe(self, exchange: Exchange) -> None:
        route, model = exchange.route, exchange.model
        self.requests.labels(route, exchange.task, model, str(exchange.status)).inc()
        self.seconds.labels(route, model).observe(exchange.seconds)
        self.bytes.labels(route, "in").inc(exchange.bytes_in)
        self.bytes.labels(route, "out").inc(exchange.bytes_out)
        if exchange.code:
            self.refused.labels(route, exchange.code).inc()
        if model:
            self.queue.labels(route, model).observe(exchange.queue_s)
            self.count_tokens(exchange)
        if exchange.ttft_s is not None:
            self.ttft.labels(route, model).observe(exchange.ttft_s)

    def count_tokens(self, exchange: Exchange) -> None:
        self.tokens.labels(exchange.model, "prompt").inc(exchange.prompt_tokens)
        self.tokens.labels(exchange.model, "completion").inc(exchange.completion_tokens)

    def text(self) -> bytes:
        return generate_latest(self.registry)
