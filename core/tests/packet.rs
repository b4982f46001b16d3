//! The ring of a packet socket, with a file in the kernel's place: what a slot says is checked, and a successor finds its place.

use std::fs::File;
use std::os::fd::AsRawFd;

use _core::frame;
use _core::lane::{HEADROOM, VNET_LEN};
use _core::offload::{NEEDS_CSUM, VnetHeader};
use _core::port::Packet;
use _core::port::packet::{Next, SLOT, SLOTS};
use _core::ports::Cause;
use _core::sys::Mapping;
use _core::testing;

const USER: u32 = 1;
const VLAN: u32 = 16;
const VLAN_TPID: u32 = 64;
/// Where the kernel begins a frame: behind its header, the address, what was reserved, the virtio-net header.
const MAC: usize = 84;

struct Ring {
    file: File,
    map: Mapping,
}

impl Ring {
    fn new() -> Ring {
        let file = testing::memory();
        file.set_len((SLOT * SLOTS) as u64).unwrap();
        let map = Mapping::new(file.as_raw_fd(), 0, SLOT * SLOTS).unwrap();
        Ring { file, map }
    }

    fn open(&self) -> Packet {
        Packet::new(self.file.as_raw_fd()).unwrap()
    }

    fn write(&self, slot: usize, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= SLOT);
        // SAFETY: within the slot.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.map.start().add(slot * SLOT + offset), bytes.len()) };
    }

    fn word(&self, slot: usize, offset: usize) -> u32 {
        // SAFETY: an aligned word of the slot.
        unsafe { self.map.start().add(slot * SLOT + offset).cast::<u32>().read_volatile() }
    }

    /// As the kernel fills a slot: the mark is wiped, and the status comes last.
    fn fill(&self, slot: usize, status: u32, second: u32, frame: &[u8]) {
        self.write(slot, 4, &(frame.len() as u32).to_ne_bytes());
        self.write(slot, 8, &(frame.len() as u32).to_ne_bytes());
        self.write(slot, 12, &(MAC as u16).to_ne_bytes());
        self.write(slot, 16, &second.to_ne_bytes());
        self.write(slot, 28, &[0; 4]);
        self.write(slot, MAC - VNET_LEN, &[0; VNET_LEN]);
        self.write(slot, MAC, frame);
        self.write(slot, 0, &status.to_ne_bytes());
    }
}

fn numbered(number: usize) -> Vec<u8> {
    let mut bytes = vec![2; 60];
    bytes[14..22].copy_from_slice(&(number as u64).to_be_bytes());
    bytes
}

/// What `take` gave, copied.
fn taken(packet: &mut Packet) -> Vec<u8> {
    assert_eq!(packet.peek(), Next::Short);
    let (frame, len) = packet.take().unwrap();
    // SAFETY: what was taken lies in the ring until it is released.
    let bytes = unsafe { std::slice::from_raw_parts(frame, len) }.to_vec();
    packet.release();
    bytes
}

#[test]
fn frames_come_in_the_order_of_their_slots_and_slots_go_back() {
    let ring = Ring::new();
    let mut packet = ring.open();
    for number in 0..3 * SLOTS {
        assert_eq!(packet.peek(), Next::Nothing);
        ring.fill(number % SLOTS, USER, 0, &numbered(number));
        assert_eq!(taken(&mut packet), numbered(number));
        assert_eq!(ring.word(number % SLOTS, 0), 0);
    }
}

#[test]
fn a_successor_goes_on_behind_the_last_mark_and_sends_nothing_twice() {
    let ring = Ring::new();
    let (mut filled, mut read) = (0, 0);
    for burst in [0, 1, 5, SLOTS / 3, SLOTS * 2 / 3, SLOTS - 24, 20, SLOTS - 1, SLOTS - 25] {
        let mut packet = ring.open();
        while filled < read + burst {
            ring.fill(filled % SLOTS, USER, filled as u32, &numbered(filled));
            filled += 1;
        }
        // It dies over a frame that it has taken, and leaves one or more behind it.
        while read + 2 < filled {
            assert_eq!(taken(&mut packet), numbered(read));
            read += 1;
        }
        if read < filled {
            assert_eq!(packet.peek(), Next::Short);
            packet.take().unwrap();
            read += 1;
        }
    }
    let mut packet = ring.open();
    while read < filled {
        assert_eq!(taken(&mut packet), numbered(read));
        read += 1;
    }
    assert_eq!(packet.lost(), 0);
}

#[test]
fn in_a_ring_that_is_all_new_the_oldest_is_the_first() {
    let ring = Ring::new();
    for slot in 0..SLOTS {
        ring.fill((slot + 700) % SLOTS, USER, 5 + slot as u32, &numbered(slot));
    }
    let mut packet = ring.open();
    for slot in 0..SLOTS {
        assert_eq!(taken(&mut packet), numbered(slot));
    }
}

