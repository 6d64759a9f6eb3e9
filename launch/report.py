"""Write the report of a run or of several side by side, or again whenever one goes on: ``mlm report runs --watch``.

mlm report runs/quickstart
mlm report runs/one runs/two --output compared.html
mlm report runs --watch
"""

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.run.errors import OneLineParser, one_line_errors
from train_loop import run_files


@one_line_errors
def main(arguments: list[str]) -> None:
    """Write the page and print its path; with ``--watch`` until Ctrl-C."""
    parser = OneLineParser(prog="mlm report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or one with runs below it")
    place = "default: report.html in the folder, or here for several folders"
    parser.add_argument("--output", type=Path, metavar="FILE", help=place)
    parser.add_argument("--watch", action="store_true", help="write it again whenever a run has gone on, until Ctrl-C")
    options = parser.parse_args(arguments)
    from train_loop.watching.report import write_report

    output = options.output or (options.runs[0] if len(options.runs) == 1 else Path()) / run_files.REPORT
    seen = None
    with contextlib.suppress(KeyboardInterrupt):
        while options.watch or seen is None:
            runs = _runs(options.runs)
            now = [((run / run_files.METRICS).stat().st_mtime_ns, (run / run_files.MODEL).exists()) for run in runs]
            if now != seen:
                write_report(runs, output)
                if seen is None:
                    print(f"report   {output}", flush=True)
            seen = now
            time.sleep(2 * options.watch)


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


if __name__ == "__main__":
    main(sys.argv[1:])
