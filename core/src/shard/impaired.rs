//! Lines with faults (impair.rs) in front of a port's engine and behind it.
//!
//! A frame for a port whose line out has faults is copied, as it leaves, onto that line instead of into the engine, and given
//! to the engine when the line lets go of it; one that came in by a port whose line in has faults waits there before
//! the switch sees it. What waits counts as queued, or in hand. A line whose next stop has no room keeps what is due.
//!
//! A super-frame is cut first, so that each of the frames it stands for meets its own fate and is counted by itself; where
//! there is a delay and nothing else it stays whole. Before a frame may be damaged its checksum is completed, and no receiver
//! is told any more that somebody has checked it.
//!
//! A worker that waits sets one timer for whatever is due first. A port without faults costs a flag of its configuration.

use std::io;

use super::carried::Carried;
use super::ingress::Arrival;
use super::{BURST, Shard, TIMER};
use crate::impair::{Line, Settings, Taken};
use crate::lane::{FRAME_LEAST, FRAME_MOST, VNET_LEN};
use crate::offload::{GSO_NONE, VnetHeader};
use crate::port::{self, Piece};
use crate::ports::{Cause, Counter, Port, Way};
use crate::switch::{Config, Edit};
use crate::sys::{self, Epoll, Timer};

/// The lines of this worker's ports, made when a frame first needs one.
#[derive(Default)]
pub(super) struct Lines {
    lines: Vec<Strand>,
    timer: Option<Timer>,
}

/// A line of one port in one direction.
struct Strand {
    port: Port,
    way: Way,
    line: Line,
    /// What is due there waits for room.
    stuck: bool,
}

/// What is counted in either direction: another frame, one that is lost, one that is refused, one whose header makes no sense.
fn names(way: Way) -> (Counter, Cause, Cause, Cause) {
    match way {
        Way::Out => (Counter::Offered, Cause::TxImpairLoss, Cause::TxImpairQueue, Cause::TxOffload),
        Way::In => (Counter::RxTaken, Cause::ImpairLoss, Cause::ImpairQueue, Cause::BadOffload),
    }
}

impl Lines {
    fn find(&mut self, port: Port, way: Way) -> Option<&mut Strand> {
        self.lines.iter_mut().find(|strand| strand.port == port && strand.way == way)
    }

    fn made(&mut self, port: Port, way: Way, settings: impl FnOnce() -> Settings) -> &mut Line {
        let index = self.lines.iter().position(|strand| strand.port == port && strand.way == way).unwrap_or_else(|| {
            let line = Line::new(settings(), way as u64, sys::random().unwrap_or(0));
            self.lines.push(Strand { port, way, line, stuck: false });
            self.lines.len() - 1
        });
        &mut self.lines[index].line
    }

    /// Drop what waits for or from a port; returns how many frames that were, out and in.
    pub(super) fn clear(&mut self, port: Port) -> [u64; 2] {
        [Way::Out, Way::In].map(|way| self.find(port, way).map_or(0, |strand| strand.line.clear() as u64))
    }

    /// Have the loop woken when the next frame is due.
    pub(super) fn set_timer(&mut self, epoll: &Epoll) -> io::Result<()> {
        let moving = self.lines.iter().filter(|strand| !strand.stuck);
        let Some(due_ns) = moving.filter_map(|strand| strand.line.due_ns()).min() else { return Ok(()) };
        if self.timer.is_none() {
            let timer = Timer::new()?;
            epoll.add(timer.fd(), libc::EPOLLIN as u32, TIMER)?;
            self.timer = Some(timer);
        }
        if let Some(timer) = &self.timer {
            timer.set(due_ns);
        }
        Ok(())
    }

    pub(super) fn hush_timer(&self) {
        if let Some(timer) = &self.timer {
            timer.hush();
        }
    }
}

impl Config {
    fn is_impaired(&self, way: Way) -> bool {
        match way {
            Way::Out => self.impaired_out,
            Way::In => self.impaired_in,
        }
    }
}

