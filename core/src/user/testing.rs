//! What the tests of the user-mode network share.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::config::{Config, Loopback, Subnet};

/// QEMU's addresses, nothing forwarded, nothing forbidden.
pub fn config() -> Config {
    let v4 = |d: u8| Ipv4Addr::new(10, 0, 2, d).to_ipv6_mapped();
    let v6 = |last: u16| Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, last);
    Config {
        v4: Some(Subnet { net: v4(0), prefix: 120, host: v4(2), outbound: None }),
        v6: Some(Subnet { net: v6(0), prefix: 64, host: v6(2), outbound: None }),
        mtu: 0,
        restrict: false,
        loopback: Loopback::All,
        interface: String::new(),
        max_flows: 65_536,
        resolvers: Vec::new(),
        guestfwd: Vec::new(),
        handed: Vec::new(),
        service: None,
    }
}
