//! A user-mode network hands frames over to a service that stands behind it, in the same worker or in another.

use std::net::{Ipv4Addr, Ipv6Addr};

use _core::user::config::{Config, Handed, Loopback, What};
use _core::user::service::Service;
use _core::user::{Answer, Network};

use super::*;

/// Ports 1 and 2 are guests; these are the network, and the service behind it.
const NETWORK: Port = 9;
const SERVICE: Port = 10;
const UDP: u8 = 17;

fn v4(d: u8) -> Ipv6Addr {
    Ipv4Addr::new(10, 0, 2, d).to_ipv6_mapped()
}

fn everybody() -> Ipv6Addr {
    Ipv4Addr::BROADCAST.to_ipv6_mapped()
}

fn config(handed: Vec<Handed>, service: Option<Service>) -> Config {
    let loopback = Loopback::Only(Vec::new());
    Config { v6: None, restrict: true, loopback, max_flows: 16, handed, service, ..testing::user_config() }
}

/// Workers of the guests 1 and 2, of the network and of the service.
struct Behind {
    lab: Lab,
    workers: [Worker; 4],
    /// What the service got.
    got: Vec<(Vec<u8>, Ipv6Addr, u16)>,
    answers: bool,
}

impl Behind {
    fn new(workers: [Worker; 4], change: impl Fn(&mut Policy)) -> Behind {
        let mut lab = Lab::with_lanes(4, 256 << 10);
        for worker in &workers[..2] {
            lab.plug_into(*worker, Wire::Tap, &change);
        }
        let mut behind = Behind { lab, workers, got: Vec::new(), answers: true };
        for (port, worker, of) in [(NETWORK, workers[2], 0), (SERVICE, workers[3], NETWORK)] {
            let mut policy = behind.lab.plugs[0].policy.clone();
            (policy.worker, policy.behind) = (worker, of);
            repair::configure_port(behind.lab.arena, port, &policy);
        }
        behind.open_network();
        behind.open_service();
        behind.settle();
        behind.lab.receive(1); // who the network is
        behind.lab.receive(2);
        behind
    }

    fn shard(&mut self, worker: Worker) -> &mut Shard {
        self.lab.shards[usize::from(worker)].as_mut().unwrap()
    }

    fn open_network(&mut self) {
        let ports = What::Ports(UDP, 67, 67);
        let handed = [v4(2), everybody()].map(|at| Handed { what: ports, at, to: SERVICE }).to_vec();
        self.shard(self.workers[2]).add_user(NETWORK, Network::new(config(handed, None)).unwrap()).unwrap();
    }

    fn open_service(&mut self) {
        let service =
            Service { udp: vec![(67, 67)], groups: Vec::new(), broadcast: true, link_local: Ipv6Addr::UNSPECIFIED, announce: false };
        self.shard(self.workers[3]).add_user(SERVICE, Network::new(config(Vec::new(), Some(service))).unwrap()).unwrap();
    }

    /// Turns until nothing moves; the service sends back what it gets.
    fn settle(&mut self) {
        let moved = |lab: &Lab| {
            let of = |port| lab.counter(port, Counter::Offered) + lab.counter(port, Counter::RxTaken);
            lab.moved() + of(NETWORK) + of(SERVICE)
        };
        let mut still = 0;
        while still < 4 {
            let before = moved(&self.lab);
            for worker in 0..4 {
                if self.lab.shards[usize::from(worker)].is_some() {
                    let news = self.lab.step(worker);
                    assert!(news.iter().all(|news| *news == News::Datagrams(SERVICE)), "{news:?}");
                    if !news.is_empty() {
                        self.serve(worker);
                    }
                }
            }
            still = if moved(&self.lab) == before { still + 1 } else { 0 };
        }
    }

    fn serve(&mut self, worker: Worker) {
        let network = self.shard(worker).network(SERVICE).unwrap();
        let come: Vec<_> = network.boxes.inbox.datagrams().map(|(one, data)| (data.to_vec(), one.peer, one.local, one.mac)).collect();
        network.boxes.inbox.clear();
        for (data, peer, local, mac) in come {
            if self.answers {
                let answer = Answer { payload: &data, peer, local, mac: Some(mac) };
                assert_eq!(self.shard(worker).answer(SERVICE, &answer), Ok(true));
            }
            self.got.push((data, local.ip, peer.port));
        }
    }

