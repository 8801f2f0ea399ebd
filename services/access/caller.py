"""Who sent a request, and what they may see."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import HTTPConnection

from services.access.api_keys import ApiKey
from services.access.rate_limits import RateLimits
from services.messages.api_error import ApiError


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request. Without a key it is a program on this machine, which may do everything."""

    key: ApiKey | None = None
    limits: RateLimits | None = None

    @property
    def key_id(self) -> str | None:
        """The id of the caller's key; None without one."""
        return None if self.key is None else self.key.id

    def can_see(self, camera: str) -> bool:
        """Whether the caller may see the camera."""
        return self.key is None or self.key.can_see(camera)

    def check_can_see(self, camera: str, param: str | None = None) -> None:
        """Raises ApiError 403 if the caller may not see the camera, whether or not it exists."""
        if not self.can_see(camera):
            message = f"this key may not see a camera called {camera[:80]!r}"
            raise ApiError(403, "not_your_camera", message, param=param)

    async def count_request(self) -> None:
        """Count a request of the caller's key. Raises ApiError 429 if it has made too many."""
        if self.key is not None and self.limits is not None:
            await self.limits.count_request(self.key)


def caller_of(connection: HTTPConnection) -> Caller:
    """The caller that the authentication middleware found."""
    return connection.state.caller
