"""`videorefer bench`: Bench-D and Bench-Q for a model or a file of predictions, new items, and two files compared."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from flows.bench_record import (
    JUDGE_KEY,
    JUDGE_TIMEOUT_S,
    BenchAsked,
    BenchResult,
    BenchUsageError,
    GivenAnswers,
    Heuristic,
    Judged,
    ModelAnswers,
    Questions,
    Replies,
)
from flows.cli_common import BAD_USAGE, JsonOption, LakeOption, fail, one_line_errors, print_json

QUESTION_TOKENS = 32
DESCRIPTION_TOKENS = 256

bench_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help=(
        "VideoRefer-Bench: questions with four options (`q`) and descriptions (`d`), on the official files or on items "
        "made of a build (`new`).\n\nThe same command again asks only what has no answer yet."
    ),
)

ItemsOption = Annotated[
    Path, typer.Option("--items", help="Items in the official format: a JSON array, or one JSON object a line.")
]
VideosOption = Annotated[
    Path | None,
    typer.Option("--videos", help="The folder that the items' `video` counts from; files or folders of frames."),
]
ModelOption = Annotated[
    Path | None,
    typer.Option("--model", help="What `videorefer train --out` wrote, or an official VideoRefer checkpoint."),
]
PredictionsOption = Annotated[
    Path | None,
    typer.Option(
        "--predictions", help="A file of predictions in place of a model: ours, or of the official scripts; of shards."
    ),
]
OutOption = Annotated[
    Path, typer.Option("--out", help="Where predictions, scores.json and report.md go; a folder holds one run.")
]
ModeOption = Annotated[
    Literal["single", "multi", "blind"] | None,
    typer.Option(
        "--mode",
        help="Masks shown: of the item's one frame, or of all annotated frames; `blind` shows neither masks nor video, "
        "which tells what the words alone give away. `single` for a model if not given; for a file of predictions, how "
        "it came about.",
    ),
]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="So many items pass the model at once.")]
TokensOption = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Cut an answer after so many tokens.")]


@bench_app.command("q")
def questions(
    items: ItemsOption,
    out: OutOption,
    videos: VideosOption = None,
    model: ModelOption = None,
    predictions: PredictionsOption = None,
    mode: ModeOption = None,
    scorer: Annotated[
        Literal["letter", "likelihood"],
        typer.Option(
            "--scorer",
            help="Read the letter from an answer to the official prompt, or ask the question alone and take the option "
            "that is likeliest as its answer (needs a model).",
        ),
    ] = "letter",
    batch_size: BatchOption = 4,
    max_new_tokens: TokensOption = QUESTION_TOKENS,
    as_json: JsonOption = False,
) -> None:
    """Bench-Q: accuracy for each type of question and over all, with standard errors.

    Unparsed and missing answers are wrong, and counted.
    """
    with one_line_errors():
        if scorer == "likelihood" and predictions:
            fail("--scorer likelihood asks a model; a file of --predictions is scored by letter", BAD_USAGE)
        scoring = Questions(scorer="letters" if scorer == "letter" else "likelihood")
        answers = _answers(videos, model, predictions, batch_size, max_new_tokens)
        _run(items, out, mode, answers, scoring, as_json)


@bench_app.command("d")
def descriptions(
    items: ItemsOption,
    out: OutOption,
    videos: VideosOption = None,
    model: ModelOption = None,
    predictions: PredictionsOption = None,
    mode: ModeOption = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            metavar="URL",
            help="An OpenAI-compatible server, as http://127.0.0.1:8000/v1, that marks the descriptions. Its key, if "
            f"it wants one, is read from {JUDGE_KEY}. Without a judge, a heuristic that is none.",
        ),
    ] = None,
    judge_model: Annotated[str | None, typer.Option("--judge-model", help="The judge's name on its server.")] = None,
    judge_prompt: Annotated[
        Path | None, typer.Option("--judge-prompt", help="A text for the judge in place of our own rubric.")
    ] = None,
    judge_replies: Annotated[
        Replies,
        typer.Option(
            "--judge-replies",
            help="JSON with an explanation of each score, JSON of four scores alone (for small judges), or the text "
            "format of the official scorer.",
        ),
    ] = "explained",
    judge_max_tokens: Annotated[
        int, typer.Option("--judge-max-tokens", min=1, help="Cut a reply after so many tokens.")
    ] = 1024,
    judge_concurrency: Annotated[
        int, typer.Option("--judge-concurrency", min=1, help="So many questions are under way at once.")
    ] = 8,
    judge_timeout: Annotated[
        float,
        typer.Option(
            "--judge-timeout",
            min=1,
            help="Seconds before a reply is asked for again; give a judge on a slow machine more, or fewer questions "
            "at once.",
        ),
    ] = JUDGE_TIMEOUT_S,
    batch_size: BatchOption = 4,
    max_new_tokens: TokensOption = DESCRIPTION_TOKENS,
    as_json: JsonOption = False,
) -> None:
    """Bench-D: four scores of each description by a judge, or, without one, a heuristic that is named so."""
    with one_line_errors():
        given = {"--judge-model": judge_model, "--judge-prompt": judge_prompt}
        if judge is None and (alone := [name for name, value in given.items() if value is not None]):
            fail(f"{' and '.join(alone)} without --judge URL; name the server that serves the judge", BAD_USAGE)
        if judge is not None and not judge_model:
            fail("--judge without --judge-model NAME; say which model of that server marks", BAD_USAGE)
        scoring = (
            Heuristic()
            if judge is None
            else Judged(
                base_url=judge,
                model=judge_model or "",
                prompt_file="" if judge_prompt is None else str(judge_prompt.absolute()),
                replies=judge_replies,
                max_tokens=judge_max_tokens,
                concurrency=judge_concurrency,
                timeout_s=judge_timeout,
            )
        )
        _run(items, out, mode, _answers(videos, model, predictions, batch_size, max_new_tokens), scoring, as_json)


@bench_app.command("new")
def new(
    lake: LakeOption,
    out: Annotated[Path, typer.Option("--out", help="The folder for bench-d.json, bench-q.json and README.md.")],
    build_id: Annotated[str | None, typer.Option("--build", help="A build; the latest if not given.")] = None,
    num: Annotated[
        int | None,
        typer.Option("--num", min=1, help="At most so many items in each file; 400 and 1000 if not given."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed draws other items and options.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Make Bench-D and Bench-Q style items from the held-out clips of a build; machine-made until checked by hand."""
    with one_line_errors():
        from benchmark.bench_folder import DESCRIPTIONS_FILE, QUESTIONS_FILE, write_bench
        from benchmark.building import BenchPlan, new_bench
        from infra.builds import chosen_manifest
        from infra.lake import Lake

        _refuse_file(out)
        store = Lake(lake)
        limits = {} if num is None else {"max_descriptions": num, "max_questions": num}
        made = new_bench(store, chosen_manifest(store, build_id).build_id, BenchPlan(seed=seed, **limits))
        write_bench(made, Lake(out.absolute()))
        told = {
            "build": made.manifest.build_id,
            "out": str(out.absolute()),
            "descriptions": len(made.descriptions),
            "questions": len(made.questions),
            "left_out": dict(made.left_out),
        }
        if as_json:
            print_json(told)
            return
        typer.echo(f"{told['descriptions']} items in {out / DESCRIPTIONS_FILE}, {told['questions']} in", nl=False)
        typer.echo(f" {out / QUESTIONS_FILE}, of build {told['build']}; machine-made: check them by hand")
        for reason, count in made.left_out.items():
            typer.echo(f"left out: {count} {reason}")


