//! The engine of a packet socket: the frames of an interface, each with its virtio-net header, so that super-frames stay whole.
//!
//! In, there is a ring that the kernel fills (TPACKET_V2), SLOTS of SLOT bytes:
//!
//! ```text
//!   | status, lengths, tag, mark | … | virtio-net header | frame … |     one slot, tpacket2_hdr of linux/if_packet.h
//! ```
//!
//! A frame that fits goes on from where it lies; there is no system call for it. A longer one, a super-frame mostly, is kept whole in
//! the socket's queue (PACKET_COPY_THRESH): its slot says when its turn is, and it is read straight into a lane. Out, a frame is a
//! write. Nobody waits: what the interface cannot take is lost, and counted; so is what found the ring or the queue full, which the
//! kernel counts and a slot behind tells of.
//!
//! The kernel hands a tag over beside the frame and not in it. It is put back in where it was.
//!
//! Measured on a veth pair, one core, ns a frame. In, the kernel's part with it and a frame that nobody hears taken off: 60 bytes, recvmsg
//! 990, recvmmsg 890, read 820, this ring 450; 65,000 bytes, read 1,850, the ring's way 2,300, recvmmsg 3,070 (which needs a copy more), a
//! ring whose slots take such frames 3,480, TPACKET_V3 2,800 (which keeps frames back until a block is full or a clock ticks). So the ring
//! is for short frames, and long ones are read. Out: 60 bytes, write 1,355, sendmmsg 1,250, a ring 1,410; 65,000 bytes, 3,025, 3,860,
//! 6,220. So a frame is a write. PACKET_QDISC_BYPASS gains nothing on a veth, 5 to 10 % where there is a qdisc; it loses frames that a
//! qdisc would keep, and hides them from tcpdump, so it is not used. AF_XDP sees no super-frames on a veth, and is slower than all of
//! these.
//!
//! The ring outlives the worker. A slot is marked with a number before its frame goes on, and the kernel wipes the mark when it
//! fills the slot again: the successor goes on behind the last mark, and no frame is sent twice. Other workers have the socket too, to
//! write to it; one that maps the ring can change what is in it, so each word is read once and checked.

use std::io;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Piece, Refusal};
use crate::frame;
use crate::lane::{FRAME_MOST, VNET_LEN};
use crate::offload::{self, GSO_NONE, HEADERS_MAX, VnetHeader};
use crate::ports::{Cause, Cell, Counter};
use crate::sys::{self, Mapping};

/// A frame of an mtu of 1500 with a tag and what stands before it, and as many of them as a TCP connection has under way that comes
/// cut already: the sender of a veth does not wait. 8 MiB.
pub const SLOT: usize = 2048;
pub const SLOTS: usize = 4096;
/// Memory of the kernel in one piece.
pub const BLOCK: usize = 64 << 10;

// linux/if_packet.h
const USER: u32 = 1;
const COPY: u32 = 1 << 1;
const LOSING: u32 = 1 << 2;
const VLAN_VALID: u32 = 1 << 4;
const VLAN_TPID_VALID: u32 = 1 << 6;
const KERNEL: u32 = 0;
/// Of a slot's header: the mark lies in tp_padding, its last four bytes.
const MARK: usize = 28;
/// tpacket2_hdr and sockaddr_ll, behind which a frame and what we put before it may begin.
const HEAD: usize = 32 + 20;
/// The addresses, before a tag.
const ADDRESSES: usize = 12;
/// So many bytes tell whether a long frame is the one that its slot began.
const ALIKE: usize = 96;

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Nothing,
    /// A frame that lies in the ring: `take` it, `release` it.
    Short,
    /// One that is to be read: `receive` it.
    Long,
    /// One that is lost: `skip` it.
    Lost(Cause),
}

/// A frame, and its length.
pub type Taken = Result<(*mut u8, usize), Cause>;

pub struct Packet {
    pub fd: RawFd,
    ring: Option<Ring>,
    losing: bool,
    /// Frames of the socket's queue whose slot nobody knows: those of a worker that died over them.
    strays: u64,
}

struct Ring {
    map: Mapping,
    /// The slot to read next.
    at: usize,
    /// The number that it is marked with.
    mark: u32,
    /// A worker before us may have left a frame in the queue whose slot is done with.
    doubtful: bool,
}

