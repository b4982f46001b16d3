//! What the offloads cost: GB/s of the checksum, ns a segment. Run with `cargo run --release --no-default-features --example offload_speed`.
//!
//! The best of 20 rounds each, on data that the cache holds.

use std::hint::black_box;
use std::time::Instant;

use _core::offload::{self, HEADERS_MAX, Sum, VnetHeader};

const MSS: usize = 1448;
const SUPER_FRAME: usize = 65536 - 14;

fn main() {
    let bytes: Vec<u8> = (0..65000u32).map(|at| (at.wrapping_mul(2654435761) >> 13) as u8).collect();
    for size in [64, 1500, 65000] {
        let ns = best(20_000_000 / (size + 200), || offload::sum(black_box(&bytes[..size])));
        println!("checksum {size:5} bytes  {ns:8.1} ns  {:5.1} GB/s", size as f64 / ns);
    }

    let (header, frame) = super_frame();
    let segments = (frame.len() - 66).div_ceil(MSS) as f64;
    let mut scratch = [0; HEADERS_MAX];
    let ns = best(500, || {
        offload::segment(black_box(&header), black_box(&frame), &mut scratch, &mut |headers, payload| {
            black_box((headers, payload));
        })
    });
    println!("segment {} bytes at MSS {MSS}  {ns:8.1} ns  {:5.1} ns a segment", frame.len(), ns / segments);
    let ns = best(500_000, || offload::check(black_box(&header), black_box(&frame)));
    println!("check a super-frame  {ns:8.1} ns");
}

fn best<R>(turns: usize, mut work: impl FnMut() -> R) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..20 {
        let start = Instant::now();
        for _ in 0..turns {
            black_box(work());
        }
        best = best.min(start.elapsed().as_nanos() as f64 / turns as f64);
    }
    best
}

/// TCP over IPv4 with time stamps, as Linux sends it in bulk.
fn super_frame() -> (VnetHeader, Vec<u8>) {
    let mut frame = vec![0x52, 0x55, 0, 0, 0, 1, 0x52, 0x55, 0, 0, 0, 2, 0x08, 0x00];
    frame.extend([0x45, 0, 0xff, 0xf2, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 2, 10, 0, 2, 15]);
    frame.extend([0x13, 0x88, 0xc0, 0x01, 0, 0, 0, 1, 0, 0, 0, 2, 0x80, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend([1, 1, 8, 10, 0, 0, 0, 3, 0, 0, 0, 4]);
    frame.resize(SUPER_FRAME, 0x5a);
    let pseudo = Sum::default().bytes(&frame[26..34]).word(6).word((SUPER_FRAME - 34) as u16).fold();
    frame[50..52].copy_from_slice(&pseudo.to_be_bytes());
    frame[16..18].copy_from_slice(&((SUPER_FRAME - 14) as u16).to_be_bytes());
    let header = VnetHeader {
        flags: offload::NEEDS_CSUM,
        gso_type: offload::GSO_TCPV4,
        hdr_len: 66,
        gso_size: MSS as u16,
        csum_start: 34,
        csum_offset: 16,
    };
    (header, frame)
}
