"""What Prometheus is told, one registry a server."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The server's counters."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        here = self._registry
        self.requests = Counter("gigagan_requests", "Requests answered.", ["route", "status"], registry=here)
        self.request_sec = Histogram(
            "gigagan_request_seconds", "Request to the last byte.", ["route"], buckets=SECONDS, registry=here
        )
        self.abandoned = Counter("gigagan_abandoned", "Requests whose client left before the answer.", registry=here)
        self.active = Gauge("gigagan_requests_active", "Requests that are being served.", registry=here)
        self.pictures = Counter("gigagan_pictures", "Pictures delivered, by format.", ["format"], registry=here)
        self.waiting = Gauge("gigagan_queue_pictures", "Pictures and frames that wait for the model.", registry=here)
        self.batch = Histogram(
            "gigagan_batch_pictures",
            "Pictures and frames drawn at once.",
            buckets=(1, 2, 3, 4, 8, 16, 32),
            registry=here,
        )
        self.draw_sec = Histogram("gigagan_draw_seconds", "The model, a batch.", buckets=SECONDS, registry=here)
        self.encode_sec = Histogram("gigagan_encode_seconds", "A picture to a file.", buckets=SECONDS, registry=here)
        self.ready = Gauge("gigagan_ready", "1 while the model is loaded and warm.", registry=here)
        self.restarts = Counter("gigagan_worker_restarts", "Workers that died or were stuck.", registry=here)

    def text(self) -> bytes:
        """As Prometheus reads them."""
        return generate_latest(self._registry)
