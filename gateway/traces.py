"""OpenTelemetry spans of requests and of what they ask vLLM; nothing where no collector is set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gateway.exchange import Exchange
from gateway.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


class Tracer:
    """Spans hold routes, models, sizes and statuses. Exceptions are not recorded on them."""

    def __init__(self, provider: TracerProvider | None) -> None:
        self.provider = provider
        self.tracer = provider.get_tracer("loraline.gateway") if provider else None

    @classmethod
    def of(cls, settings: Settings) -> Tracer:
        if settings.otlp_endpoint is None:
            return cls(None)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        # Not Resource.create(): that reads the machine's environment.
        provider = TracerProvider(resource=Resource({"service.name": "loraline-gateway"}))
        exporter = OTLPSpanExporter(endpoint=settings.otlp_endpoint)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    @contextmanager
    def request(self, exchange: Exchange, headers: Mapping[bytes, bytes]) -> Iterator[None]:
        """The span of one request, below the caller's where it sends a traceparent."""
        if self.tracer is None:
            yield
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = headers.get(b"traceparent", b"").decode("latin-1")
        context = TraceContextTextMapPropagator().extract({"traceparent": parent})
        with self.tracer.start_as_current_span(
            "request",
            context,
            SpanKind.SERVER,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            finally:
                span.update_name(f"{exchange.method} {exchange.route}")
                for name, value in attributes(exchange).items():
                    span.set_attribute(name, value)
                if exchange.status >= 500:
                    span.set_status(Status(StatusCode.ERROR))

    @contextmanager
    def upstream(self, model: str) -> Iterator[dict[str, str]]:
        """The span of one request to vLLM, with the headers that carry it there."""
        if self.tracer is None:
            yield {}
            return
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        with self.tracer.start_as_current_span(
            "vllm",
            kind=SpanKind.CLIENT,
            attributes={"gen_ai.request.model": model},
            record_exception=False,
            set_status_on_exception=False,
        ):
            carried: dict[str, str] = {}
            TraceContextTextMapPropagator().inject(carried)
            yield carried

    def close(self) -> None:
        if self.provider:
            self.provider.shutdown()


def attributes(exchange: Exchange) -> dict[str, str | int | float]:
    values: dict[str, str | int | float] = {
        "http.request.method": exchange.method,
        "http.route": exchange.route,
        "http.response.status_code": exchange.status,
        "loraline.request_id": exchange.id,
        "loraline.bytes_in": exchange.bytes_in,
        "loraline.queue_seconds": exchange.queue_s,
    }
    if exchange.model:
        values |= {
            "gen_ai.request.model": exchange.model,
            "gen_ai.usage.input_tokens": exchange.prompt_tokens,
            "gen_ai.usage.output_tokens": exchange.completion_tokens,
        }
    for name in ("task", "code", "finish_reason"):
        if value := getattr(exchange, name):
            values[f"loraline.{name}"] = value
    return values
