"""A server of the page on which a generator draws. It imports no network, so that it starts at once."""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

#: The file by which a folder is a demo.
SETTINGS = "demo.json"


class _Handler(SimpleHTTPRequestHandler):
    """Static files with the headers that let WebAssembly use several threads."""

    extensions_map = {  # noqa: RUF012, the base class's
        **SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript", ".wasm": "application/wasm",
    }  # fmt: skip

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *arguments: Any) -> None:
        """Nothing: a line for each file is of no use."""


def demo_server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of ``folder`` on the loopback address alone; port 0 is a free one.

    Raises:
        ValueError: for a folder that is no demo, or a port that is in use.
    """
    if not (folder / SETTINGS).is_file():
        raise ValueError(f"{folder} holds no demo: expected the folder that onestep demo wrote")
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, directory=str(folder)))
    except (OSError, OverflowError) as error:
        raise ValueError(f"--port {port}: {error}; give another one, or 0 for a free one") from error
