"""Commands on tuned models: ask one, hand it on, serve it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from foveal.cli.front import INTERRUPTED, app
from foveal.errors import UserError

PANEL = "Tuned models"


@app.command(rich_help_panel=PANEL)
def ask(
    model: Annotated[str, typer.Argument(help="Run folder, model folder or hub name.")],
    words: Annotated[
        list[str], typer.Argument(help="Files of pictures and clips, then the question.")
    ],
    system: Annotated[str, typer.Option(help="What the model is told before.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 64,
) -> None:
    """Answer one question about one or several pictures or clips, in the terminal."""
    import json

    from foveal.data.images.media import names_image
    from foveal.deliver.answerer import load_answerer
    from foveal.inputs import quiet_libraries

    *images, question = words
    if not question.strip() or names_image(question):
        raise UserError(f"no question: {question!r} stands last, where it belongs; write one there")
    quiet_libraries()
    answerer = load_answerer(model)
    answer = answerer.answer(images, question, system=system, max_new_tokens=max_new_tokens)
    if as_json:
        asked = {"model": model, "images": images, "question": question, "answer": answer}
        typer.echo(json.dumps(asked, ensure_ascii=False))
    else:
        typer.echo(answer)


@app.command(rich_help_panel=PANEL)
def models(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="What images of many sizes cost, as a table.")
    ] = False,
) -> None:
    """List the model types that tests held to transformers' own code, on tiny models.

    The number is the tokens of a letter page (1275 x 1650 pixels) with the published settings.
    """
    from foveal.models import known

    if markdown:
        for line in known.cost_table():
            typer.echo(line)
        return
    found = dict.fromkeys(known.SHARED, "exact, questions share an image's row")
    found |= dict.fromkeys(known.CACHED, "exact, questions share an image through a cache")
    found |= dict.fromkeys(known.ALONE, "exact, each example by itself")
    found |= {one: f"refused: {reason}" for one, reason in known.REFUSED.items()}
    beside = {"with torchvision": known.NEEDS_TORCHVISION, "one image each": known.ONE_IMAGE}
    for what, some in beside.items():
        found |= {one: f"{found[one]}; {what}" for one in some}
    pages = known.letter_page_tokens()
    for model_type, says in sorted(found.items()):
        cost = f"{pages[model_type]:,}" if model_type in pages else "n/a"
        typer.echo(f"{model_type:24} {cost:>6}  {says}")
    typer.echo("The number: tokens of a letter page, 1275 x 1650 pixels, as published.")
    typer.echo("Any other type of transformers is looked at when it is loaded, and then said so.")


@app.command(rich_help_panel=PANEL)
def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Argument(help="New folder.")],
    merge: Annotated[bool, typer.Option(help="Fold adapters into the base.")] = False,
    dtype: Annotated[
        Literal["float32", "bf16", "fp16"] | None,
        typer.Option(help="float32, bf16, fp16; none: bf16, adapters float32."),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="best, last, or a step.")] = "last",
    quantize: Annotated[
        Literal["int8", "fp8", "int4"] | None,
        typer.Option(help="int8, fp8 or int4: the decoder's linear layers, for vLLM; merges."),
    ] = None,
    proof: Annotated[bool, typer.Option(help="Load the folder again and compare it.")] = True,
) -> None:
    """Write a run's model as a folder for others, and prove that it is the model trained.

    Exit status: 0 written and proven (or not asked to), 1 the proof failed and the folder is
    marked .unverified, 2 something to mend.
    """
    from rich.console import Console

    from foveal.deliver.export import export_run
    from foveal.inputs import quiet_libraries

    quiet_libraries()
    console = Console(stderr=True)
    done = export_run(
        run,
        out,
        merge=merge,
        dtype=dtype,
        checkpoint=checkpoint,
        quantize=quantize,
        proof=proof,
        tell=lambda doing: console.print(doing, highlight=False),
    )
    for line in done.lines():
        typer.echo(line)
    typer.echo(f"written: {done.folder}")
    raise typer.Exit(1 if done.failed else 0)


@app.command(rich_help_panel=PANEL)
def push(
    folder: Annotated[Path, typer.Argument(help="Folder that export wrote.")],
    repository: Annotated[str, typer.Argument(help="USER/NAME on the Hugging Face hub.")],
    dry_run: Annotated[bool, typer.Option(help="List the files and send nothing.")] = False,
    public: Annotated[bool, typer.Option(help="Let everybody see a new repository.")] = False,
    unproven: Annotated[bool, typer.Option(help="Send it without a proof.")] = False,
) -> None:
    """Send an exported folder to the Hugging Face hub."""
    from foveal.deliver.export import plan_push
    from foveal.deliver.export import push as push_folder

    files = plan_push(folder, unproven)
    for file in files:
        typer.echo(f"{file.size_bytes:>15,}  {file.name}")
    total = sum(file.size_bytes for file in files)
    typer.echo(f"{total:>15,}  bytes in {len(files)} files")
    if dry_run:
        typer.echo(f"dry run, nothing sent to {repository}")
        return
    address = push_folder(folder, repository, private=not public, unproven=unproven)
    typer.echo(f"sent: {address}")


@app.command(rich_help_panel=PANEL)
def serve(
    model: Annotated[str, typer.Argument(help="Run, model or adapter folder, or hub name.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65535)] = 8000,
    token: Annotated[
        str | None, typer.Option(help="For clients to bear.", envvar="FOVEAL_TOKEN")
    ] = None,
    name: Annotated[str | None, typer.Option(help="That clients ask for.")] = None,
    before: Annotated[bool, typer.Option(help="Also the model before tuning, if here.")] = True,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch pictures from public web addresses.")
    ] = False,
    places: Annotated[int, typer.Option(help="Requests at a time; more get 429.", min=1)] = 64,
    answers: Annotated[int, typer.Option(help="Answers written at a time.", min=1)] = 16,
    body_megabytes: Annotated[int, typer.Option(help="Largest request; more get 413.", min=1)] = 32,
    megapixels: Annotated[
        int, typer.Option(help="Pictures of a request; more get 413.", min=1)
    ] = 100,
) -> None:
    """Answer over HTTP, in OpenAI's protocol, and show a page to try it.

    Exit status: 0 stopped by SIGTERM, 2 something to mend, 130 stopped by Ctrl-C.
    """
    try:
        from foveal.serve.limits import ServerLimits, ServerSettings
        from foveal.serve.server import serve as serve_model
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: pip install 'foveal[serve]'") from error
    from foveal.inputs import quiet_libraries
    from foveal.machine import free_memory

    quiet_libraries()
    limits = ServerLimits(
        places=places,
        running=answers,
        body_bytes=body_megabytes * 2**20,
        image_bytes=body_megabytes * 2**20,
        pixels=megapixels * 10**6,
    )
    interrupted = serve_model(
        model,
        host,
        port,
        ServerSettings(token or None, allow_urls, limits),
        name=name,
        with_before=before,
        free_memory=free_memory,
        tell=lambda line: typer.echo(line, err=True),
    )
    raise typer.Exit(INTERRUPTED if interrupted else 0)
