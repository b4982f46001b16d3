//! Many flows at once, and a guest that wants more than its share.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use _core::user::Config;

use crate::{ACK, RST, SYN, config, exchange_of};

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
            key.fileobj.send(key.fileobj.recv(100))
";

#[test]
fn ten_thousand_flows_are_held_with_data_on_all_of_them() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is readable and writable.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
    assert!(limit.rlim_cur >= 11_000, "10,000 flows are as many descriptors (ulimit -n)");
    let mut server = Server(Command::new("python3").args(["-c", ECHO]).stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut exchange = exchange_of(Config { max_flows: 65_536, ..config() });
    let listeners: Vec<u16> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
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
