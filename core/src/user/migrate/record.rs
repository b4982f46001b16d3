//! The state of a network's flows as it goes from one engine to another: records of fields, one behind the other.
//!
//! Numbers are big-endian, an address is 16 bytes (IPv4 as ::ffff:a.b.c.d), bytes and lists come behind their length in four
//! bytes, what may be missing behind a byte that says whether it is there. What is around it (magic, version, checksum) is
//! Python's (shardnet/migration.py). It comes from outside: a length is believed only as far as there are bytes, so nothing
//! makes room for what is not there, and what the fields mean together is checked by who takes them (check.rs).

use std::net::Ipv6Addr;

use crate::user::flows::Endpoint;
use crate::user::wire::Mac;

/// What is written and read.
pub trait Field: Sized {
    fn put(&self, out: &mut Vec<u8>);
    /// Read one from the front; None where it is not there.
    fn take(from: &mut &[u8]) -> Option<Self>;
}

fn split<'a>(from: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (front, rest) = from.split_at_checked(len)?;
    *from = rest;
    Some(front)
}

macro_rules! number {
    ($($kind:ty),*) => {$(
        impl Field for $kind {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }

            fn take(from: &mut &[u8]) -> Option<$kind> {
                Some(<$kind>::from_be_bytes(split(from, size_of::<$kind>())?.try_into().ok()?))
            }
        }
    )*};
}

number!(u8, u16, u32, u64);

impl Field for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn take(from: &mut &[u8]) -> Option<bool> {
        match u8::take(from)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl Field for Ipv6Addr {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.octets());
    }

    fn take(from: &mut &[u8]) -> Option<Ipv6Addr> {
        let bytes: [u8; 16] = split(from, 16)?.try_into().ok()?;
        Some(bytes.into())
    }
}

impl Field for Mac {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn take(from: &mut &[u8]) -> Option<Mac> {
        split(from, 6)?.try_into().ok()
    }
}

/// A run of payload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Field for Bytes {
    fn put(&self, out: &mut Vec<u8>) {
        (self.0.len() as u32).put(out);
        out.extend_from_slice(&self.0);
    }

    fn take(from: &mut &[u8]) -> Option<Bytes> {
        let len = u32::take(from)? as usize;
        Some(Bytes(split(from, len)?.to_vec()))
    }
}

impl<T: Field> Field for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn take(from: &mut &[u8]) -> Option<Option<T>> {
        if bool::take(from)? { T::take(from).map(Some) } else { Some(None) }
    }
}

impl<T: Field> Field for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        self.iter().for_each(|value| value.put(out));
    }

    fn take(from: &mut &[u8]) -> Option<Vec<T>> {
        let mut found = Vec::new();
        for _ in 0..u32::take(from)? {
            found.push(T::take(from)?); // ends with the bytes, since no record is empty
        }
        Some(found)
    }
}

/// A structure that is written field by field, in their order here.
macro_rules! record {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$about:meta])* pub $field:ident: $kind:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $($(#[$about])* pub $field: $kind,)* }

        impl Field for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $(self.$field.put(out);)*
            }

            fn take(from: &mut &[u8]) -> Option<$name> {
                Some($name { $($field: Field::take(from)?,)* })
            }
        }
    )*};
}

record! {
    /// All that one engine has.
    pub struct State {
        pub v4: Option<Net>,
        pub v6: Option<Net>,
        pub tcp: Vec<Flow>,
        pub udp: Vec<Mapping>,
        /// Connections that cannot go: they are reset, their guests by who takes the others over.
        pub lost: Vec<Lost>,
        pub neighbours: Vec<Neighbour>,
    }

    /// A network of guests: they find the same one at the other end.
    pub struct Net {
        pub net: Ipv6Addr,
        /// Of the 128 bits.
        pub prefix: u8,
        pub host: Ipv6Addr,
    }

    pub struct Neighbour {
        pub ip: Ipv6Addr,
        pub mac: Mac,
    }

    pub struct Lost {
        pub guest: Endpoint,
        pub far: Endpoint,
        pub mac: Mac,
        pub snd_nxt: u32,
        pub rcv_nxt: u32,
    }