/// A slot's header, read once.
#[derive(Clone, Copy)]
struct Head {
    status: u32,
    len: usize,
    stored: usize,
    mac: usize,
    /// Type and content of the tag that is not in the frame.
    tag: Option<[u8; frame::TAG]>,
}

impl Packet {
    /// A socket with a ring of this geometry, PACKET_VNET_HDR and PACKET_COPY_THRESH; it stays the caller's.
    pub fn new(fd: RawFd) -> io::Result<Packet> {
        let map = Mapping::new(fd, 0, SLOT * SLOTS)?;
        Ok(Packet { fd, ring: Some(Ring::resume(map)), losing: false, strays: 0 })
    }

    /// Another worker's socket, to write to.
    pub fn lent(fd: RawFd) -> Packet {
        Packet { fd, ring: None, losing: false, strays: 0 }
    }

    pub fn peek(&mut self) -> Next {
        let Some(ring) = &self.ring else { return Next::Nothing };
        let head = ring.head();
        if head.status & USER == 0 {
            if ring.doubtful {
                self.drain();
            }
            return Next::Nothing;
        }
        self.losing |= head.status & LOSING != 0;
        if head.status & COPY != 0 {
            Next::Long
        } else if head.stored < head.len {
            Next::Lost(Cause::Overrun) // the queue had no room for it
        } else if head.is_sound() {
            Next::Short
        } else {
            Next::Lost(Cause::BadHeader)
        }
    }

    /// The frame of the slot, its virtio-net header before it; it lies there until `release`. Only after `peek` said Short.
    pub fn take(&mut self) -> Taken {
        let Some(ring) = &self.ring else { return Err(Cause::BadHeader) };
        ring.set_mark();
        let head = ring.head();
        if !head.is_sound() {
            return Err(Cause::BadHeader);
        }
        // SAFETY: the header is sound: the frame is in the slot, and so is the room before it.
        unsafe {
            let mut frame = ring.slot(ring.at).add(head.mac);
            let mut len = head.stored;
            if let Some(tag) = &head.tag
                && len >= ADDRESSES
            {
                ptr::copy(frame.sub(VNET_LEN), frame.sub(VNET_LEN + frame::TAG), VNET_LEN + ADDRESSES);
                frame = frame.sub(frame::TAG);
                put_tag(frame, tag);
                len += frame::TAG;
            }
            check(frame, len)?;
            Ok((frame, len))
        }
    }

    /// Give the slot back to the kernel.
    pub fn release(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.release();
        }
    }

    /// Pass over a frame that is lost.
    pub fn skip(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.set_mark();
            ring.release();
        }
    }

    /// Read the long frame to `at`, its virtio-net header into the bytes before; its length. Only after `peek` said Long.
    ///
    /// # Safety
    /// `at` has room for a frame of any length, and `VNET_LEN` bytes before it.
    pub unsafe fn receive(&mut self, at: *mut u8) -> Result<usize, Cause> {
        let Some(ring) = &mut self.ring else { return Err(Cause::BadHeader) };
        let head = ring.head();
        ring.set_mark();
        let gap = if head.tag.is_some() { frame::TAG } else { 0 };
        let rest = ADDRESSES + gap;
        let found = loop {
            // SAFETY: as the caller promises; the two pieces lie in that room.
            let pieces = unsafe {
                [
                    libc::iovec { iov_base: at.sub(VNET_LEN).cast(), iov_len: VNET_LEN + ADDRESSES },
                    libc::iovec { iov_base: at.add(rest).cast(), iov_len: FRAME_MOST - rest },
                ]
            };
            // SAFETY: two pieces that may be written.
            match unsafe { sys::read_pieces(self.fd, &pieces) } {
                // SAFETY: the frame has come to `at`.
                Ok(_) if ring.doubtful && !unsafe { ring.begins(&head, at, rest) } => self.strays += 1,
                Ok(got) => break Ok(got),
                Err(error) => break Err(error),
            }
        };
        ring.doubtful = false;
        ring.release();
        let got = match found {
            Ok(got) if got >= VNET_LEN + frame::HEADER => got - VNET_LEN,
            Ok(_) => return Err(Cause::Runt),
            // A header that virtio-net has no words for.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Err(Cause::BadOffload),
            Err(_) => return Err(Cause::Overrun),
        };
        if head.len + gap > FRAME_MOST {
            return Err(Cause::Oversize);
        }
        // SAFETY: the frame has come to `at`, with a gap for the tag.
        unsafe {
            if let Some(tag) = &head.tag {
                put_tag(at, tag);
            }
            check(at, got + gap)?;
        }
        Ok(got + gap)
    }

    /// How many frames the kernel has lost before us since this was asked last.
    pub fn lost(&mut self) -> u64 {
        let strays = std::mem::take(&mut self.strays);
        if !std::mem::take(&mut self.losing) {
            return strays;
        }
        strays + sys::packet_drops(self.fd).unwrap_or(0)
    }

    /// Take note that the interface went down: epoll says so until it is asked.
    pub fn hush(&self) {
        sys::socket_error(self.fd);
    }

    pub fn send(&self, piece: &Piece, cell: &Cell) -> Result<(), Refusal> {
        // SAFETY: a piece is readable, with its virtio-net header before it.
        match unsafe { super::write(self.fd, piece) } {
            Ok(is_super) => {
                if is_super {
                    cell.add(Counter::TxSuper, 1);
                }
                Ok(())
            }
            Err(error) => Err(refusal(&error)),
        }
    }

    /// With an empty ring the queue is empty too, but for what a worker before us left.
    fn drain(&mut self) {
        let mut byte = 0u8;
        // SAFETY: one writable byte; the rest of a frame is cut.
        while unsafe { sys::read(self.fd, &mut byte, 1) }.is_ok() {
            self.strays += 1;
        }
        if let Some(ring) = &mut self.ring {
            ring.doubtful = false;
        }
    }
}

