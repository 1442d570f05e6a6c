"""What the service accepts, and the error that says why it does not accept more."""

from __future__ import annotations

from dataclasses import dataclass

from vqvae2_fast.files.printable import short

__all__ = ["Limits", "Problem", "stopping", "too_slow"]


@dataclass(frozen=True)
class Limits:
    """Bounds on requests.

    Args:
        batch: The largest number of images whose maps are drawn together.
        batch_wait: Seconds that a request waits for others to be drawn with.
        count: The largest number of images of one request.
        waiting: The largest number of images that are being drawn or wait for it; more are refused
            with 429.
        connections: The largest number of open connections. For one more, that is closed of which
            the server has waited longest for a request.
        body: The largest number of bytes of a request's body. The bodies of all open requests hold
            at most eight times as much; one that is larger than what is left is refused with 429.
        pixels: The largest number of pixels of an uploaded image.
        decoders: The largest number of uploads that are decoded at once, each of which may take the
            memory of its pixels several times; the others wait.
        candidates: The largest number of fillings of a hole that are drawn to take one.
        seconds: A request whose body takes longer to come is given up, with 408, and one that takes
            longer from then on, with 504. A client that takes nothing of its answer for so long is
            given up too.
        head: A connection is closed on which no head of a request has come whole for so many
            seconds, since it was opened or the last request was answered. This limit and
            `connections` are kept by `vqvae2-fast serve`, and not by the app in another server.
    """

    batch: int = 64
    batch_wait: float = 0.003
    count: int = 16
    waiting: int = 256
    connections: int = 2048
    body: int = 8 * 2**20
    pixels: int = 2**24
    decoders: int = 2
    candidates: int = 64
    seconds: float = 60.0
    head: float = 10.0


class Problem(Exception):
    """Why a request is refused, as its client is told.

    Args:
        status: The HTTP status.
        field: The part of the request that is wrong, such as "temperature" or "known.0"; empty if
            it is none.
        expected: What was expected and what came, as a sentence.
        remedy: What to do.
    """

    def __init__(
        self, status: int, field: str, expected: str, remedy: str, *, retry_after: int | None = None
    ) -> None:
        super().__init__(expected)
        self.status, self.field = status, short(field, 200)  # it may be a name of the client's
        self.expected, self.remedy = expected, remedy
        self.retry_after = retry_after

    def body(self) -> dict[str, dict[str, str]]:
        return {
            "error": {"field": self.field, "expected": self.expected, "remedy": self.remedy},
        }

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def stopping() -> Problem:
    """The refusal of what is not drawn before the server ends."""
    return Problem(503, "", "The server is stopping.", "Try again when it is back.")


def too_slow(seconds: float) -> Problem:
    """The refusal of what takes longer than the limit."""
    return Problem(
        504, "", f"It took longer than {seconds:g} s.", "Ask for fewer images, or later."
    )
