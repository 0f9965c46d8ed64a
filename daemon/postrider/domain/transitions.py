"""Which states may follow each other, and by what: the rules that the statements of the store are held to.

The statements themselves say in their conditions what they may change; the tests run each of them in each
state against these tables, and compare the diagrams of the README with them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from postrider.domain.model import DeliveryState, EndpointState

S = TypeVar("S", bound=StrEnum)


class Who(StrEnum):
    DAEMON = "daemon"
    OWNER = "the daemon that owns it"  # fenced: by the claim of its event, or of the delivery
    RESCUER = "its owner, or who rescues it"
    PERSON = "person"
    EITHER = "person or daemon"


@dataclass(frozen=True, slots=True)
class Move(Generic[S]):
    """One kind of change."""

    who: Who
    before: frozenset[S | None]
    """The states that it may begin in; None stands for what is not there yet."""
    after: frozenset[S]
    """Those that it may lead to, each from each of the others."""
    why: str


class Transitions(Generic[S]):
    """The moves of one kind of thing, by their names."""

    def __init__(self, states: type[S], moves: Mapping[str, Move[S]]) -> None:
        self.states = states
        self.moves = dict(moves)

    def __repr__(self) -> str:
        return f"<Transitions {self.states.__name__} {', '.join(self.moves)}>"

    def of(self, name: str) -> frozenset[tuple[S | None, S]]:
        """What a move may change, as (before, after)."""
        move = self.moves[name]
        return frozenset((before, after) for before in move.before for after in move.after)

    def all(self) -> frozenset[tuple[S | None, S]]:
        return frozenset[tuple[S | None, S]]().union(*(self.of(name) for name in self.moves))

    def diagram(self) -> str:
        """A state diagram in the language of Mermaid, with the states in their order."""
        places: list[S | None] = [None, *self.states]
        lines = ["stateDiagram-v2"]
        for before in places:
            for after in self.states:
                names = [name for name in self.moves if (before, after) in self.of(name)]
                if names:
                    lines.append(f"    {before or '[*]'} --> {after}: {', '.join(names)}")
        return "\n".join(lines)

    def table(self) -> str:
        """The moves as rows of Markdown."""
        rows = [f"| {name} | {move.who} | {move.why} |" for name, move in self.moves.items()]
        return "\n".join(["| move | by | when |", "| --- | --- | --- |", *rows])


_Delivery = DeliveryState
DELIVERY = Transitions(
    DeliveryState,
    {
        "spill": Move(
            Who.OWNER,
            frozenset({None}),
            frozenset({_Delivery.WAITING}),
            "its lane can't take it now: full, behind, paused",
        ),
        "claim": Move(
            Who.DAEMON,
            frozenset({_Delivery.WAITING}),
            frozenset({_Delivery.SENDING}),
            "its lane has room; the daemon owns it from now on",
        ),
        "record": Move(
            Who.OWNER,
            frozenset({None, _Delivery.SENDING}),
            frozenset({_Delivery.SUCCEEDED, _Delivery.FAILED, _Delivery.RETRYING}),
            "an attempt ended, or the schedule begins with a delay",
        ),
        "give back": Move(
            Who.RESCUER,
            frozenset({_Delivery.SENDING}),
            frozenset({_Delivery.WAITING}),
            "it was not sent: its lane closed, the daemon stopped, or died",
        ),
        "promote": Move(
            Who.DAEMON,
            frozenset({_Delivery.RETRYING}),
            frozenset({_Delivery.WAITING}),
            "its retry is due",
        ),
        "cancel": Move(
            Who.EITHER,
            frozenset({None, _Delivery.WAITING, _Delivery.SENDING, _Delivery.RETRYING}),
            frozenset({_Delivery.CANCELLED}),
            "the endpoint was deleted, or a person cancels what waits or is to be retried",
        ),
        "expire": Move(
            Who.DAEMON,
            frozenset({_Delivery.WAITING, _Delivery.RETRYING}),
            frozenset({_Delivery.FAILED}),
            "the retention of its event ended while the endpoint was disabled",
        ),
        "retry": Move(
            Who.PERSON,
            frozenset({_Delivery.RETRYING, _Delivery.SUCCEEDED, _Delivery.FAILED, _Delivery.CANCELLED}),
            frozenset({_Delivery.WAITING}),
            "it is sent again, with a whole new schedule",
        ),
        "replay": Move(
            Who.PERSON,
            frozenset({None}),
            frozenset({_Delivery.WAITING}),
            "an event that the endpoint missed is sent to it",
        ),
        "test": Move(
            Who.PERSON,
            frozenset({None}),
            frozenset({_Delivery.SUCCEEDED, _Delivery.FAILED}),
            "an event made up for `endpoint test`: one attempt, by the command itself",
        ),
    },
)
"""Of the rows of `delivery`. What is sent straight from the outbox has none before its first result."""

_Endpoint = EndpointState
ENDPOINT = Transitions(
    EndpointState,
    {
        "add": Move(
            Who.PERSON,
            frozenset({None}),
            frozenset({_Endpoint.ACTIVE, _Endpoint.UNVERIFIED}),
            "unverified where its dialect has a handshake",
        ),
        "verify": Move(
            Who.PERSON,
            frozenset({_Endpoint.UNVERIFIED}),
            frozenset({_Endpoint.ACTIVE}),
            "it answered the handshake",
        ),
        "pause": Move(
            Who.PERSON,
            frozenset({_Endpoint.ACTIVE, _Endpoint.DISABLED}),
            frozenset({_Endpoint.PAUSED}),
            "events still become deliveries, which wait",
        ),
        "resume": Move(
            Who.PERSON,
            frozenset({_Endpoint.PAUSED, _Endpoint.DISABLED}),
            frozenset({_Endpoint.ACTIVE}),
            "what waits is sent",
        ),
        "disable": Move(
            Who.DAEMON,
            frozenset({_Endpoint.ACTIVE}),
            frozenset({_Endpoint.DISABLED}),
            "it answered 410, or failed for as long as its dialect bears; events no longer become deliveries",
        ),
        "delete": Move(
            Who.PERSON,
            frozenset({_Endpoint.ACTIVE, _Endpoint.UNVERIFIED, _Endpoint.PAUSED, _Endpoint.DISABLED}),
            frozenset({_Endpoint.DELETED}),
            "its row stays, so that past deliveries stay explicable",
        ),
    },
)
"""Of the rows of `endpoint`."""
