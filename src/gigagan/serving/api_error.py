"""What a client is told when it gets no picture, in the form that OpenAI's clients read."""

import json
import math
from typing import Any

MAX_MESSAGE = 500
BUG = "something is wrong in the server; its log says what"


class ApiError(Exception):
    """An answer that is no picture; status, code and param as in OpenAI's API."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_ms: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """`retry_ms`: after how long the same request may well be served; None = never, as far as we know."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE - 3]}..."
        self.param = param
        self.retry_ms = retry_ms
        self._headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """All four fields, which the published schema requires."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        elif self.status == 401:
            kind = "authentication_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def content(self) -> bytes:
        """The body as sent."""
        return json.dumps(self.body).encode()

    @property
    def headers(self) -> dict[str, str]:
        """What tells a client whether to try again; OpenAI's retries each 408, 409, 429 and 5xx unless told not to."""
        found = {"content-type": "application/json", **self._headers}
        if self.retry_ms is not None:
            found["retry-after-ms"] = str(self.retry_ms)
            found["retry-after"] = str(math.ceil(self.retry_ms / 1000))
            found["x-should-retry"] = "true"
        elif self.status in (408, 409, 429) or self.status >= 500:
            found["x-should-retry"] = "false"
        return found


def invalid(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """The request can't be served as it is."""
    return ApiError(400, code, message, param=param)