impl Ring {
    /// Go on where a worker before us stopped, or begin.
    fn resume(map: Mapping) -> Ring {
        let mut ring = Ring { map, at: 0, mark: 1, doubtful: false };
        let newest = (0..SLOTS).filter(|&slot| ring.word(slot, MARK).load(Ordering::Relaxed) != 0).reduce(|newest, slot| {
            let of = |slot| ring.word(slot, MARK).load(Ordering::Relaxed);
            if of(slot).wrapping_sub(of(newest)) as i32 > 0 { slot } else { newest }
        });
        if let Some(newest) = newest {
            (ring.at, ring.mark) = (newest, ring.word(newest, MARK).load(Ordering::Relaxed));
            ring.doubtful = true;
            ring.release(); // it may have died before it did so
        } else if (0..SLOTS).all(|slot| ring.status(slot).load(Ordering::Acquire) & USER != 0) {
            // All of it is new; the oldest is the first.
            let when = |&slot: &usize| (ring.word(slot, 16).load(Ordering::Relaxed), ring.word(slot, 20).load(Ordering::Relaxed));
            ring.at = (0..SLOTS).min_by_key(when).unwrap_or(0);
            ring.doubtful = true;
        }
        ring
    }

    fn slot(&self, index: usize) -> *mut u8 {
        // SAFETY: `index` is below SLOTS, so the slot is in the mapping.
        unsafe { self.map.start().add(index % SLOTS * SLOT) }
    }

    /// A word of a slot's header.
    fn word(&self, index: usize, offset: usize) -> &AtomicU32 {
        // SAFETY: an aligned word of the mapping, which lives as long as the ring; others write it, too, as words.
        unsafe { &*self.slot(index).add(offset).cast::<AtomicU32>() }
    }

    fn status(&self, index: usize) -> &AtomicU32 {
        self.word(index, 0)
    }

    fn set_mark(&self) {
        self.word(self.at, MARK).store(self.mark, Ordering::Relaxed);
    }

    fn release(&mut self) {
        self.status(self.at).store(KERNEL, Ordering::Release);
        self.at = (self.at + 1) % SLOTS;
        self.mark = self.mark.wrapping_add(1).max(1);
    }