@bench_app.command("table")
def table(
    runs: Annotated[list[Path], typer.Argument(help="Folders that `bench q` or `bench d` wrote with --out.")],
    as_json: JsonOption = False,
) -> None:
    """Runs of the same items in one table, in Markdown: a trained model, an untrained one, one that is blind."""
    with one_line_errors():
        from flows.bench_table import bench_table, read_results

        try:
            results = read_results(runs)
        except BenchUsageError as error:
            fail(str(error), BAD_USAGE)
        if as_json:
            print_json({name: result.model_dump(mode="json") for name, result in results.items()})
        else:
            typer.echo(bench_table(results), nl=False)


@bench_app.command("compare")
def compare(
    first: Annotated[Path, typer.Argument(help="A file of predictions.")],
    second: Annotated[Path, typer.Argument(help="Another, of the same items.")],
    items: ItemsOption,
    as_json: JsonOption = False,
) -> None:
    """Two files of Bench-Q predictions: the items whose letter changed, and McNemar's exact test."""
    with one_line_errors():
        from benchmark.items import BenchFileError, question_items
        from benchmark.paired import paired_score
        from benchmark.predictions import read_predictions
        from benchmark.question_score import official_letters
        from benchmark.report import paired_section

        try:
            asked = question_items(items)
            letters = [official_letters(read_predictions(path, asked)) for path in (first, second)]
            paired = paired_score(asked, letters[0], letters[1])
        except BenchFileError as error:
            fail(" ".join(str(error).split()), BAD_USAGE)
        if as_json:
            print_json({"first": str(first), "second": str(second)} | paired.model_dump(mode="json"))
        else:
            typer.echo(paired_section(str(first), str(second), paired), nl=False)


def _answers(
    videos: Path | None, model: Path | None, predictions: Path | None, batch_size: int, max_new_tokens: int
) -> ModelAnswers | GivenAnswers:
    if (model is None) == (predictions is None):
        got = "neither" if model is None else "both"
        fail(f"give --model DIR or --predictions FILE, got {got}", BAD_USAGE)
    if predictions is not None:
        return GivenAnswers(predictions=str(predictions.absolute()))
    if videos is None:
        fail("--model needs --videos DIR, the folder that the items' `video` counts from", BAD_USAGE)
    return ModelAnswers(
        model=str(Path(model or "").absolute()),
        videos=str(videos.absolute()),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
    )


def _run(
    items: Path,
    out: Path,
    mode: Literal["single", "multi", "blind"] | None,
    answers: ModelAnswers | GivenAnswers,
    scoring: Questions | Heuristic | Judged,
    as_json: bool,
) -> None:
    from flows.run_bench import run_bench

    _refuse_file(out)
    asked = BenchAsked(
        items=str(items.absolute()),
        out=str(out.absolute()),
        mode=mode or ("single" if isinstance(answers, ModelAnswers) else "unstated"),
        answers=answers,
        scoring=scoring,
    )
    try:
        result = run_bench(asked, as_json)
    except BenchUsageError as error:
        fail(" ".join(str(error).split()), BAD_USAGE)
    _tell(result, as_json)


def _tell(result: BenchResult, as_json: bool) -> None:
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        Console().print(result.summary(), highlight=False, markup=False, soft_wrap=True)


def _refuse_file(out: Path) -> None:
    if out.exists() and not out.is_dir():
        fail(f"--out {out} is a file; name a folder, which is made if it is not there", BAD_USAGE)