#[test]
fn a_tag_is_put_back_and_what_lies_behind_it_is_told_to_have_moved() {
    let ring = Ring::new();
    let mut packet = ring.open();
    for (status, tpid, wanted) in [(USER | VLAN, 0, frame::VLAN), (USER | VLAN | VLAN_TPID, frame::SERVICE_VLAN, frame::SERVICE_VLAN)] {
        let slot = usize::from(tpid != 0);
        ring.fill(slot, 0, 0, &numbered(7));
        let mut header = [0; VNET_LEN];
        VnetHeader { flags: NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..VnetHeader::default() }.write(&mut header);
        ring.write(slot, MAC - VNET_LEN, &header);
        ring.write(slot, 24, &0xa00au16.to_ne_bytes());
        ring.write(slot, 26, &tpid.to_ne_bytes());
        ring.write(slot, 0, &status.to_ne_bytes());
        assert_eq!(packet.peek(), Next::Short);
        let (at, len) = packet.take().unwrap();
        // SAFETY: what was taken lies in the ring, with its header before it.
        let (found, header) = unsafe { (std::slice::from_raw_parts(at, len), at.sub(VNET_LEN).cast::<[u8; VNET_LEN]>().read()) };
        let whole = numbered(7);
        assert_eq!(found[..12], whole[..12]);
        assert_eq!(found[12..14], wanted.to_be_bytes());
        assert_eq!(found[14..16], [0xa0, 0x0a]);
        assert_eq!(found[16..], whole[12..]);
        assert_eq!(VnetHeader::read(&header).csum_start, 38);
        packet.release();
    }
}

#[test]
fn a_super_frame_in_a_tunnel_is_refused() {
    let ring = Ring::new();
    let mut packet = ring.open();
    ring.fill(0, 0, 0, &[0; 1400]);
    let mut header = [0; VNET_LEN];
    VnetHeader { flags: NEEDS_CSUM, gso_type: 1, gso_size: 500, csum_start: 84, csum_offset: 16, hdr_len: 104 }.write(&mut header);
    ring.write(0, MAC - VNET_LEN, &header);
    ring.write(0, MAC + 12, &[8, 0, 0x45]); // and so on: IPv4, UDP, VXLAN, Ethernet, IPv4, TCP
    ring.write(0, MAC + 23, &[17]);
    ring.write(0, 0, &USER.to_ne_bytes());
    assert_eq!(packet.peek(), Next::Short);
    assert_eq!(packet.take(), Err(Cause::BadOffload));
}

#[test]
fn a_long_frame_that_the_queue_had_no_room_for_is_lost() {
    let ring = Ring::new();
    let mut packet = ring.open();
    ring.fill(0, 0, 0, &[0; 1900]);
    ring.write(0, 4, &65_000u32.to_ne_bytes());
    ring.write(0, 0, &USER.to_ne_bytes());
    assert_eq!(packet.peek(), Next::Lost(Cause::Overrun));
    packet.skip();
    assert_eq!(packet.peek(), Next::Nothing);
}

#[test]
fn whatever_a_slot_says_no_frame_lies_outside_of_it() {
    let ring = Ring::new();
    let mut packet = ring.open();
    let mut room = vec![0u64; (HEADROOM + _core::lane::FRAME_MOST).div_ceil(8) + 1];
    let at = room.as_mut_ptr().cast::<u8>().wrapping_add(HEADROOM);
    let (mut seed, mut slot, mut short) = (1u64, 0, 0);
    let mut draw = |most: u32| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u32 % most
    };
    for _ in 0..200_000 {
        let edge = |value: u32, draw: &mut dyn FnMut(u32) -> u32| if draw(4) == 0 { u32::MAX - draw(99) } else { value };
        let stored = edge(draw(2100), &mut draw);
        let len = if draw(2) == 0 { stored } else { edge(draw(70_000), &mut draw) };
        ring.write(slot, 4, &len.to_ne_bytes());
        ring.write(slot, 8, &stored.to_ne_bytes());
        ring.write(slot, 12, &(draw(1 << 16) as u16 >> (draw(2) * 8)).to_ne_bytes());
        ring.write(slot, 24, &draw(u32::MAX).to_ne_bytes());
        ring.write(slot, 0, &(USER | draw(128)).to_ne_bytes());
        match packet.peek() {
            Next::Nothing => panic!("the slot is full"),
            Next::Short => {
                if let Ok((frame, len)) = packet.take() {
                    let begin = frame as usize % SLOT; // a ring begins at a page, and a slot is half of one
                    assert!(begin >= VNET_LEN && begin + len <= SLOT, "{begin} {len}");
                    short += 1;
                }
                packet.release();
            }
            // SAFETY: there is room for any frame.
            Next::Long => drop(unsafe { packet.receive(at) }),
            Next::Lost(_) => packet.skip(),
        }
        packet.lost();
        slot = (slot + 1) % SLOTS;
    }
    assert!(short > 1000, "{short}");
}
