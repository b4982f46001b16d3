//! The device of a vhost-user port against drivers that keep to the rules in every way they may, and against those that do not.

mod driver;

use _core::arena::Arena;
use _core::lane::{FRAME_MOST, VNET_LEN};
use _core::offload::{NEEDS_CSUM, VnetHeader};
use _core::port::vhost::{Received, feature};
use _core::port::{Bench, Flush, Piece, Refusal};
use _core::ports::{Cause, Cell, Counter};
use _core::switch::Edit;
use _core::{sys, testing};
use driver::{CONTROL, Driver, GUEST, RECEIVE, SIZE, TRANSMIT};
use proptest::prelude::*;
use std::os::fd::AsRawFd;

const HEADER: usize = 12;
const ALL: u64 =
    feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::GUEST_TSO6 | feature::MRG_RXBUF | feature::INDIRECT_DESC | feature::EVENT_IDX;

/// The counters of the test that asks: each runs in a thread of its own.
fn cell() -> &'static Cell {
    thread_local! {
        static ARENA: &'static Arena = testing::arena(256 << 10);
    }
    ARENA.with(|arena| arena.cell(0, 1))
}

/// Memory that a frame is copied to, with what must not be touched behind it.
struct Bay(Vec<u8>);

const CANARY: [u8; 64] = [0xa5; 64];

impl Bay {
    fn new() -> Bay {
        let mut bytes = vec![0; VNET_LEN + FRAME_MOST];
        bytes.extend(CANARY);
        Bay(bytes)
    }

    fn receive(&mut self, driver: &mut Driver) -> Received {
        // SAFETY: the bay has room for any frame, and a header's before it.
        let received = unsafe { driver.device.receive(self.0.as_mut_ptr().add(VNET_LEN)) };
        assert_eq!(self.0[VNET_LEN + FRAME_MOST..], CANARY);
        received
    }
}

/// A frame with its virtio-net header before it.
fn piece(bytes: &[u8]) -> Piece {
    // SAFETY: the header's room is the slice's begin.
    Piece { frame: unsafe { bytes.as_ptr().add(VNET_LEN) }, len: bytes.len() - VNET_LEN, edit: Edit::Keep }
}

