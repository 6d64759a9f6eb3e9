"""Share a model on the Hub, or export it to ONNX.

mlm publish --model runs/mine/model --repo_id user/name
mlm publish export --model runs/mine/model --output mine-onnx
"""

import logging
import sys
import warnings
from pathlib import Path

from launch.run.errors import OneLineParser, fail, one_line_errors


@one_line_errors
def main(arguments: list[str]) -> None:
    """Push a model's folder, or export it; exit code 3 if the Hub refuses the push."""
    if arguments[:1] == ["export"]:
        _export(arguments[1:])
    else:
        _push(arguments)


def _push(arguments: list[str]) -> None:
    parser = OneLineParser(prog="mlm publish", description=__doc__)
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of a run, of a model or of a checkpoint")
    parser.add_argument("--repo_id", required=True, metavar="USER/NAME", help="repository, made if there is none")
    parser.add_argument("--private", action="store_true", default=None, help="the repository must be private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to, made if there is none")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of committing")
    options = parser.parse_args(arguments)
    from launch.run.hub import NOT_PUSHED, publish_command
    from train_loop.sharing import hub
    from train_loop.sharing.locate import model_folder

    logging.getLogger("train_loop").addHandler(logging.StreamHandler())
    model = Path(model_folder(options.model))
    repository = hub.Repository(options.repo_id, options.private, options.revision, options.create_pr)
    if not (model / "config.json").is_file():
        raise ValueError(f"--model {options.model} holds no config.json: give a run, a model or a checkpoint")
    hub.limit_waiting()
    try:
        hub.open_repository(repository)
        print(hub.push_model(model, repository, message="Upload masked language model"))
    except hub.PublishError as error:
        again = publish_command(model, repository)
        fail(f"{error}; {model} is as it was; push it again by: {again}", NOT_PUSHED)


def _export(arguments: list[str]) -> None:
    parser = OneLineParser(prog="mlm publish export", description="Export a model to ONNX.")
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="folder of a run or a model, or a Hub id")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    options = parser.parse_args(arguments)
    output = Path(options.output)
    if output.exists():
        raise ValueError(f"--output {output} is there already: name another folder, or remove it")
    logging.disable(logging.WARNING)  # the exporter logs much about its own work
    warnings.filterwarnings("ignore")
    from transformers.utils import logging as transformers_logging

    from train_loop.sharing.export_onnx import export_onnx

    transformers_logging.disable_progress_bar()
    compared = export_onnx(options.model, output)
    print(f"exported   {output}: {', '.join(sorted(path.name for path in output.iterdir()))}")
    print(
        f"checked    ONNX Runtime's logits differ from the model's by {compared.difference:.2g} at the most, "
        f"on random texts of {min(compared.lengths):,} to {max(compared.lengths):,} tokens"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
