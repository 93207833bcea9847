"""`statewise generate`: streams a continuation to the terminal, through gRPC like any other client."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from statewise.cli.sequences import read_ids
from statewise.client import DEFAULT_ADDRESS, Chunk, Client, GenerateOptions, Generation, Prompt
from statewise.client.core import fold
from statewise.errors import InvalidRequestError

Address = Annotated[str, typer.Option(envvar="STATEWISE_ADDRESS", help="host:port of the server.")]


def generate(
    model: Annotated[str, typer.Argument(help="Name of the model, as `statewise models` gives it.")],
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads it from standard input.")] = "",
    address: Address = DEFAULT_ADDRESS,
    max_tokens: Annotated[int | None, typer.Option(help="Most items to generate.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy, 1 the model's own distribution.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the k most probable tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the most probable tokens of this mass.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Keep tokens this much as probable as the first.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same tokens.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text to stop at; may be repeated.")] = None,
    logprobs: Annotated[
        int | None, typer.Option(help="Print log-probabilities, of the n most probable tokens too.")
    ] = None,
    tokens: Annotated[str | None, typer.Option(help='Token ids to continue, as "1,2,3".')] = None,
    source: Annotated[str | None, typer.Option(help="Text that an encoder-decoder makes its answer of.")] = None,
    source_tokens: Annotated[str | None, typer.Option(help='The same as token ids, as "1,2,3".')] = None,
    beams: Annotated[int | None, typer.Option(help="Search for the most probable answers, with so many beams.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Above 0 favours longer answers of a search.")] = None,
    hypotheses: Annotated[int | None, typer.Option(help="Answers of a search to print.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Continue a prompt with a model of a running server."""
    options = GenerateOptions(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop=stop or (),
        logprobs=logprobs,
        source=source if source_tokens is None else read_ids(source_tokens, "--source-tokens"),
        num_beams=beams,
        length_penalty=length_penalty,
        num_hypotheses=hypotheses,
    )
    started = time.monotonic()
    with Client(address) as client, client.stream(model, _prompt(prompt, tokens), **options) as stream:
        has_text = as_json or client.model(model).has_tokenizer
        chunks = []
        for chunk in stream:
            chunks.append(chunk)
            if not as_json:
                _print_chunk(chunk, has_text=has_text)
    generation, seconds = fold(chunks), time.monotonic() - started
    if as_json:
        print(json.dumps(_as_dict(generation), ensure_ascii=False))
        return
    print(flush=True)
    if len(generation.hypotheses) > 1:
        Console().print(_hypothesis_table(generation, has_text=has_text))
    if logprobs is not None:
        Console().print(_log_probability_table(generation))
    print(_statistics(generation, seconds), file=sys.stderr)


def _prompt(prompt: str, tokens: str | None) -> Prompt:
    if tokens is None:
        return sys.stdin.read() if prompt == "-" else prompt
    if prompt:
        raise InvalidRequestError("give a prompt or --tokens, not both", field="--tokens")
    return read_ids(tokens, "--tokens")


def _print_chunk(chunk: Chunk, *, has_text: bool) -> None:
    text = chunk.text if has_text else "".join(f"{token} " for token in chunk.tokens)
    if chunk.vectors is not None:
        text = "".join(" ".join(f"{value:.6g}" for value in vector) + "\n" for vector in chunk.vectors)
    print(text, end="", flush=True)


def _as_dict(generation: Generation) -> dict[str, object]:
    values = {name: getattr(generation, name) for name in ("text", "tokens", "finish_reason")}
    values["vectors"] = generation.vectors.tolist() if generation.vectors is not None else None
    values["log_probabilities"] = [asdict(entry) for entry in generation.log_probabilities]
    values["hypotheses"] = [asdict(hypothesis) for hypothesis in generation.hypotheses]
    return values | {"usage": asdict(generation.usage), "info": asdict(generation.info)}


def _hypothesis_table(generation: Generation, *, has_text: bool) -> Table:
    table = Table("score", "log-probability", "answer")
    for hypothesis in generation.hypotheses:
        answer = escape(hypothesis.text) if has_text else " ".join(map(str, hypothesis.tokens))
        table.add_row(f"{hypothesis.score:.4f}", f"{hypothesis.log_probability:.4f}", answer)
    return table


def _log_probability_table(generation: Generation) -> Table:
    table = Table("token", "log-probability", "most probable")
    for entry in generation.log_probabilities:
        top = "  ".join(f"{other.token}: {other.log_probability:.4f}" for other in entry.top)
        table.add_row(str(entry.token), f"{entry.log_probability:.4f}", top)
    return table


def _statistics(generation: Generation, seconds: float) -> str:
    usage, info = generation.usage, generation.info
    count = usage.completion_tokens
    source = f" and a source of {usage.source_tokens}" if usage.source_tokens else ""
    return (
        f"[{info.model}/{info.version} {info.variant}] {count} items in {seconds:.2f} s ({count / seconds:.0f}/s) "
        f"after a prompt of {usage.prompt_tokens} ({usage.cached_prompt_tokens} cached){source}, "
        f"seed {info.seed}, finish reason {generation.finish_reason}"
    )