    /// A TCP flow as the engine knows it; names and meanings are those of `tcp::Tcp`.
    pub struct Flow {
        pub guest: Endpoint,
        pub far: Endpoint,
        pub mac: Mac,
        pub owner: Mac,
        /// One of `mod state`.
        pub state: u8,
        pub flags: u32,
        pub irs: u32,
        pub rcv_nxt: u32,
        pub pending: u32,
        pub rcv_edge: u32,
        pub snd_una: u32,
        pub snd_nxt: u32,
        pub wnd: u32,
        pub wnd_most: u32,
        pub wnd_seq: u32,
        pub wnd_ack: u32,
        pub shift: u8,
        pub mss: u16,
        pub srtt_ms: u32,
        pub rttvar_ms: u32,
        pub rto_ms: u32,
        pub bytes_in: u64,
        pub bytes_out: u64,
        pub age_ms: u64,
        pub idle_ms: u64,
        pub resent: u32,
        pub inward: u32,
        pub held: Vec<Part>,
        pub fin: Option<u32>,
        /// None of a flow that is over, and of one whose socket comes along.
        pub socket: Option<Connection>,
        /// Which of the descriptors that come with this state is its socket.
        pub handed: Option<u32>,
    }

    /// What a guest sent that is not in the socket.
    pub struct Part {
        pub seq: u32,
        pub bytes: Bytes,
    }

    /// A connection as the kernel knows it (tcp(7), TCP_REPAIR).
    pub struct Connection {
        pub local: Endpoint,
        pub peer: Endpoint,
        /// The oldest byte that the far end has not acknowledged; an end of ours that it has acknowledged counts as one that it has not.
        pub snd_seq: u32,
        /// The oldest byte of `received`.
        pub rcv_seq: u32,
        /// Was sent, and is not acknowledged.
        pub sent: Bytes,
        pub unsent: Bytes,
        /// Came, was acknowledged, and was not taken out.
        pub received: Bytes,
        /// Our end: one of `mod end`.
        pub end: u8,
        pub window: Window,
        pub mss: u32,
        pub snd_scale: u8,
        pub rcv_scale: u8,
        /// TCPI_OPT_* of linux/tcp.h.
        pub options: u8,
        pub timestamp: u32,
        pub send_buffer: u32,
        pub receive_buffer: u32,
    }

    /// struct tcp_repair_window of linux/tcp.h.
    pub struct Window {
        pub snd_wl1: u32,
        pub snd_wnd: u32,
        pub max_window: u32,
        pub rcv_wnd: u32,
        pub rcv_wup: u32,
    }

    /// A guest's port of UDP, and the port of the host's that stands for it.
    pub struct Mapping {
        pub guest: Endpoint,
        pub mac: Mac,
        pub owner: Mac,
        pub answered: bool,
        pub age_ms: u64,
        pub idle_ms: u64,
        pub local: Endpoint,
        pub far: Option<Endpoint>,
        pub from_guest: u64,
        pub to_guest: u64,
        pub datagrams_to_guest: u64,
        pub handed: Option<u32>,
    }
}

/// `Flow::state`.
pub mod state {
    pub const ANSWERED: u8 = 0;
    pub const CALLING: u8 = 1;
    pub const OPEN: u8 = 2;
    pub const RESTING: u8 = 3;
}

/// `Connection::end`.
pub mod end {
    pub const NONE: u8 = 0;
    pub const SENT: u8 = 1;
    pub const UNSENT: u8 = 2;
}

impl Field for Endpoint {
    fn put(&self, out: &mut Vec<u8>) {
        self.ip.put(out);
        self.port.put(out);
    }

    fn take(from: &mut &[u8]) -> Option<Endpoint> {
        Some(Endpoint { ip: Field::take(from)?, port: Field::take(from)? })
    }
}

impl State {
    pub fn written(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.put(&mut out);
        out
    }

    /// None where it is cut, goes on too long, or says what cannot be.
    pub fn read(mut bytes: &[u8]) -> Option<State> {
        let state = State::take(&mut bytes)?;
        bytes.is_empty().then_some(state)
    }
}
