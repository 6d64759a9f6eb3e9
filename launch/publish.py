"""Share a model on the Hub, or take it elsewhere.

python -m launch.publish --model runs/mine/model --repo_id user/name
python -m launch.publish export --model runs/mine/model --format onnx --output mine-onnx
"""

import argparse
import logging
import sys
from pathlib import Path

from launch import export
from launch.run.hub import NOT_PUSHED
from launch.run.settings import OneLineParser, fail


def main(arguments: list[str]) -> None:
    """Push a model's folder; exit 2 with one line for what the user can mend, and 3 if the Hub did not take it."""
    if arguments[:1] == ["export"]:
        export.main(arguments[1:])
        return
    options = _parser().parse_args(arguments)
    from train_loop.sharing.hub import (
        PublishError,
        Repository,
        limit_waiting,
        open_repository,
        publish_command,
        push_model,
    )

    logging.getLogger("train_loop").addHandler(logging.StreamHandler())
    model = Path(options.model)
    try:
        repository = Repository(options.repo_id, options.private, options.revision, options.create_pr)
        if not (model / "config.json").is_file():
            raise ValueError(f"--model {options.model} holds no config.json: give a run's model folder or a checkpoint")
    except ValueError as error:
        fail(error)
    limit_waiting()
    try:
        open_repository(repository)
        where = push_model(model, repository, message="Upload masked language model")
    except PublishError as error:
        fail(f"{error}; {model} is as it was; push it again by: {publish_command(model, repository)}", NOT_PUSHED)
    print(where)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m launch.publish", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of a model: a run's, or a checkpoint")
    parser.add_argument("--repo_id", required=True, metavar="USER/NAME", help="repository, made if there is none")
    parser.add_argument("--private", action="store_true", default=None, help="the repository must be private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to, made if there is none")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of committing")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
