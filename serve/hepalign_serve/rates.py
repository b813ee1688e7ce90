"""How often a site may ask, counted in one place for all ingress replicas."""

from __future__ import annotations

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from hepalign_serve.settings import Limits


class Rates:
    """A moving window of one minute for each site; forgotten when its process ends."""

    def __init__(self, limits: Limits) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._rate = RateLimitItemPerMinute(limits.requests_per_minute)

    def admit(self, site: str) -> bool:
        """Counts one request; False when it is one too many."""
        return bool(self._limiter.hit(self._rate, site))
