//! What `frame` reads from headers, and from what only looks like headers.

use _core::frame::{self, Payload, Tag, Transport};
use proptest::prelude::*;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

const MACS: &str = "0180c200000e 525500000002";
const IPV4_UDP: &str = "4500 001c 0000 0000 40 11 0000 0a000202 0a00020f 0035 1234 0008 0000";

fn framed(between: &str, payload: &str) -> Vec<u8> {
    bytes(&format!("{MACS} {between} {payload}"))
}

#[test]
fn addresses_are_read_in_the_order_of_the_wire() {
    let frame = framed("0800", IPV4_UDP);
    assert_eq!(frame::destination(&frame), Some(0x0180c200000e));
    assert_eq!(frame::source(&frame), Some(0x525500000002));
    assert!(frame::is_multicast(0x0180c200000e));
    assert!(frame::is_multicast(0xffffffffffff));
    assert!(!frame::is_multicast(0x525500000002));
}

#[test]
fn a_runt_has_no_source() {
    let frame = framed("0800", IPV4_UDP);
    assert_eq!(frame::destination(&frame[..6]), Some(0x0180c200000e));
    assert_eq!(frame::destination(&frame[..5]), None);
    assert_eq!(frame::source(&frame[..11]), None);
    assert_eq!(frame::payload(&frame[..13]), None);
}

#[test]
fn a_tag_gives_its_vlan_and_its_priority() {
    let tag = frame::tag(&framed("8100 b064 0800", IPV4_UDP)).unwrap();
    assert_eq!(tag, Tag { vid: 100, pcp_dei: 0xb });
    assert_eq!(tag.tci(), 0xb064);
}

#[test]
fn only_8100_is_a_tag() {
    assert_eq!(frame::tag(&framed("0800", IPV4_UDP)), None);
    assert_eq!(frame::tag(&framed("88a8 0064 0800", IPV4_UDP)), None);
    assert_eq!(frame::tag(&framed("8100 00", "")), None);
}

#[test]
fn the_payload_is_found_past_two_tags_and_no_third() {
    let at = |between| frame::payload(&framed(between, IPV4_UDP)).unwrap();
    assert_eq!(at("0800"), Payload { offset: 14, ethertype: frame::IPV4 });
    assert_eq!(at("8100 0001 0800"), Payload { offset: 18, ethertype: frame::IPV4 });
    assert_eq!(at("88a8 0001 8100 0001 0800"), Payload { offset: 22, ethertype: frame::IPV4 });
    assert_eq!(at("8100 0001 8100 0001 8100 0001 0800"), Payload { offset: 22, ethertype: frame::VLAN });
}

#[test]
fn the_transport_header_is_found_past_options_and_extension_headers() {
    let options = "4600 0020 0000 4000 40 06 0000 0a000202 0a00020f 01010101";
    assert_eq!(frame::transport(&framed("0800", options)), Some(Transport { version: 4, network: 14, offset: 38, protocol: frame::TCP }));
    let extended = format!("6000 0000 0030 00 40 {} 3c00 0000 0000 0000 1101 0000 0000 0000 {}", "00".repeat(32), "00".repeat(8));
    assert_eq!(
        frame::transport(&framed("8100 0001 86dd", &extended)),
        Some(Transport { version: 6, network: 18, offset: 18 + 40 + 8 + 16, protocol: frame::UDP })
    );
}

#[test]
fn fragments_and_endless_extension_headers_have_no_transport_header() {
    let first_fragment = IPV4_UDP.replacen("0000 0000 40", "0000 2000 40", 1);
    let last_fragment = IPV4_UDP.replacen("0000 0000 40", "0000 0010 40", 1);
    assert_eq!(frame::transport(&framed("0800", &first_fragment)), None);
    assert_eq!(frame::transport(&framed("0800", &last_fragment)), None);
    let nine = format!("6000 0000 0048 3c 40 {} {}", "00".repeat(32), "3c00 0000 0000 0000".repeat(12));
    assert_eq!(frame::transport(&framed("86dd", &nine)), None);
    let fragment = format!("6000 0000 0008 2c 40 {} {}", "00".repeat(32), "0600 0001 0000 0000".repeat(4));
    assert_eq!(frame::transport(&framed("86dd", &fragment)), None);
}