fn frame_of(len: usize, seed: u8) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect();
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// Cut `len` into parts, some of them empty.
fn parts(len: usize, cuts: &[usize]) -> Vec<usize> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (len + 1)).collect();
    ends.push(len);
    ends.sort_unstable();
    let mut before = 0;
    ends.into_iter().map(|end| end - std::mem::replace(&mut before, end)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_frame_is_whole_however_its_driver_scatters_it(
        frames in prop::collection::vec((14..3000usize, prop::collection::vec(any::<usize>(), 0..8), any::<bool>()), 1..6),
        offset in 0..6000usize,
        event_index in any::<bool>(),
    ) {
        let mut driver = Driver::new(if event_index { ALL } else { ALL & !feature::EVENT_IDX });
        driver.from(Driver::middle() - offset); // some buffer lies in both regions
        let (mut next, mut sent) = (0, Vec::new());
        for (number, (len, cuts, indirect)) in frames.iter().enumerate() {
            let frame = frame_of(*len, number as u8);
            let bytes: Vec<u8> = [&[0; HEADER][..], &frame[..]].concat();
            let (mut buffers, mut from) = (Vec::new(), 0);
            for part in parts(bytes.len(), cuts) {
                let at = driver.room(part, 3);
                driver.poke(at, &bytes[from..from + part]);
                buffers.push((at, part));
                from += part;
            }
            next = driver.post(TRANSMIT, &buffers, next, *indirect);
            sent.push(frame);
        }
        let mut bay = Bay::new();
        for frame in &sent {
            prop_assert_eq!(bay.receive(&mut driver), Received::Frame(frame.len()));
            prop_assert_eq!(&bay.0[VNET_LEN..VNET_LEN + frame.len()], &frame[..]);
        }
        prop_assert_eq!(bay.receive(&mut driver), Received::Nothing);
        driver.device.end_batch();
        prop_assert_eq!(driver.used(TRANSMIT).len(), sent.len());
    }

    #[test]
    fn a_frame_is_whole_in_whatever_buffers_a_driver_has(
        frames in prop::collection::vec(14..20_000usize, 1..4),
        buffers in prop::collection::vec((12..4000usize, prop::collection::vec(any::<usize>(), 0..3), any::<bool>()), 1..16),
        offset in 0..6000usize,
    ) {
        let mut driver = Driver::new(ALL);
        driver.from(Driver::middle() - offset);
        let (mut next, mut chains) = (0, std::collections::HashMap::new());
        for (len, cuts, indirect) in &buffers {
            let places: Vec<_> = parts(*len, cuts).into_iter().map(|part| (driver.room(part, 1), part)).collect();
            if next + places.len() as u16 > SIZE {
                break;
            }
            chains.insert(next, places.clone());
            next = driver.post(RECEIVE, &places, next, *indirect);
        }
        let (mut bench, before) = (Bench::default(), cell().counter(Counter::TxFrames as usize));
        let mut sent = Vec::new();
        for (number, len) in frames.iter().enumerate() {
            let frame = frame_of(*len, number as u8);
            let bytes = [&[0; VNET_LEN][..], &frame[..]].concat();
            match driver.device.send(&piece(&bytes), cell(), &mut bench) {
                Ok(()) => sent.push(frame),
                Err(refusal) => {
                    prop_assert_eq!(refusal, Refusal::Blocked); // one waits in the outbox
                    prop_assert!(driver.device.is_full());
                }
            }
        }
        let waits = driver.device.flush(cell()) == Flush::Writable;
        prop_assert_eq!(waits, driver.device.is_full());
        let mut back = driver.used(RECEIVE).into_iter();
        for frame in &sent[..sent.len() - usize::from(waits)] {
            let mut take = || -> Vec<u8> {
                let (head, len) = back.next().expect("a chain for each frame");
                chains[&head].iter().flat_map(|&(at, len)| driver.peek(at, len)).take(len).collect()
            };
            let mut got = take(); // the header, and perhaps nothing else
            let count = u16::from_le_bytes([got[10], got[11]]);
            prop_assert_ne!(count, 0);
            (1..count).for_each(|_| got.extend(take()));
            prop_assert_eq!(&got[HEADER..], frame);
        }
        prop_assert_eq!(back.next(), None);
        prop_assert_eq!(cell().counter(Counter::TxFrames as usize) - before, (sent.len() - usize::from(waits)) as u64);
    }
}

/// What a driver, or its front end, does that it must not.
#[derive(Debug, Clone)]
enum Harm {
    /// A word anywhere in the rings and the tables, of 2, 4 or 8 bytes.
    Word(usize, u64, usize),
    /// A whole descriptor: its number, address, length, flags, next.
    Descriptor(usize, u64, u32, u16, u16),
    /// The index that says what is available.
    Available(usize, u16),
    Receive(usize),
    Send(usize, u8),
    Flush,
    Restart(usize),
    Share,
    Cut(u64),
}

fn harm() -> impl Strategy<Value = Harm> {
    let odd = prop_oneof![
        Just(0u64),
        Just(1),
        Just(u64::MAX),
        Just(u64::from(SIZE)),
        Just(0xffff),
        Just(0xffff_ffff),
        (0..0x80_1000u64).prop_map(|at| GUEST + at),
        any::<u64>()
    ];
    let address = prop_oneof![3 => (0..0x80_1000u64).prop_map(|at| GUEST + at), 1 => any::<u64>(), 1 => Just(u64::MAX - 3)];
    let len = prop_oneof![4 => 0..3000u32, 1 => Just(u32::MAX), 1 => (1..200u32).prop_map(|count| 16 * count), 1 => any::<u32>()];
    let flags = prop_oneof![8 => 0..8u16, 1 => any::<u16>()];
    prop_oneof![
        3 => (0..CONTROL - 8, odd, prop_oneof![Just(2usize), Just(4), Just(8)]).prop_map(|(at, word, len)| Harm::Word(at, word, len)),
        8 => (0..2 * usize::from(SIZE), address, len, flags, 0..SIZE + 2)
            .prop_map(|(at, address, len, flags, next)| Harm::Descriptor(at, address, len, flags, next)),
        6 => (0..2usize, prop_oneof![4 => 0..SIZE, 1 => any::<u16>()]).prop_map(|(ring, index)| Harm::Available(ring, index)),
        6 => (1..200usize).prop_map(Harm::Receive),
        6 => (14..60_000usize, any::<u8>()).prop_map(|(len, kind)| Harm::Send(len, kind)),
        3 => Just(Harm::Flush),
        2 => (0..2usize).prop_map(Harm::Restart),
        1 => Just(Harm::Share),
    ]
}

