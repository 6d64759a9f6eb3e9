"""Write the report of a run or of several side by side, or serve it while they go on: ``mlm report runs --watch``.

mlm report runs/quickstart
mlm report runs/one runs/two --output compared.html
mlm report runs --watch
"""

import contextlib
import sys
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from launch.run.errors import OneLineParser, one_line_errors
from train_loop import run_files


@one_line_errors
def main(arguments: list[str]) -> None:
    """Write the page and print its path, or serve it until Ctrl-C."""
    parser = OneLineParser(prog="mlm report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or one with runs below it")
    place = "default: report.html in the folder, or here for several folders"
    parser.add_argument("--output", type=Path, metavar="FILE", help=place)
    parser.add_argument("--watch", action="store_true", help="write no file: serve the page, which follows the runs")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="of --watch (default: one that is free)")
    options = parser.parse_args(arguments)
    if options.watch and options.output:
        parser.error("--output goes without --watch, which writes no file")
    if options.watch:
        _watch(options.runs, options.port)
        return
    from train_loop.watching.report import write_report

    folder = options.runs[0] if len(options.runs) == 1 else Path()
    output = options.output or folder / run_files.REPORT
    write_report(_runs(options.runs), output)
    print(f"report   {output}")


def _runs(folders: Sequence[Path]) -> list[Path]:
    """The folders that are runs, and the runs below the others. Raises ValueError if there is none below one."""
    runs: dict[Path, None] = {}
    for folder in folders:
        is_run = (folder / run_files.METRICS).is_file()
        found = [folder] if is_run else sorted(path.parent for path in folder.rglob(run_files.METRICS))
        if not found:
            raise ValueError(f"{folder} holds no run: there is no {run_files.METRICS} in it or below it")
        runs |= dict.fromkeys(found)
    return list(runs)


def _watch(folders: Sequence[Path], port: int) -> None:
    """Serve the runs' page to this machine alone, until Ctrl-C."""
    from train_loop.watching.report import render

    class Handler(BaseHTTPRequestHandler):
        """The page as the runs are now, or that it would be the same."""

        def do_GET(self) -> None:
            try:
                runs = _runs(folders)
                times = [(run / run_files.METRICS).stat().st_mtime_ns for run in runs]
                version = f'"{hash((*runs, *times, *((run / run_files.MODEL).exists() for run in runs)))}"'
                is_known = self.headers["If-None-Match"] == version
                page = b"" if is_known else render(runs, is_watched=True).encode()
            except (ValueError, OSError) as error:  # such as a file that is just being replaced; the page asks again
                self.send_error(503, explain=str(error))
                return
            with contextlib.suppress(ConnectionError):  # the browser has gone
                self.send_response(304 if is_known else 200)
                self.send_header("ETag", version)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write(page)

        def log_message(self, *words: object) -> None:
            """Print nothing."""

    render(_runs(folders))  # what is wrong is told here, not in a browser
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        raise ValueError(f"--port {port}: {error}; choose another, or leave --port out") from error
    with server:
        print(f"report   http://127.0.0.1:{server.server_port}/ follows the runs; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main(sys.argv[1:])
