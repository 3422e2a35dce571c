"""Spans for the operator's tracing, if that is asked for: made by OpenTelemetry's API, which nobody else imports.

Who makes spans has a `Tracing`, or None where there is none to be made. Where the spans go is for the SDK that the
operator has set up. A span tells ids, numbers and error codes; no key, no payload.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from types import MappingProxyType
from typing import Any, Final, Literal

from .errors import ConfigError
from .version import __version__

MAX_LINKS: Final = 32
"""Of one span to the traces of its events."""
Kind = Literal["internal", "server", "client"]
Attributes = Mapping[str, str | float | None]
"""What is told of a span, by names of OpenTelemetry's or of our own; None is not told."""


class Tracing:
    """Makes spans. Raises `ConfigError` if OpenTelemetry is not installed."""

    def __init__(self) -> None:
        try:
            from opentelemetry import context, trace
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise ConfigError(
                "OpenTelemetry is not installed (pip install 'daimon-broker[otel]') - at `$.tracing.enabled`"
            ) from None
        self.trace: Any = trace
        self.context: Any = context
        self._propagator = TraceContextTextMapPropagator()
        self._tracer = trace.get_tracer("broker", __version__)
        self._kinds = {
            "internal": trace.SpanKind.INTERNAL,
            "server": trace.SpanKind.SERVER,
            "client": trace.SpanKind.CLIENT,
        }

    def begin(
        self,
        name: str,
        kind: Kind,
        traceparent: str | None,
        attributes: Attributes,
        *,
        began_at: float | None = None,
        ambient: bool = False,
    ) -> "Span":
        """Begin a span in the trace that ``traceparent`` names, a valid one; else in one of its own.

        ``began_at``: in seconds since 1970, if it was before now; ``ambient``: without a ``traceparent`` it is part of
        what the caller does, whose span is current.
        """
        parent = self._context_of(traceparent)
        span = self._tracer.start_span(
            name,
            context=None if ambient and traceparent is None else parent,
            kind=self._kinds[kind],
            attributes=_given(attributes),
            start_time=None if began_at is None else int(began_at * 1e9),
        )
        return Span(self, span, traceparent)

    def _context_of(self, traceparent: str | None) -> Any:
        return self._propagator.extract({"traceparent": traceparent} if traceparent else {}, self.context.Context())

    def span_context_of(self, traceparent: str) -> Any:
        """Return what the API has for a place in a trace."""
        return self.trace.get_current_span(self._context_of(traceparent)).get_span_context()


class Span:
    """Something that is under way. One that is never ended is never told of."""

    __slots__ = ("_span", "_tracing", "traceparent")

    def __init__(self, tracing: Tracing, span: Any, traceparent: str | None) -> None:
        self._tracing = tracing
        self._span = span
        where = span.get_span_context()
        self.traceparent = (
            f"00-{where.trace_id:032x}-{where.span_id:016x}-{where.trace_flags:02x}" if where.is_valid else traceparent
        )
        """For what is done in it elsewhere."""

    @contextmanager
    def current(self) -> Iterator[None]:
        """Have it be the current one of this task: what is begun in the block is part of it."""
        token = self._tracing.context.attach(self._tracing.trace.set_span_in_context(self._span))
        try:
            yield
        finally:
            self._tracing.context.detach(token)

    def link(self, traceparents: Iterable[str]) -> None:
        """Say which other traces it belongs to; no more than `MAX_LINKS` are taken."""
        for traceparent in islice(traceparents, MAX_LINKS):
            self._span.add_link(self._tracing.span_context_of(traceparent))

    def end(self, error: str | None = None, attributes: Attributes = MappingProxyType({})) -> None:
        """Say that it is done, or with which error code it failed. Only the first end counts."""
        if error is not None:
            self._span.set_status(self._tracing.trace.Status(self._tracing.trace.StatusCode.ERROR))
            self._span.set_attribute("error.type", error)
        self._span.set_attributes(_given(attributes))
        self._span.end()


def _given(attributes: Attributes) -> dict[str, str | float]:
    return {name: value for name, value in attributes.items() if value is not None}