    fn counter(&self, port: Port, counter: Counter) -> u64 {
        self.lab.counter(port, counter)
    }

    /// Every frame of the two ports has met a fate.
    fn assert_closed(&self) {
        for port in [NETWORK, SERVICE] {
            let of = |counter| self.counter(port, counter);
            let out = of(Counter::TxFrames) + of(Counter::HandedOver) + self.lab.tx_drops(port);
            assert_eq!(of(Counter::Offered), out, "port {port}");
            assert_eq!(of(Counter::RxTaken), of(Counter::Forwarded) + of(Counter::Filtered) + self.lab.rx_drops(port), "port {port}");
        }
    }
}

/// Every way in which four ports lie in workers.
fn placements() -> Vec<[Worker; 4]> {
    let mut all = Vec::new();
    for code in 0..256u16 {
        let place: [Worker; 4] = std::array::from_fn(|at| (code >> (2 * at) & 3) as Worker);
        let first = |worker: Worker| place.iter().position(|&other| other == worker).unwrap();
        let is_usual = place.iter().enumerate().all(|(at, &worker)| {
            let new = first(worker) == at;
            !new || usize::from(worker) == place[..at].iter().map(|&w| usize::from(w) + 1).max().unwrap_or(0)
        });
        if is_usual {
            all.push(place);
        }
    }
    all
}

/// A datagram of guest 1 to port 67, its IP packet's fields as said.
fn datagram(to_mac: [u8; 6], source: Ipv6Addr, to: Ipv6Addr, data: &[u8]) -> Vec<u8> {
    let mut udp = vec![0, 68, 0, 67];
    udp.extend((8 + data.len() as u16).to_be_bytes());
    udp.extend([0, 0]); // no checksum
    udp.extend(data);
    packet(to_mac, source, to, &udp, 0)
}

fn packet(to_mac: [u8; 6], source: Ipv6Addr, to: Ipv6Addr, payload: &[u8], fragment: u16) -> Vec<u8> {
    let ip4 = |ip: Ipv6Addr| ip.to_ipv4_mapped().unwrap().octets();
    let mut ip = vec![0x45, 0];
    ip.extend((20 + payload.len() as u16).to_be_bytes());
    ip.extend([0, 7]);
    ip.extend(fragment.to_be_bytes());
    ip.extend([64, UDP, 0, 0]);
    ip.extend(ip4(source));
    ip.extend(ip4(to));
    let sum = _core::offload::Sum::default().bytes(&ip).checksum();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    [&to_mac[..], &mac(1), &[8, 0], &ip, payload].concat()
}

const HOST_MAC: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];

#[test]
fn what_is_for_a_service_reaches_it_wherever_it_runs_and_the_answer_comes_back() {
    for workers in placements() {
        let mut behind = Behind::new(workers, |_| {});
        behind.lab.send(1, &datagram(HOST_MAC, v4(15), v4(2), b"to the address"));
        behind.settle();
        assert_eq!(behind.got, [(b"to the address".to_vec(), v4(2), 68)], "{workers:?}");
        let back = behind.lab.receive(1);
        assert_eq!(back.len(), 1, "{workers:?}");
        assert_eq!((&back[0][..6], &back[0][6..12]), (&mac(1)[..], &HOST_MAC[..]), "{workers:?}");
        assert_eq!(&back[0][42..56], b"to the address");
        assert_eq!(behind.lab.receive(2), Vec::<Vec<u8>>::new(), "{workers:?}");
        assert_eq!(behind.counter(NETWORK, Counter::HandedOver), 1);
        assert_eq!(behind.counter(SERVICE, Counter::TxFrames), 1);
        behind.assert_closed();
    }
}

#[test]
fn a_broadcast_reaches_the_service_and_every_port_unharmed() {
    for workers in placements() {
        let mut behind = Behind::new(workers, |_| {});
        // Guest 1 has long spoken to guest 2, so its frames are read into the lane to there.
        behind.lab.send(2, &frame(2, BROADCAST));
        behind.settle();
        for _ in 0..20 {
            behind.lab.send(1, &frame(1, 2));
            behind.settle();
        }
        behind.lab.receive(1);
        behind.lab.receive(2);
        let nobody = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
        let sent = datagram([0xff; 6], nobody, everybody(), b"who am I?");
        behind.lab.send(1, &sent);
        behind.settle();
        assert_eq!(behind.lab.receive(2).first(), Some(&sent), "{workers:?}");
        assert_eq!(behind.got, [(b"who am I?".to_vec(), everybody(), 68)], "{workers:?}");
        assert_eq!(behind.lab.receive(1).len(), 1, "{workers:?}");
        behind.assert_closed();
    }
}

