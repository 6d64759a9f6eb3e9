"""Write report.html of a run, finished or not, or of several runs side by side.

python -m launch.report runs/quickstart
python -m launch.report runs/one runs/two --output compared.html
"""

import sys
from pathlib import Path

from launch.run.settings import OneLineParser, one_line_errors


@one_line_errors
def main(arguments: list[str]) -> None:
    """Write the page and print its path."""
    parser = OneLineParser(prog="python -m launch.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="default: report.html in the run's folder, or here for several runs"
    )
    options = parser.parse_args(arguments)
    from train_loop.watching.report import write_report

    folder = options.runs[0] if len(options.runs) == 1 else Path()
    output = options.output or folder / "report.html"
    write_report(options.runs, output)
    print(f"report   {output}")


if __name__ == "__main__":
    main(sys.argv[1:])