    fn head(&self) -> Head {
        let status = self.status(self.at).load(Ordering::Acquire);
        let word = |offset| self.word(self.at, offset).load(Ordering::Relaxed);
        let (mac_and_net, tag) = (word(12), word(24));
        Head {
            status,
            len: word(4) as usize,
            stored: word(8) as usize,
            mac: mac_and_net.to_ne_bytes().first_chunk().map_or(0, |mac| usize::from(u16::from_ne_bytes(*mac))),
            tag: (status & VLAN_VALID != 0).then(|| {
                let [a, b, c, d] = tag.to_ne_bytes();
                let (tci, tpid) = (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]));
                let tpid = if status & VLAN_TPID_VALID != 0 { tpid } else { frame::VLAN };
                let ([a, b], [c, d]) = (tpid.to_be_bytes(), tci.to_be_bytes());
                [a, b, c, d]
            }),
        }
    }

    /// Does the frame at `at`, the rest of which lies at `rest`, begin as the slot says that its frame does?
    ///
    /// # Safety
    /// A frame of that length lies there.
    unsafe fn begins(&self, head: &Head, at: *const u8, rest: usize) -> bool {
        if head.mac < HEAD + VNET_LEN || head.stored < ALIKE || head.mac + ALIKE > SLOT {
            return true; // nobody can say
        }
        let (mut here, mut there) = ([0u8; ALIKE], [0u8; ALIKE]);
        // SAFETY: as the caller promises, and within the slot.
        unsafe {
            ptr::copy_nonoverlapping(self.slot(self.at).add(head.mac), here.as_mut_ptr(), ALIKE);
            ptr::copy_nonoverlapping(at, there.as_mut_ptr(), ADDRESSES);
            ptr::copy_nonoverlapping(at.add(rest), there[ADDRESSES..].as_mut_ptr(), ALIKE - ADDRESSES);
        }
        here == there
    }
}

impl Head {
    /// Is the frame in the slot, with room before it for the virtio-net header and a tag?
    fn is_sound(&self) -> bool {
        self.mac >= HEAD + VNET_LEN + frame::TAG && self.mac + self.stored <= SLOT
    }
}

/// Put a tag into the gap behind the addresses, and what follows it out of its place by its length.
///
/// # Safety
/// A frame of at least ADDRESSES and TAG bytes lies there, with its virtio-net header before it.
unsafe fn put_tag(frame: *mut u8, tag: &[u8; frame::TAG]) {
    // SAFETY: as the caller promises.
    unsafe {
        ptr::copy_nonoverlapping(tag.as_ptr(), frame.add(ADDRESSES), frame::TAG);
        let mut header = vnet(frame);
        offload::shift(&mut header, frame::TAG as i32);
        let mut bytes = [0u8; VNET_LEN];
        header.write(&mut bytes);
        ptr::copy_nonoverlapping(bytes.as_ptr(), frame.sub(VNET_LEN), VNET_LEN);
    }
}

/// Refuse a super-frame of a kind that nobody here can cut: one in a tunnel, which the kernel describes as if it were in none.
///
/// # Safety
/// A frame of `len` bytes lies there, with its virtio-net header before it.
unsafe fn check(frame: *const u8, len: usize) -> Result<(), Cause> {
    // SAFETY: as the caller promises.
    let header = unsafe { vnet(frame) };
    if header.gso_type == GSO_NONE {
        return Ok(());
    }
    let mut top = [0u8; HEADERS_MAX];
    let top = &mut top[..len.min(HEADERS_MAX)];
    // SAFETY: as the caller promises.
    unsafe { ptr::copy_nonoverlapping(frame, top.as_mut_ptr(), top.len()) };
    offload::check_top(&header, top, len).map_err(|_| Cause::BadOffload)
}

/// # Safety
/// A virtio-net header lies before the frame.
unsafe fn vnet(frame: *const u8) -> VnetHeader {
    let mut bytes = [0u8; VNET_LEN];
    // SAFETY: as the caller promises.
    unsafe { ptr::copy_nonoverlapping(frame.sub(VNET_LEN), bytes.as_mut_ptr(), VNET_LEN) };
    VnetHeader::read(&bytes)
}

fn refusal(error: &io::Error) -> Refusal {
    match error.raw_os_error().unwrap_or(0) {
        libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM => Refusal::Drop(Cause::TxFull),
        libc::ENETDOWN | libc::ENXIO | libc::ENODEV => Refusal::Drop(Cause::TxDown), // who says when it is back is netlink
        libc::EMSGSIZE => Refusal::Drop(Cause::TxOversize),
        libc::EINVAL => Refusal::Drop(Cause::TxOffload),
        libc::EBADF => Refusal::Ended(libc::EBADF),
        _ => Refusal::Drop(Cause::TxError),
    }
}