#[test]
fn fragments_are_put_together_before_they_are_handed_over() {
    for workers in [[0, 0, 0, 0], [0, 1, 2, 3]] {
        let mut behind = Behind::new(workers, |_| {});
        let data: Vec<u8> = (0..3000).map(|at| at as u8).collect();
        let whole = datagram(HOST_MAC, v4(15), v4(2), &data)[34..].to_vec();
        for (offset, more) in [(1480, true), (2960, false), (0, true)] {
            let piece = &whole[offset..whole.len().min(offset + 1480)];
            let place = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
            behind.lab.send(1, &packet(HOST_MAC, v4(15), v4(2), piece, place));
        }
        behind.settle();
        assert_eq!(behind.got, [(data, v4(2), 68)]);
        assert_eq!(behind.lab.receive(1).len(), 3); // cut again, for 1500 is what the network takes
        behind.assert_closed();
    }
}

#[test]
fn a_service_follows_its_network_into_a_vlan() {
    for workers in [[0, 0, 0, 0], [0, 1, 2, 3], [0, 1, 1, 0]] {
        let mut behind = Behind::new(workers, |policy| policy.vlan = Vlan::Access(7));
        behind.lab.change(1, |policy| (policy.vlan, policy.trunk) = (Vlan::Trunk { native: 0 }, vec![7]));
        behind.lab.send(1, &tagged(&datagram(HOST_MAC, v4(15), v4(2), b"tagged"), 7));
        behind.settle();
        assert_eq!(behind.got, [(b"tagged".to_vec(), v4(2), 68)], "{workers:?}");
        let back = behind.lab.receive(1);
        assert_eq!((back.len(), &back[0][12..16]), (1, &[0x81, 0, 0, 7][..]), "{workers:?}");
        behind.assert_closed();
    }
}

#[test]
fn while_the_service_is_dead_its_frames_are_counted_and_nobody_else_loses_one() {
    let mut behind = Behind::new([0, 1, 2, 3], |_| {});
    behind.answers = false;
    behind.lab.send(2, &frame(2, BROADCAST));
    behind.settle();
    behind.lab.receive(1);
    drop(behind.lab.shards[3].take());
    repair::repair(behind.lab.arena, 3);
    let (mut asked, mut through) = (0, 0);
    let big = vec![1; 1400];
    while behind.lab.drops(NETWORK, Cause::TxFull) == 0 {
        assert!(asked < 10_000, "the lane never filled");
        for _ in 0..16 {
            assert!(behind.lab.send(1, &datagram(HOST_MAC, v4(15), v4(2), &big)) && behind.lab.send(1, &frame(1, 2)));
            asked += 1;
        }
        behind.settle();
        through += behind.lab.receive(2).len();
    }
    assert_eq!(through, asked);
    behind.assert_closed();
    behind.lab.shards[3] = Some(Shard::new(behind.lab.arena, 3, behind.lab.bells.clone()).unwrap());
    behind.open_service();
    behind.settle();
    let kept = behind.counter(NETWORK, Counter::HandedOver) as usize;
    assert_eq!((behind.got.len(), kept + behind.lab.drops(NETWORK, Cause::TxFull) as usize), (kept, asked));
    behind.assert_closed();
}

#[test]
fn a_companion_has_no_address_of_its_own_in_the_table_and_is_flooded_nothing() {
    let mut behind = Behind::new([0, 1, 2, 3], |_| {});
    behind.lab.send(1, &datagram(HOST_MAC, v4(15), v4(2), b"hello"));
    behind.settle();
    behind.lab.send(1, &frame(1, BROADCAST));
    behind.lab.send(1, &frame(1, 77));
    behind.settle();
    assert_eq!(behind.counter(SERVICE, Counter::Offered), 1);
    let owners: Vec<Port> = behind.lab.arena.table(0).stations(repair::clock(behind.lab.arena, 0)).map(|station| station.port).collect();
    assert!(owners.contains(&NETWORK) && !owners.contains(&SERVICE), "{owners:?}");
}