impl Shard {
    /// Put a frame that was counted as offered, or as taken in, on the line of its direction.
    #[cold]
    pub(super) fn delay(&mut self, port: Port, way: Way, piece: &Piece) {
        let (arena, now_ns) = (self.arena, sys::now_ns(libc::CLOCK_MONOTONIC));
        let cell = arena.cell(self.me, port);
        let (another, lost, refused, bad) = names(way);
        let line = self.lines.made(port, way, || arena.port(port).line(way));
        let settings = *line.settings();
        let mut header = piece.vnet_out();
        let mut put = |header: &VnetHeader, top: &[u8], rest: &[u8]| {
            let mut bytes = [0; VNET_LEN];
            header.write(&mut bytes);
            match line.put(now_ns, [&bytes, top, rest], VNET_LEN) {
                Taken::Copies(copies) => cell.add(another, copies - 1),
                Taken::Lost => cell.drop(lost, 1),
                Taken::Refused => cell.drop(refused, 1),
            }
        };
        if header.gso_type != GSO_NONE && settings.cuts() || header.is_partial() && settings.corrupt != 0 {
            let whole = VnetHeader::default();
            if port::finish_as(another, piece, cell, &mut self.bench, |top, rest| put(&whole, top, rest)).is_err() {
                cell.drop(bad, 1);
            }
            return;
        }
        if settings.corrupt != 0 {
            header = VnetHeader::default();
        }
        put(&header, self.bench.copied(piece), &[]);
    }

    /// Has the frame to wait on a line before the switch sees it? One of a length that is none is refused at once.
    pub(super) fn delays_in(&self, port: Port, len: usize) -> bool {
        self.view.ports[usize::from(port)].impaired_in && (FRAME_LEAST..=FRAME_MOST).contains(&len)
    }

    /// Give on what is due; true where there is more.
    pub(super) fn release_due(&mut self) -> bool {
        if self.lines.lines.is_empty() {
            return false;
        }
        let now_ns = sys::now_ns(libc::CLOCK_MONOTONIC);
        (0..self.lines.lines.len()).fold(false, |more, index| self.release_line(index, now_ns, 4 * BURST) | more)
    }

    fn release_line(&mut self, index: usize, now_ns: u64, most: usize) -> bool {
        let Strand { port, way, .. } = self.lines.lines[index];
        self.lines.lines[index].stuck = false;
        for _ in 0..most {
            if self.lines.lines[index].line.due_ns().is_none_or(|due_ns| due_ns > now_ns) {
                return false;
            }
            if !self.may_go(port, way) {
                self.lines.lines[index].stuck = true;
                self.nap = true;
                return false;
            }
            let Some(mut frame) = self.lines.lines[index].line.pop(now_ns) else { return false };
            self.go(port, way, &mut frame);
        }
        true
    }

    /// Is there room where the frames of a line go?
    fn may_go(&mut self, port: Port, way: Way) -> bool {
        let Some(carried) = self.ports[usize::from(port)].take() else { return true };
        let free = match way {
            Way::Out => !carried.is_full(),
            Way::In => !carried.is_steady() || self.place(&carried).is_some(),
        };
        self.ports[usize::from(port)] = Some(carried);
        free
    }

    fn go(&mut self, port: Port, way: Way, bytes: &mut [u8]) {
        let len = bytes.len() - VNET_LEN;
        let frame = bytes.as_mut_ptr().wrapping_add(VNET_LEN);
        match (way, self.ports[usize::from(port)].take()) {
            (Way::Out, carried) => {
                self.ports[usize::from(port)] = carried;
                self.give(port, &Piece { frame, len, edit: Edit::Keep });
                self.hand_over();
            }
            (Way::In, Some(mut carried)) => {
                self.carry(&mut carried, Arrival { frame, len, claimed: None });
                self.ports[usize::from(port)] = Some(carried);
            }
            (Way::In, None) => self.arena.cell(self.me, port).drop(Cause::Down, 1),
        }
    }

    /// The configuration is another one: change lines, and let go of everything on those that have no faults any more.
    #[cold]
    pub(super) fn change_lines(&mut self) {
        let mut index = 0;
        while let Some(Strand { port, way, line, .. }) = self.lines.lines.get_mut(index) {
            let (port, way) = (*port, *way);
            let is_impaired = self.view.ports[usize::from(port)].is_impaired(way);
            let settings = if is_impaired { self.arena.port(port).line(way) } else { Settings::default() };
            if is_impaired && settings.seed == line.settings().seed {
                line.change(settings);
                index += 1;
                continue;
            }
            let mut gone = self.lines.lines.remove(index).line;
            while let Some(mut frame) = gone.pop(u64::MAX) {
                self.go(port, way, &mut frame);
            }
        }
    }

    /// The line of a port that is let go of.
    pub(super) fn clear_lines(&mut self, carried: &Carried) {
        let [out, inward] = self.lines.clear(carried.port);
        let cell = self.arena.cell(self.me, carried.port);
        cell.drop(Cause::Down, inward);
        cell.drop(Cause::TxDown, out);
    }
}
