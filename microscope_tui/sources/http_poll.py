"""One GET of a metrics address: no redirects, a few seconds, a few megabytes.

The request runs in a thread of its own, so that a server that does not answer holds nothing up.
"""

import base64
import http.client
import socket
import threading
from contextlib import suppress
from urllib.parse import SplitResult, unquote, urlsplit

from microscope_tui.runlog import safe_text
from microscope_tui.sources.reader import Unreadable

MOST_S = 5.0
"""Time for one poll, from the first byte sent to the last one received."""
MOST_BYTES = 16 << 20
"""Longest answer."""


def is_address(text: str) -> bool:
    """Whether a path on the command line is an address to poll."""
    return text.lower().startswith(("http://", "https://"))


def shown(address: str) -> str:
    """The address without its credentials: user, password and query are ``***``."""
    try:
        parts = urlsplit(address)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "***"
    user = "***@" if "@" in parts.netloc else ""
    query = "?***" if parts.query else ""
    return safe_text(f"{parts.scheme}://{user}{host}{parts.path}{query}", 200)


class Poll:
    """A request that was started; ``answer`` gives its result."""

    def __init__(self, address: str) -> None:
        self._shown = shown(address)
        self._address = address
        self._socket: socket.socket | None = None
        self._is_late = False
        self._body = b""
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="metrics poll", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether ``answer`` returns at once."""
        return not self._thread.is_alive()

    def answer(self) -> bytes:
        """The body of the answer.

        Raises:
            OSError: no answer, or not a good one; a later poll may get one.
            Unreadable: the address is wrong, redirects, or the answer is too long.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._body

    def _run(self) -> None:
        try:
            self._body = self._get(urlsplit(self._address))
        except Unreadable as error:
            self._error = error
        except (OSError, http.client.HTTPException, ValueError) as error:
            # The text of an HTTPException or ValueError may quote the address: only its kind.
            why = error.strerror or str(error) if isinstance(error, OSError) else ""
            text = safe_text(f"{self._shown}: {why or type(error).__name__}", 300)
            wrong = isinstance(error, ValueError | http.client.InvalidURL)  # of the address
            self._error = Unreadable(text) if wrong else OSError(text)

    def _get(self, parts: SplitResult) -> bytes:
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        connection = kind(parts.hostname or "", parts.port, timeout=MOST_S)
        headers = {"Accept": "text/plain;version=0.0.4", "Connection": "close"}
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            headers["Authorization"] = "Basic " + base64.b64encode(pair).decode()
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        late = threading.Timer(MOST_S, self._hang_up)
        try:
            connection.connect()
            self._socket = connection.sock
            late.daemon = True
            late.start()
            connection.request("GET", path, headers=headers)
            with connection.getresponse() as response:
                self._refuse(response)
                body = response.read(MOST_BYTES + 1)
                if len(body) > MOST_BYTES:
                    raise Unreadable(
                        f"{self._shown}: the answer is longer than {MOST_BYTES:,} bytes"
                    )
                if self._is_late:
                    raise TimeoutError(f"no whole answer within {MOST_S:g} s")
                if response.length:
                    raise OSError("the answer ended early")
                return body
        finally:
            late.cancel()
            connection.close()

    def _hang_up(self) -> None:
        """End a connection whose server sends a byte now and then for ever."""
        self._is_late = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _refuse(self, response: http.client.HTTPResponse) -> None:
        if 300 <= response.status < 400:
            raise Unreadable(
                f"{self._shown}: redirects to another address, which is refused; give that address"
            )
        if response.status != 200:
            raise OSError(f"HTTP status {response.status}")
