"""Watch: the report of a run under way, served on this machine alone, made anew whenever the run
writes something."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from dartformer.errors import InputError
from dartformer.report import page as report
from dartformer.report import reading

HOST = "127.0.0.1"


def version(path: Path) -> str:
    """Changes whenever a file that a page shows does."""
    found = hashlib.sha256()
    for file in sorted(
        [
            *path.glob("*.json"),
            *path.glob("search/**/*.json*"),
            *path.glob("retrain/*/metrics.jsonl"),
            *path.glob("baselines/*/*/metrics.jsonl"),
        ]
    ):
        try:
            about = file.stat()
        except OSError:  # replaced in this moment
            continue
        found.update(f"{file} {about.st_mtime_ns} {about.st_size}\n".encode())
    return found.hexdigest()[:16]


def server(path: str | Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of one workdir's page, on the loopback interface; `port` 0 is any that is free.

    It answers three things: the page, its version, and the files the page links to. A request that
    names another host is refused, so that no page of another site can read this one. Raises
    `InputError` where the folder is no workdir, or the port is taken."""
    folder = Path(path)
    reading.config_of(folder)
    made: dict[str, Any] = {"version": None, "page": ""}
    lock = threading.Lock()

    def page() -> str:
        with lock:
            now = version(folder)
            if made["version"] != now:
                made.update(page=report.report(folder, live=True), version=now)
            return str(made["page"])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rsplit(":", 1)[0]
            name = self.path.split("?")[0].lstrip("/")
            if host not in (HOST, "localhost"):
                self._answer(403, "text/plain", "this server answers for localhost alone")
            elif name == "version":
                self._answer(200, "text/plain", version(folder))
            elif name == "":
                try:
                    self._answer(200, "text/html", page())
                except InputError as error:
                    self._answer(503, "text/plain", f"{error}\n")
            elif name in report.LINKS and (folder / name).is_file():
                self._answer(
                    200, "text/plain", (folder / name).read_text(encoding="utf-8", errors="replace")
                )
            else:
                self._answer(404, "text/plain", "not here")

        def _answer(self, code: int, kind: str, text: str) -> None:
            data = text.encode()
            self.send_response(code)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Requests are not worth a line each."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise InputError(f"cannot serve on port {port}: {error.strerror}.") from None


def watch(path: str | Path, port: int = 0) -> None:
    """Serve until interrupted, and say where."""
    with server(path, port) as serving:
        print(f"http://{HOST}:{serving.server_address[1]}/ shows {path} (Ctrl-C stops)", flush=True)
        serving.serve_forever()
