//! Many flows at once, and a guest that wants more than its share.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use _core::user::Config;

use crate::datagrams::datagram;
use crate::{ACK, Exchange, RST, SYN, Seen, config, exchange_of};

/// Is this a process of the test's own, in which descriptors and memory can be counted? If not, run the test in one.
fn is_alone(test: &str) -> bool {
    if std::env::var_os("ALONE").is_some() {
        return true;
    }
    let name = format!("crowd::{test}");
    let words = [name.as_str(), "--exact", "--include-ignored", "--nocapture"];
    let ran = Command::new(std::env::current_exe().unwrap()).args(words).env("ALONE", "on").status().unwrap();
    assert!(ran.success(), "{test} in a process of its own: {ran}");
    false
}

#[test]
fn a_guest_over_its_cap_is_refused_and_another_is_not() {
    let mut exchange = exchange_of(Config { max_flows: 64, ..config() });
    let mut held = Vec::new();
    for port in 0..48 {
        exchange.port = 42_000 + port;
        held.push(exchange.opens());
    }
    exchange.port = 43_000;
    exchange.say(SYN, &[]);
    assert_eq!(exchange.hears().flags & RST, RST);
    exchange.guest = 16;
    held.push(exchange.opens());
    assert_eq!(held.len(), 49);
}

/// An echo server in a process of its own, which has its own descriptors.
const ECHO: &str = "
import resource, selectors, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
ready = selectors.EpollSelector()
listeners = [socket.create_server(('127.0.0.1', 0), backlog=4096) for _ in range(4)]
print(*(listener.getsockname()[1] for listener in listeners), flush=True)
for listener in listeners:
    ready.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in ready.select():
        if key.fileobj in listeners:
            ready.register(key.fileobj.accept()[0], selectors.EVENT_READ)
        else:
            try:
                data = key.fileobj.recv(100)
            except ConnectionResetError:
                data = b''
            if data:
                key.fileobj.send(data)
            else:
                ready.unregister(key.fileobj)
                key.fileobj.close()
";

#[test]
fn ten_thousand_flows_are_held_with_data_on_all_of_them() {
    need(11_000);
    let (_server, listeners) = server();
    let mut exchange = exchange_of(Config { max_flows: 65_536, ..config() });
    let (memory, begun) = (resident(), Instant::now());
    let flows: Vec<(u32, u32)> = (20_000..30_000)
        .map(|port| {
            (exchange.port, exchange.to) = (port, listeners[usize::from(port) % 4]);
            exchange.shakes_hands(&[2, 4, 5, 180]);
            (exchange.seq, exchange.ack)
        })
        .collect();
    eprintln!("10,000 flows: opened in {} ms, {} bytes each", begun.elapsed().as_millis(), (resident() - memory) / 10_000);
    for (port, (seq, ack)) in (20_000..).zip(&flows) {
        (exchange.port, exchange.to) = (port, listeners[usize::from(port) % 4]);
        (exchange.seq, exchange.ack) = (*seq, *ack);
        exchange.say(ACK, &port.to_be_bytes());
    }
    let mut answered = 0;
    while answered < flows.len() {
        let seen = exchange.hears_data();
        let (seq, ack) = flows[usize::from(seen.port) - 20_000];
        assert_eq!((seen.seq, seen.ack, &seen.data[..]), (ack, seq.wrapping_add(2), &seen.port.to_be_bytes()[..]));
        exchange.port = seen.port;
        exchange.to = listeners[usize::from(seen.port) % 4];
        (exchange.seq, exchange.ack) = (seq.wrapping_add(2), ack.wrapping_add(2));
        exchange.say(ACK, &[]);
        answered += 1;
    }
    eprintln!("all answered after {} ms", begun.elapsed().as_millis());
}

/// A process that goes with its test, however that ends.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Descriptors that this process has.
fn open() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Allow this process so many descriptors at least; how many it may have.
fn need(descriptors: u64) -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is readable and writable.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_max = limit.rlim_max.max(descriptors);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
    }
    assert!(limit.rlim_cur >= descriptors, "flows are descriptors, and {descriptors} are needed (ulimit -Hn)");
    limit.rlim_cur as usize
}

