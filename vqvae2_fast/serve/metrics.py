"""What the service counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counts of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self.requests = Counter(
            "vqvae2_requests", "Requests that were answered.", ["route", "status"], registry=own
        )
        self.seconds = Histogram(
            "vqvae2_request_seconds",
            "Seconds from a request's arrival to the end of its answer.",
            ["route"],
            registry=own,
            buckets=_SECONDS,
        )
        self.first_row = Histogram(
            "vqvae2_first_row_seconds",
            "Seconds from an order's arrival to its first row.",
            registry=own,
            buckets=_SECONDS,
        )
        self.open = Gauge("vqvae2_open_requests", "Requests that are answered now.", registry=own)
        self.waiting = Gauge(
            "vqvae2_waiting_images", "Images that are drawn or wait for it.", registry=own
        )
        self.images = Counter("vqvae2_images", "Images that were drawn.", registry=own)
        self.codes = Counter("vqvae2_codes", "Codes that were drawn.", ["level"], registry=own)
        self.batches = Histogram(
            "vqvae2_batch_images",
            "Images whose maps were drawn together.",
            ["level"],
            registry=own,
            buckets=_IMAGES,
        )
        self.cancelled = Counter(
            "vqvae2_cancelled_images",
            "Images that were given up because their client had gone.",
            registry=own,
        )

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)
