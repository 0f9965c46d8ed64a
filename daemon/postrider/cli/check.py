"""postrider check: tests the live system, and says what is wrong and how to mend it."""

import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import click

from postrider.cli.common import config_option, json_option, print_json, run_async
from postrider.operations import check as operation
from postrider.operations.problems import EXIT_CODES, Concern, exit_code


@click.command(
    help=f"""Check configuration, database, clock, schema, rights, partitions, LISTEN, captures, endpoints,
    and whether what their dialects promise is what happens.

    What fails is a matter of the service, or of one endpoint: the exit code and `scope` in --json tell them
    apart. Warnings don't fail. {EXIT_CODES}

    Example: postrider check --config /etc/postrider/postrider.toml
    """
)
@click.option("--no-endpoints", is_flag=True, help="Leave out state, name, address and TLS of the endpoints.")
@config_option
@json_option
@run_async
async def check(no_endpoints: bool, config_path: Path | None, as_json: bool) -> None:
    findings = []
    async for finding in operation.check(config_path, os.environ, with_endpoints=not no_endpoints):
        findings.append(finding)
        if not as_json:
            color = {"ok": "green", "warn": "yellow", "fail": "red"}[finding.level]
            click.echo(f"{click.style(f'{finding.level:<4}', fg=color)}  {finding.what}: {finding.message}")
            if finding.hint and finding.level != "ok":
                click.echo(f"      {finding.hint}")
    if as_json:
        print_json([asdict(finding) for finding in findings])
    failed = Counter(finding.scope for finding in findings if finding.level == "fail")
    if not as_json:
        _print_verdict(failed[Concern.SERVICE], failed[Concern.ENDPOINT])
    raise click.exceptions.Exit(exit_code(failed))


def _print_verdict(sick: int, down: int) -> None:
    endpoints = f"; {down:,} {'endpoint is' if down == 1 else 'endpoints are'} not" if down else ""
    if sick:
        click.secho(f"The service is not in order, {sick} failed{endpoints}", fg="red")
    else:
        click.secho(f"The service is in order{endpoints}", fg="yellow" if down else "green")
