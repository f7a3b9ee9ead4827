"""A report that is served on this machine alone, and refreshed while the run writes."""

import contextlib
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from dartformer.errors import InputError
from dartformer.machine.printable import printable
from dartformer.placement.study import is_placement
from dartformer.report import page, placement, reading

HOST = "127.0.0.1"
LARGEST_PORT = 65535

PATTERNS = (
    "*.json",
    # No `**`, which would also search checkpoints while a run renames them.
    "search/*.json*",
    "search/*/*.json*",
    "trainings/*/*/metrics.jsonl",
)
"""The files that a page shows."""


def version(path: Path) -> str:
    """A text that changes whenever a file that a page shows does."""
    files: list[Path] = []
    for pattern in PATTERNS:
        with contextlib.suppress(OSError):  # a folder that is renamed in this moment
            files += path.glob(pattern)
    digest = hashlib.sha256()
    # Times and sizes, not contents: the page asks every few seconds, and logs are long.
    for file in sorted(files):
        try:
            about = file.stat()
        except OSError:  # replaced in this moment
            continue
        digest.update(f"{file} {about.st_mtime_ns} {about.st_size}\n".encode())
    return digest.hexdigest()[:16]


class Page:
    """The page of a workdir, rendered when the workdir has changed."""

    def __init__(self, folder: Path):
        self.folder = folder
        # Each request has a thread of its own, and a page takes a second to render.
        self._lock = threading.Lock()
        self._version = ""
        self._text = ""

    def text(self) -> str:
        """The page as of now."""
        with self._lock:
            current = version(self.folder)
            if current != self._version:
                report = page.report
                if is_placement(self.folder):
                    report = placement.report
                self._text = report(self.folder, live=True)
                self._version = current
            return self._text


def server(path: str | Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of one workdir's page, on the loopback interface; `port` 0 is any free port.

    It answers with the page, its version, and the files that the page links to. A request that
    names another host is refused, so that no page of another site can read this one. Raises
    `InputError` where the folder is not a workdir, or the port is taken.
    """
    folder = Path(path)
    if not 0 <= port <= LARGEST_PORT:
        raise InputError(f"a port is a number from 0 to {LARGEST_PORT}, got {port}.")
    links = {**page.LINKS, **placement.LINKS}
    if not is_placement(folder):
        reading.settings_of(folder)
    served = Page(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Another site may let its own name point here (DNS rebinding), but a browser then
            # sends that name.
            host = self.headers.get("Host", "").rsplit(":", 1)[0]
            name = self.path.split("?")[0].lstrip("/")
            if host not in (HOST, "localhost"):
                self._answer(403, "text/plain", "this server answers for localhost alone")
            elif name == "version":
                self._answer(200, "text/plain", version(folder))
            elif name == "":
                try:
                    self._answer(200, "text/html", served.text())
                except InputError as error:  # of a file that is only half written, say
                    self._answer(503, "text/plain", f"{error}\n")
            elif name in links and (folder / name).is_file():
                text = (folder / name).read_text(encoding="utf-8", errors="replace")
                self._answer(200, "text/plain", text)
            else:
                self._answer(404, "text/plain", "not found")

        def _answer(self, code: int, kind: str, text: str) -> None:
            data = text.encode()
            self.send_response(code)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")  # the page changes, its address does not
            # A browser must not run as a page what was sent as text.
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Requests are not logged."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise InputError(f"cannot serve on port {port}: {error.strerror}.") from None


def watch(path: str | Path, port: int = 0) -> None:
    """Serve until interrupted, and print the address."""
    with server(path, port) as serving:
        address = f"http://{HOST}:{serving.server_address[1]}/"
        print(printable(f"{address} shows {path} (Ctrl-C stops)"), flush=True)
        serving.serve_forever()