#[test]
fn both_directions_of_a_flow_hash_alike_and_another_port_does_not() {
    let udp = |from: &str, to: &str, ports: &str| {
        frame::flow_hash(&framed("0800", &format!("4500 001c 0000 0000 40 11 0000 {from} {to} {ports} 0008 0000")))
    };
    let there = udp("0a000202", "0a00020f", "0035 1234");
    assert_eq!(there, udp("0a00020f", "0a000202", "1234 0035"));
    assert_ne!(there, udp("0a000202", "0a00020f", "0035 1235"));
    assert_ne!(there, udp("0a000202", "0a00020f", "1234 0035"));
    let tcp6 = |from: &str, to: &str, ports: &str| {
        let address = |last| format!("fec0{}{last}", "00".repeat(13));
        frame::flow_hash(&framed("86dd", &format!("6000 0000 0014 06 40 {} {} {ports}", address(from), address(to))))
    };
    assert_eq!(tcp6("02", "0f", "0050 1234"), tcp6("0f", "02", "1234 0050"));
    assert_ne!(tcp6("02", "0f", "0050 1234"), tcp6("02", "0e", "0050 1234"));
    let arp = bytes("525500000002 525500000003 0806");
    let reply = bytes("525500000003 525500000002 0806");
    assert_eq!(frame::flow_hash(&arp), frame::flow_hash(&reply));
}

/// A packet of IPv4 from 10.0.2.15 to 192.0.2.1: its fragment field, its protocol, what it carries.
fn from_a_guest(fragment: &str, protocol: u8, payload: &str) -> Vec<u8> {
    framed("0800", &format!("4500 0028 0000 {fragment} 40 {protocol:02x} 0000 0a00020f c0000201 {payload}"))
}

#[test]
fn a_network_is_spread_by_connections_and_else_by_who_sends() {
    let ip = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().to_ipv6_mapped();
    let (guest, far) = (ip("10.0.2.15"), ip("192.0.2.1"));
    let connection = frame::spread_of_ends((guest, 0x1234), (far, 80));
    let tcp = "1234 0050 00000000 00000000 5010 0000 0000 0000";
    assert_eq!(frame::spread(&from_a_guest("0000", 6, tcp)), Some(connection));
    assert_eq!(frame::spread_of_ends((far, 80), (guest, 0x1234)), connection);
    let alone = frame::spread_of_source(guest);
    for (fragment, protocol, payload) in [("2000", 6, tcp), ("0001", 6, tcp), ("0000", 17, tcp), ("0000", 17, &tcp[..4]), ("0000", 1, "08")]
    {
        assert_eq!(frame::spread(&from_a_guest(fragment, protocol, payload)), Some(alone), "{fragment} {protocol}");
    }
    assert_eq!(frame::spread(&framed("0806", "0001 0800 0604 0001")), None);
    let v6 = |next: u8, payload: &str| {
        framed(
            "86dd",
            &format!("6000 0000 0018 {next:02x} ff fec0000000000000 0000000000000015 fec0000000000000 0000000000000002 {payload}"),
        )
    };
    let (guest, host) = ("fec0::15".parse().unwrap(), "fec0::2".parse().unwrap());
    assert_eq!(frame::spread(&v6(58, "8700 0000")), None);
    assert_eq!(frame::spread(&v6(58, "8000 0000")), Some(frame::spread_of_source(guest)));
    assert_eq!(frame::spread(&v6(6, tcp)), Some(frame::spread_of_ends((guest, 0x1234), (host, 80))));
}

#[test]
fn flows_spread_evenly_over_two_shards() {
    let odd = (1024u16..2024)
        .filter(|port| frame::flow_hash(&framed("0800", &IPV4_UDP.replacen("1234", &format!("{port:04x}"), 1))) & 1 == 1)
        .count();
    assert!((400..600).contains(&odd), "{odd} of 1000");
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(
        mut frame in prop::collection::vec(any::<u8>(), 0..200),
        ethertypes in prop::collection::vec(prop::sample::select(vec![0x0800u16, 0x86dd, 0x8100, 0x88a8]), 3),
    ) {
        for (at, ethertype) in [12, 16, 20].into_iter().zip(ethertypes) {
            if let Some(field) = frame.get_mut(at..at + 2) {
                field.copy_from_slice(&ethertype.to_be_bytes());
            }
        }
        for end in 0..frame.len() {
            let part = &frame[..end];
            let _ = (frame::destination(part), frame::source(part), frame::tag(part), frame::payload(part));
            let _ = (frame::transport(part), frame::flow_hash(part), frame::spread(part));
        }
    }
}
