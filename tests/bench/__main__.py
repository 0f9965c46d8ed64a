"""python -m tests.bench NAME|all [--seconds N] [--rounds N] [--scale X] [--json]

Speed as ratios to a floor of the same run. Daemons and floors have one core, PostgreSQL and the sink
another; both sides take turns, and a ratio is that of a round. Prints a Markdown table; `all`, at full scale,
writes it into the README too. A bench is the module of its name, which tells what it measures. All of them
take about 40 minutes.
"""

import argparse
import asyncio
import json
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import asdict

from tests.bench.backlog import backlog
from tests.bench.capture import capture
from tests.bench.cost import cost
from tests.bench.daemons import daemons
from tests.bench.endpoints import endpoints
from tests.bench.fanout import fanout
from tests.bench.isolation import isolation
from tests.bench.latency import latency
from tests.bench.neighbours import neighbours
from tests.bench.peers import peers
from tests.bench.report import HEADER, RULE, Row, write_into_readme
from tests.bench.restart import restart
from tests.bench.stage import Stage, staged
from tests.bench.throughput import throughput
from tests.bench.writers import writers

Bench = Callable[[Stage, int, float], Awaitable[list[Row]]]

BENCHES: dict[str, Bench] = {
    "throughput": throughput,
    "fanout": fanout,
    "latency": latency,
    "writers": writers,
    "capture": capture,
    "backlog": backlog,
    "isolation": isolation,
    "neighbours": neighbours,
    "restart": restart,
    "endpoints": endpoints,
    "cost": cost,
    "daemons": daemons,
    "peers": peers,
}


async def main() -> int:
    parser = argparse.ArgumentParser(usage=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*BENCHES, "all"])
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one floor run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the fixed sizes, for trials")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: list[Row] = []
    failed = 0
    if not options.json:
        print(HEADER, RULE, sep="\n", flush=True)
    async with staged(options.scale) as stage:
        for name, bench in BENCHES.items():
            if options.name not in {name, "all"}:
                continue
            print(f"{name} …", file=sys.stderr)
            try:
                found = await bench(stage, options.rounds, options.seconds)
            except Exception:
                traceback.print_exc()
                failed += 1
                continue
            rows += found
            if not options.json:
                print(*found, sep="\n", flush=True)
    if options.name == "all" and options.scale == 1.0 and not failed:
        write_into_readme(rows)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False))
    return failed


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except KeyboardInterrupt:
        sys.exit(130)