/// The echo server and its ports.
fn server() -> (Server, Vec<u16>) {
    let mut server = Server(Command::new("python3").args(["-c", ECHO]).stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (server, line.split_whitespace().map(|word| word.parse().unwrap()).collect())
}

/// A guest that opens `attempts` connections, and ends those that it gets after all; another opens one now and then.
fn greed(attempts: u32, max_flows: usize) {
    need(max_flows as u64 + 100);
    let (_server, listeners) = server();
    let mut exchange = exchange_of(Config { max_flows, ..config() });
    let descriptors = open();
    let (memory, begun) = (resident(), Instant::now());
    let mut flows = HashMap::new();
    let (mut refused, mut others) = (0, 0);
    let take = |exchange: &mut Exchange, seen: Seen, flows: &mut HashMap<(u16, u16), u32>, refused: &mut u32| {
        if seen.flags & RST != 0 {
            *refused += 1;
        } else if seen.flags & SYN != 0 && flows.insert((seen.port, seen.from), seen.seq.wrapping_add(1)).is_none() {
            (exchange.guest, exchange.port, exchange.to) = (15, seen.port, seen.from);
            (exchange.seq, exchange.ack) = (2, seen.seq.wrapping_add(1));
            exchange.say(ACK, &[]);
        }
    };
    for attempt in 0..attempts {
        exchange.guest = 15;
        exchange.port = 1024 + (attempt % 60_000) as u16;
        exchange.to = listeners[attempt as usize / 60_000 % listeners.len()];
        exchange.say_at(1, SYN, &[]);
        while let Some(seen) = exchange.heard() {
            take(&mut exchange, seen, &mut flows, &mut refused);
        }
        if attempt % (attempts / 20) == 0 {
            (exchange.guest, exchange.port, exchange.to, exchange.seq) = (16, 100 + others, listeners[3], 100);
            exchange.say(SYN, &[]);
            let asked = Instant::now();
            let answer = loop {
                match exchange.hears() {
                    seen if seen.port == 100 + others => break seen,
                    seen => take(&mut exchange, seen, &mut flows, &mut refused),
                }
            };
            assert_eq!(answer.flags, SYN | ACK, "the other guest after {attempt} attempts");
            assert!(asked.elapsed().as_secs() < 5);
            (exchange.guest, exchange.port, exchange.to) = (16, 100 + others, listeners[3]);
            exchange.seq = 101;
            exchange.ack = answer.seq.wrapping_add(1);
            exchange.say(RST | ACK, &[]);
            others += 1;
        }
    }
    let held = max_flows - max_flows / 4;
    let grown = resident().saturating_sub(memory);
    eprintln!(
        "{attempts} attempts in {} ms: {} flows, {refused} resets, {} descriptors, {} KiB; {others} of the other guest",
        begun.elapsed().as_millis(),
        flows.len(),
        open() - descriptors,
        grown / 1024
    );
    assert_eq!(flows.len(), held);
    assert!(open() <= descriptors + held + 1);
    for ((port, to), ack) in flows {
        (exchange.guest, exchange.port, exchange.to, exchange.seq, exchange.ack) = (15, port, to, 2, ack);
        exchange.say(RST | ACK, &[]);
    }
    assert_eq!(open(), descriptors);
}

#[test]
fn a_guest_that_opens_what_it_can_is_capped_and_another_does_not_notice() {
    if is_alone("a_guest_that_opens_what_it_can_is_capped_and_another_does_not_notice") {
        greed(10_000, 2_000);
    }
}

#[test]
#[ignore = "at the size that is promised, or as large as descriptors allow: cargo test -- --ignored --nocapture crowd"]
fn a_guest_that_opens_a_hundred_thousand_connections_is_capped() {
    if is_alone("a_guest_that_opens_a_hundred_thousand_connections_is_capped") {
        greed(100_000, 65_536.min(need(1_000) - 1_000));
    }
}

/// `count` ports of four guests, each answered; then their silence.
fn datagrams(count: u32) {
    need(u64::from(count) + 100);
    let mut exchange = exchange_of(Config { max_flows: count as usize, ..config() });
    let far = UdpSocket::bind("127.0.0.1:0").unwrap();
    far.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let to = far.local_addr().unwrap().port();
    let descriptors = open();
    let (memory, begun) = (resident(), Instant::now());
    let (mut answered, mut bytes) = (0, [0; 16]);
    for number in 0..count {
        let (guest, port) = (15 + (number % 4) as u8, 1024 + (number / 4) as u16);
        exchange.send(&datagram(guest, port, to, &number.to_be_bytes()));
        let (len, from) = far.recv_from(&mut bytes).unwrap();
        assert_eq!(bytes[..len], number.to_be_bytes());
        far.send_to(&bytes[..len], from).unwrap();
        let frame = loop {
            match exchange.frame() {
                Some(frame) if frame[12..14] == [8, 0] && frame[23] == 17 => break frame,
                _ => assert!(begun.elapsed().as_secs() < 300),
            }
        };
        assert_eq!((frame[33], &frame[36..38], &frame[42..46]), (guest, &port.to_be_bytes()[..], &number.to_be_bytes()[..]));
        answered += 1;
    }
    assert_eq!(open() - descriptors, count as usize);
    eprintln!("{answered} flows of UDP in {} ms, {} bytes each", begun.elapsed().as_millis(), (resident() - memory) / count as usize);
    exchange.send(&datagram(19, 5, to, b"one too many"));
    assert!(exchange.frame().is_none());
    assert_eq!(open() - descriptors, count as usize);
    for _ in 0..100 {
        exchange.network.turn_clock(2_000);
        while exchange.frame().is_some() {}
    }
    assert_eq!(open(), descriptors);
}

#[test]
fn thousands_of_flows_of_udp_are_held_and_forgotten() {
    if is_alone("thousands_of_flows_of_udp_are_held_and_forgotten") {
        datagrams(4_000);
    }
}

#[test]
#[ignore = "at the size that is promised, or as large as descriptors allow: cargo test -- --ignored --nocapture crowd"]
fn flows_of_udp_are_held_as_many_as_there_may_be() {
    if is_alone("flows_of_udp_are_held_as_many_as_there_may_be") {
        datagrams((65_536.min(need(1_000) - 1_000) / 4 * 4) as u32);
    }
}

#[test]
fn where_descriptors_are_few_flows_are_refused_and_nothing_else_happens() {
    let mut exchange = exchange_of(Config { sockets: 8, ..config() });
    let mut held = Vec::new();
    for port in 0..6 {
        exchange.port = 42_000 + port;
        held.push(exchange.opens());
    }
    exchange.port = 43_000;
    exchange.say(SYN, &[]);
    assert_eq!(exchange.hears().flags & RST, RST);
    exchange.guest = 16;
    held.push(exchange.opens());
    drop(held);
}
