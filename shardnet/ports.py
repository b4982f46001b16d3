"""The ports of a running lab: who they are, how they are, what the arena knows of them."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping

from shardnet import _core, impairments, kinds, lab, switch


@dataclasses.dataclass(eq=False)
class Port:
    """A port as the supervisor sees it.

    States: starting, up, waiting (for a peer, or for a TAP that vanished), down (no carrier), restarting (its worker
    died), failed (until it is reset), removing.
    """

    id: int
    section: lab.Section
    plugged: bool = False
    slot: int = -1  # of the worker that carries it
    state: str = "starting"
    detail: str = ""
    waiters: list[Callable[[str | None], None]] = dataclasses.field(default_factory=list)
    removed: Callable[[], None] | None = None  # called when the worker has let go of it
    lent: str | None = None  # the deposit that other workers may write to
    borrowers: set[int] = dataclasses.field(
        default_factory=set
    )  # slots of those that have it and were asked to return it
    returned: Callable[[], None] | None = None  # called when none of them has it any more
    before: lab.Section | None = None  # while its worker is told to carry on as another section: what it was
    lost: Callable[[], None] | None = None  # called when it fails and cannot be had again: it was plugged
    behind: "Port | None" = None  # the port whose companion, or other end, this is
    companions: dict[str, "Port"] = dataclasses.field(default_factory=dict)  # by suffix
    mirrors: set[int] = dataclasses.field(default_factory=set)  # slots of the [pcap]s to which what passes is copied

    @property
    def name(self) -> str:
        return self.section.name

    @property
    def title(self) -> str:
        """How logs call it."""
        return f"{self.section.kind} {self.section.name}"

    def settle(self, error: str | None) -> None:
        """Tell everybody who waits for the port to open, or not to."""
        waiters, self.waiters = self.waiters, []
        for wait in waiters:
            wait(error)


class Ports:
    """All ports by id, the ids of their switches, and what of both is in the arena, where no worker may write it."""

    def __init__(self, arena: _core.Arena) -> None:
        self.arena = arena
        self.by_id: dict[int, Port] = {}
        self.switches: dict[str, int] = {}
        self._sections: Mapping[str, lab.Section] = {}
        self._last = 0
        self.changed: Callable[[], None] = lambda: None  # called when a port has come, has other rules, or goes

    def __iter__(self) -> Iterator[Port]:
        return iter(self.by_id.values())

    def named(self, name: str) -> Port | None:
        """The port of this name, if there is one."""
        return next((port for port in self if port.name == name), None)

    def make(self, section: lab.Section, plugged: bool = False) -> list[Port]:
        """Give a section an id, and each of its companions; the port comes first."""
        port = self.new(section, plugged)
        return [port, *([] if plugged else self.accompany(port, lab.companions(section)))]

    def accompany(self, port: Port, sections: Mapping[str, lab.Section]) -> list[Port]:
        """Give a port companions that it has not got yet."""
        made = []
        for suffix, section in sections.items():
            companion = self.new(section)
            companion.behind = port
            port.companions[suffix] = companion
            made.append(companion)
        return made

    def new(self, section: lab.Section, plugged: bool = False) -> Port:
        """Give a section an id; a freed one is used again as late as possible, frames to it may be under way."""
        for step in range(1, _core.PORTS):
            number = (self._last + step - 1) % (_core.PORTS - 1) + 1
            if number not in self.by_id:
                self._last = number
                port = self.by_id[number] = Port(number, section, plugged)
                return port
        raise ValueError(f"a lab has at most {_core.PORTS - 1} ports")

    def configure(self, port: Port) -> None:
        """Write the port's rules into the arena, before its worker opens it or while it carries."""
        given = port.section.options
        share = port.section.share
        behind = port.behind if share or kinds.is_service(port.section.kind) else None
        self.arena.configure_port(
            port.id,
            worker=port.slot,
            switch=self.switch(given.switch),
            up=given.up,
            access=given.vlan or 0,
            trunk=given.tagged,
            native=given.native or 0,
            isolated=given.isolated,
            max_macs=given.max_macs,
            # What is handed over may have been put together from fragments.
            mtu=0 if behind else given.mtu,
            behind=behind.id if behind else 0,
            shards=0 if behind else getattr(given, "shards", 0),
            share=share,
            capture=kinds.captures(port.section) is not None,
            # What a service is handed over has been on the port's line out already; what it sends goes past the one in. A shard
            # gets its frames from where they come in: it has a line like the port's.
            out=None if behind and not share else impairments.line(given, out=True),
            inward=impairments.line(given, out=False),
        )
        self.changed()

    def forget(self, port: Port) -> None:
        """Take the port out of the arena and free its id."""
        self.arena.clear_port(port.id)
        del self.by_id[port.id]

    def configure_switches(self, sections: Mapping[str, lab.Section]) -> None:
        """Apply the [switch NAME] sections of a lab; a switch without one is as usual."""
        self._sections = sections
        for name in {**dict.fromkeys(self.switches), **sections}:
            self._configure_switch(name)

    def switch(self, name: str) -> int:
        """The id of a switch, which is made where there is none yet."""
        if name not in self.switches:
            self._configure_switch(name)
        return self.switches[name]

    def _configure_switch(self, name: str) -> None:
        if name not in self.switches:
            used = {port.section.options.switch for port in self} | set(self._sections)
            for idle in [other for other in self.switches if other not in used]:
                self.arena.fdb_flush(self.switches.pop(idle))
            free = set(range(_core.SWITCHES)) - set(self.switches.values())
            if not free:
                raise ValueError(f"a lab has at most {_core.SWITCHES} switches")
            self.switches[name] = min(free)
        given = self._sections[name].options if name in self._sections else switch.Options()
        self.arena.configure_switch(
            self.switches[name], hub=given.mode == "hub", age_s=given.ageing, reserved=given.link_local
        )


def together(ports: Iterable[Port], done: Callable[[dict[Port, str]], None]) -> None:
    """Call `done` with the errors by port when every one of the ports has opened or failed."""
    left = list(ports)
    errors: dict[Port, str] = {}

    def settled(port: Port, error: str | None) -> None:
        left.remove(port)
        if error is not None:
            errors[port] = error
        if not left:
            done(errors)

    if not left:
        done(errors)
    for port in list(left):
        port.waiters.append(functools.partial(settled, port))
