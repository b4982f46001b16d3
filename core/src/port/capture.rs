//! The engine of a capture: writes what arrives by mirroring as pcapng, an interface a port.
//!
//! The file is as the pcapng draft says (draft-ietf-opsawg-pcapng, sections 4.1 to 4.3 and 4.6), little-endian,
//! times in nanoseconds. The direction of a frame is as the switch sees it: in came from the port.

use std::collections::HashMap;
use std::io;
use std::os::fd::RawFd;

use crate::lane::{Entry, MIRROR_IN};
use crate::ports::Port;
use crate::sys;

const LINKTYPE_ETHERNET: u16 = 1;
const BUFFER: usize = 256 << 10;

pub struct Capture {
    fd: RawFd,
    interfaces: HashMap<Port, u32>,
    snaplen: usize,
    buffer: Vec<u8>,
    pub written: u64,
    pub lost: u64,
}

fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    body(out);
    let len = (out.len() - begin + 4) as u32;
    out.extend(len.to_le_bytes());
    out[begin + 4..begin + 8].copy_from_slice(&len.to_le_bytes());
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    out.extend(code.to_le_bytes());
    out.extend((value.len() as u16).to_le_bytes());
    out.extend(value);
    pad(out, value.len());
}

fn pad(out: &mut Vec<u8>, len: usize) {
    out.extend(&[0; 3][..len.wrapping_neg() & 3]);
}

impl Capture {
    /// `ports`: each with the name of its interface; `snaplen` 0 keeps all of a frame. The descriptor stays the caller's.
    pub fn new(fd: RawFd, ports: &[(Port, String)], snaplen: usize) -> Capture {
        let mut buffer = Vec::with_capacity(BUFFER);
        block(&mut buffer, 0x0a0d_0d0a, |out| {
            out.extend(0x1a2b_3c4du32.to_le_bytes());
            out.extend([1, 0, 0, 0]); // version 1.0
            out.extend(u64::MAX.to_le_bytes()); // the section's length is not known
            option(out, 4, b"shardnet");
            option(out, 0, b"");
        });
        for (_, name) in ports {
            block(&mut buffer, 1, |out| {
                out.extend(LINKTYPE_ETHERNET.to_le_bytes());
                out.extend([0; 2]);
                out.extend((snaplen as u32).to_le_bytes());
                option(out, 2, name.as_bytes());
                option(out, 9, &[9]); // times are nanoseconds
                option(out, 0, b"");
            });
        }
        let interfaces = ports.iter().enumerate().map(|(index, (port, _))| (*port, index as u32)).collect();
        Capture { fd, interfaces, snaplen, buffer, written: 0, lost: 0 }
    }

    /// Add a mirrored frame; one of a port that is not captured is passed over.
    pub fn add(&mut self, entry: &Entry) {
        let Some(&interface) = self.interfaces.get(&entry.label.from) else { return };
        let len = entry.label.len as usize;
        let kept = if self.snaplen == 0 { len } else { len.min(self.snaplen) };
        let time = stamped(entry.stamp());
        let direction: u32 = if entry.label.kind == MIRROR_IN { 1 } else { 2 };
        block(&mut self.buffer, 6, |out| {
            out.extend(interface.to_le_bytes());
            out.extend(((time >> 32) as u32).to_le_bytes());
            out.extend((time as u32).to_le_bytes());
            out.extend((kept as u32).to_le_bytes());
            out.extend((len as u32).to_le_bytes());
            let at = out.len();
            out.resize(at + kept, 0);
            // SAFETY: the entry's frame has `len` readable bytes, and `kept` are not more.
            unsafe { std::ptr::copy_nonoverlapping(entry.frame.cast_const(), out[at..].as_mut_ptr(), kept) };
            pad(out, kept);
            option(out, 2, &direction.to_le_bytes());
            option(out, 0, b"");
        });
        self.written += 1;
    }

    pub fn is_full(&self) -> bool {
        self.buffer.len() >= BUFFER
    }

    /// Write what is buffered; true when it all went.
    pub fn flush(&mut self) -> io::Result<bool> {
        let mut done = 0;
        let result = loop {
            let rest = &self.buffer[done..];
            if rest.is_empty() {
                break Ok(true);
            }
            // SAFETY: a slice is readable.
            match unsafe { sys::write(self.fd, rest.as_ptr(), rest.len()) } {
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.buffer.drain(..done);
        result
    }

    pub fn fd(&self) -> RawFd {
        self.fd
    }
}

/// Nanoseconds since 1970 of a stamp, the low 32 bits of microseconds a short while ago.
fn stamped(stamp: u32) -> u64 {
    let now = sys::now_ns(libc::CLOCK_REALTIME) / 1000;
    let ago = (now as u32).wrapping_sub(stamp);
    let ago = if ago > 1 << 31 { 0 } else { ago }; // the clock was set back meanwhile
    (now - u64::from(ago)) * 1000
}

/// The stamp of a frame that passes now.
pub fn stamp() -> u32 {
    (sys::now_ns(libc::CLOCK_REALTIME) / 1000) as u32
}
