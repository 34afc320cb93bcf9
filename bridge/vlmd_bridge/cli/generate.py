"""`vlmd generate`: text from a prompt, through the shared daemon, as it comes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import msgspec

from vlmd import Client, Generation
from vlmd_bridge import config
from vlmd_bridge.cli import exits
from vlmd_bridge.cli.attach import add_socket_argument, hinted, socket_path, starter
from vlmd_bridge.cli.inputs import InputError, read_schema
from vlmd_bridge.cli.loading import LoadingWatch
from vlmd_bridge.cli.progress import PlainProgress
from vlmd_bridge.cli.prompt import read_prompt
from vlmd_bridge.cli.report import report_error
from vlmd_bridge.cli.text_view import JsonLines, PlainText, TextView, value_code
from vlmd_protocol.errors import ModelError, VlmdError
from vlmd_protocol.limits import DEFAULT_GENERATE_TOKENS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the prompt, or - to read it from stdin")
    parser.add_argument("--image", action="append", default=[], metavar="P", help="a picture before the prompt; again")
    parser.add_argument("--system", metavar="TEXT", help="a first message that tells the model what it is to be")
    parser.add_argument(
        "--messages", metavar="FILE", help="JSON array of earlier messages, {role, content} each; PROMPT comes after it"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--schema", metavar="FILE", help="JSON Schema that the text validates against")
    form.add_argument("--regex", metavar="R", help="pattern that the whole text matches")
    parser.add_argument(
        "--max-tokens", type=int, default=DEFAULT_GENERATE_TOKENS, metavar="N", help="end the text here (%(default)s)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 (default) for the likeliest text"
    )
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="sample from this share of the tokens")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="sample from so many tokens; 0: from all")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1: repeat less")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed and input give the same text")
    parser.add_argument("--stop", action="append", metavar="S", help="end the text before this string; again")
    parser.add_argument("--no-thinking", action="store_true", help="tell a model that thinks first not to")
    parser.add_argument(
        "--count", action="store_true", help="count the prompt's tokens instead; exit 1 if it is too long"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per piece, then one with the whole")
    parser.add_argument("--model", metavar="M", help="name or folder of the model; demo for the demonstration's")
    add_socket_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Generate, or count."""
    found = config.load({"model": args.model, "socket": args.socket})
    try:
        prompt = read_prompt(args.prompt, messages=args.messages, system=args.system, stdin=sys.stdin)
        schema = None if args.schema is None else read_schema(Path(args.schema))
    except InputError as error:
        report_error(str(error), "usage", as_json=args.json)
        return exits.USAGE
    settings = found.settings
    path = socket_path(settings)
    try:
        with (
            LoadingWatch(path, PlainProgress(0)),
            Client(
                settings.model,
                text_model=settings.text_model,
                socket=path,
                command=starter(settings),
                python=settings.python,
                log=lambda _: None,
            ) as client,
        ):
            # A model is asked for where this call names one; else the prompt decides between the configured ones.
            model = None if args.model is None else settings.model
            if args.count:
                return _count(client, args, prompt, model)
            return _stream(_generate(client, args, prompt, schema, model), JsonLines() if args.json else PlainText())
    except ModelError as error:
        raise hinted(error) from None


def _generate(
    client: Client, args: argparse.Namespace, prompt: Any, schema: dict[str, Any] | None, model: str | None
) -> Generation[Any]:
    return client.generate(
        prompt,
        images=args.image,
        schema=schema,
        regex=args.regex,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
        stop=args.stop,
        thinking=not args.no_thinking,
        model=model,
    )


def _stream(generation: Generation[Any], view: TextView) -> int:
    # Leaving the block cancels on the daemon what is under way, on Ctrl-C too.
    with generation:
        try:
            for delta in generation.deltas():
                view.show(delta)
        except KeyboardInterrupt:
            view.stop()
            print("vlmd: interrupted", file=sys.stderr)
            return exits.INTERRUPTED
        except VlmdError:
            view.stop()
            raise
        result = generation.finish()
    view.end(result)
    if result.value_error is None:
        return exits.OK
    report_error(result.value_error, value_code(result))
    return exits.SOME_FAILED


def _count(client: Client, args: argparse.Namespace, prompt: Any, model: str | None) -> int:
    count = client.count_tokens(
        prompt, images=args.image, max_tokens=args.max_tokens, thinking=not args.no_thinking, model=model
    )
    if args.json:
        print(msgspec.json.encode(count).decode())
    else:
        verdict = "fits" if count.fits else "does not fit"
        print(
            f"{count.prompt_tokens} tokens; with {count.max_tokens} to come it {verdict} "
            f"the context of {count.context_tokens}"
        )
    return exits.OK if count.fits else exits.SOME_FAILED
