"""The watch over a lab's workers: whoever hangs, was stopped or breaks the rules of a lane is killed."""

import os
from collections.abc import Sequence

from shardnet import journal, members, pulse, timers


class Watch:
    """Looks at each worker every pulse.LOOK_S, while there are any."""

    def __init__(
        self, turns: timers.Timers, team: members.Members, notes: journal.Journal, doorbells: Sequence[int]
    ) -> None:
        self.loop, self.members, self.journal, self.doorbells = turns, team, notes, doorbells
        self.arena = team.arena
        self._looking = self._over = False

    def begin(self) -> None:
        """Look from now on, if nobody does."""
        if not self._looking:
            self._looking = True
            self.loop.later(pulse.LOOK_S, self._look)

    def end(self) -> None:
        """Look no more: the lab ends."""
        self._over = True

    def _look(self) -> None:
        for member in list(self.members.values()):
            self._look_at(member)
        self._looking = bool(self.members) and not self._over
        if self._looking:
            self.loop.later(pulse.LOOK_S, self._look)

    def _look_at(self, member: members.Member) -> None:
        if member.child is None:
            return
        if self.arena.faults(member.slot) > member.faults:
            member.faults = self.arena.faults(member.slot)
            self._condemn(member, "fault", "broke the rules of a lane")
            return
        beat = self.arena.beat(member.slot)
        verdict = member.pulse.look(self.loop.clock(), beat, pulse.process_state(member.child.pid))
        if verdict == "ring":
            os.eventfd_write(self.doorbells[member.slot], 1)
            if member.pulse.doubtful:
                self.loop.later(pulse.AGAIN_S, lambda: self._look_at(member))
        elif verdict == "stopped" or (
            verdict == "hung"
            and not member.captures
            and not any(port.state == "starting" for port in member.ports.values())
        ):
            self._condemn(member, "hung", "stopped by a signal" if verdict == "stopped" else "its loop does not turn")

    def _condemn(self, member: members.Member, event: str, why: str) -> None:
        member.is_condemned = True
        self.journal.note(event, f"{why}: killed", worker=member.title, level=journal.ERROR)
        member.child.kill()