fn suffer(driver: &mut Driver, bay: &mut Bay, bench: &mut Bench, harm: &Harm) {
    match *harm {
        Harm::Word(at, word, len) => driver.poke(at, &word.to_le_bytes()[..len]),
        Harm::Descriptor(number, address, len, flags, next) => {
            let at = number / usize::from(SIZE) * CONTROL / 2 + number % usize::from(SIZE) * 16;
            driver.poke(at, &address.to_le_bytes());
            driver.poke(at + 8, &len.to_le_bytes());
            driver.poke(at + 12, &[flags.to_le_bytes(), next.to_le_bytes()].concat());
        }
        Harm::Available(ring, index) => driver.poke(ring * CONTROL / 2 + 0x1002, &index.to_le_bytes()),
        Harm::Receive(times) => {
            for _ in 0..times {
                match bay.receive(driver) {
                    Received::Nothing => break,
                    Received::Frame(len) => assert!(len <= FRAME_MOST + 1),
                    Received::Dropped(_) => {}
                }
            }
            driver.device.end_batch();
        }
        Harm::Send(len, kind) => {
            let mut bytes = [&[0; VNET_LEN][..], &frame_of(len, kind)].concat();
            bytes[0] = kind & NEEDS_CSUM;
            bytes[1] = kind >> 4;
            let _ = driver.device.send(&piece(&bytes), cell(), bench);
        }
        Harm::Flush => drop(driver.device.flush(cell())),
        Harm::Restart(ring) => {
            let _ = driver.device.stop(ring).expect("a ring can be stopped");
            let _ = driver.start(ring);
        }
        Harm::Share => drop(driver.share()),
        Harm::Cut(bytes) => sys::truncate(driver.file.as_raw_fd(), bytes).expect("the file is ours"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_driver_without_sense_harms_itself_alone(features in any::<u64>(), harms in prop::collection::vec(harm(), 1..120)) {
        let mut driver = Driver::new(features & ALL);
        let (mut bay, mut bench) = (Bay::new(), Bench::default());
        for harm in &harms {
            suffer(&mut driver, &mut bay, &mut bench, harm);
        }
        prop_assert!(!driver.device.is_broken());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn memory_that_is_taken_away_is_missed_and_nothing_else(
        cut in prop_oneof![Just(0u64), Just(4096), 0..=(8u64 << 20) - 4096], // the last page goes, whole
        before in prop::collection::vec(harm(), 1..40),
    ) {
        let mut driver = Driver::new(ALL);
        let (mut bay, mut bench) = (Bay::new(), Bench::default());
        let buffer = driver.room(2000, 0);
        driver.from((8 << 20) - 2000);
        let last = driver.room(2000, 0);
        for harm in before {
            suffer(&mut driver, &mut bay, &mut bench, &harm);
        }
        while bay.receive(&mut driver) != Received::Nothing {}
        driver.device.stop(TRANSMIT).expect("a ring can be stopped");
        driver.poke(CONTROL / 2 + 0x2000, &[0; 4]);
        driver.poke(CONTROL / 2 + 0x1000, &[0; 4]);
        driver.start(TRANSMIT).expect("a ring that fits");
        let next = driver.post(TRANSMIT, &[(buffer, 2000)], 0, false);
        driver.post(TRANSMIT, &[(last, 2000)], next, false);
        suffer(&mut driver, &mut bay, &mut bench, &Harm::Cut(cut));
        // At least the second buffer is gone.
        for _ in 0..2 {
            bay.receive(&mut driver);
        }
        driver.device.end_batch();
        prop_assert!(driver.device.is_broken());
        prop_assert_eq!(driver.device.flush(cell()), Flush::Ended(libc::EFAULT));
        suffer(&mut driver, &mut bay, &mut bench, &Harm::Send(60_000, 0));
        // A new device is not touched by the old one's loss.
        drop(driver);
        prop_assert!(!Driver::new(ALL).device.is_broken());
    }
}

#[test]
fn a_ring_whose_index_jumps_or_runs_backwards_stops_and_the_other_goes_on() {
    for index in [SIZE + 1, 0xffff, 0x8000] {
        let mut driver = Driver::new(ALL);
        let mut bay = Bay::new();
        driver.poke(CONTROL / 2 + 0x1002, &index.to_le_bytes());
        assert_eq!(bay.receive(&mut driver), Received::Dropped(Cause::BadChain));
        assert_eq!(driver.device.take_stopped().collect::<Vec<_>>(), [TRANSMIT]);
        assert_eq!(bay.receive(&mut driver), Received::Nothing);
        let room = (driver.room(2000, 0), 2000);
        driver.post(RECEIVE, &[room], 0, false);
        let bytes = [&[0; VNET_LEN][..], &frame_of(100, 1)].concat();
        assert_eq!(driver.device.send(&piece(&bytes), cell(), &mut Bench::default()), Ok(()));
        assert_eq!(driver.device.flush(cell()), Flush::Idle);
        assert_eq!(driver.used(RECEIVE), [(0, HEADER + 100)]);
    }
}

#[test]
fn a_header_that_does_not_fit_its_frame_is_dropped_and_the_next_frame_passes() {
    let mut driver = Driver::new(ALL);
    let mut bay = Bay::new();
    let mut bad = [0u8; VNET_LEN];
    VnetHeader { flags: NEEDS_CSUM, csum_start: 5000, csum_offset: 16, ..Default::default() }.write(&mut bad);
    let mut next = 0;
    for header in [bad, [0; VNET_LEN]] {
        let bytes = [&header[..], &[0, 0], &frame_of(60, 7)].concat();
        let at = driver.room(bytes.len(), 0);
        driver.poke(at, &bytes);
        next = driver.post(TRANSMIT, &[(at, bytes.len())], next, false);
    }
    assert_eq!(bay.receive(&mut driver), Received::Dropped(Cause::BadOffload));
    assert_eq!(bay.receive(&mut driver), Received::Frame(60));
    driver.device.end_batch();
    assert_eq!(driver.used(TRANSMIT), [(0, 0), (1, 0)]);
}

#[test]
fn a_chain_that_loops_or_leads_out_of_the_memory_is_given_back_and_counted() {
    let mut driver = Driver::new(ALL);
    let mut bay = Bay::new();
    let at = driver.room(100, 0);
    driver.post(TRANSMIT, &[(at, 50), (at, 50)], 0, false);
    driver.poke(CONTROL / 2 + 16 + 12, &[driver::NEXT.to_le_bytes(), 0u16.to_le_bytes()].concat()); // the second leads to the first
    driver.post(TRANSMIT, &[(driver::BYTES - 10, 50)], 2, false);
    driver.post(TRANSMIT, &[(at, 5)], 3, false); // not even a header
    for _ in 0..3 {
        assert_eq!(bay.receive(&mut driver), Received::Dropped(Cause::BadChain));
    }
    assert_eq!(bay.receive(&mut driver), Received::Nothing);
    driver.device.end_batch();
    assert_eq!(driver.used(TRANSMIT), [(0, 0), (2, 0), (3, 0)]);
}
