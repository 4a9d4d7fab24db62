//! Addresses that the agent never dials.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Why an address is forbidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// `0.0.0.0/8`, `::`: this machine, on many systems.
    Unspecified,
    /// `127.0.0.0/8`, `::1`.
    Loopback,
    /// `169.254.0.0/16`, `fe80::/10`, `fec0::/10`.
    LinkLocal,
    /// Instance metadata and the other services that AWS gives each instance.
    Metadata,
    /// `224.0.0.0/4`, `ff00::/8`.
    Multicast,
    /// `255.255.255.255`.
    Broadcast,
    /// `240.0.0.0/4`, `100::/64`: reserved, nobody's.
    Reserved,
    /// An address of this machine, or one that leads to it.
    Own,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "it is no host's address",
            Self::Loopback => "it is a loopback address",
            Self::LinkLocal => "it is a link-local address",
            Self::Metadata => "instance metadata and its neighbours live there",
            Self::Multicast => "it is a multicast address",
            Self::Broadcast => "it is the broadcast address",
            Self::Reserved => "it is reserved",
            Self::Own => "it is the agent's own",
        })
    }
}

/// The rule that forbids an address, be it in the address itself or in an IPv4 address that it
/// carries. An error when it cannot be told.
pub(super) fn forbids(ip: IpAddr) -> io::Result<Option<Rule>> {
    let all: Vec<_> = std::iter::once(ip).chain(carried(ip)).collect();
    let rule = all.iter().find_map(|ip| match ip {
        IpAddr::V4(ip) => forbids_v4(*ip),
        IpAddr::V6(ip) => forbids_v6(*ip),
    });
    if rule.is_some() {
        return Ok(rule);
    }
    for ip in all {
        if is_own(ip)? {
            return Ok(Some(Rule::Own));
        }
    }
    Ok(None)
}

fn forbids_v4(ip: Ipv4Addr) -> Option<Rule> {
    match ip.octets() {
        [0, ..] => Some(Rule::Unspecified),
        [127, ..] => Some(Rule::Loopback),
        // IMDS; container credentials; pod identity; time; DNS.
        [169, 254, 169, 254 | 253 | 123] | [169, 254, 170, 2 | 23] => Some(Rule::Metadata),
        [169, 254, ..] => Some(Rule::LinkLocal),
        [255, 255, 255, 255] => Some(Rule::Broadcast),
        [224..=239, ..] => Some(Rule::Multicast),
        [240..=255, ..] => Some(Rule::Reserved),
        _ => None,
    }
}

fn forbids_v6(ip: Ipv6Addr) -> Option<Rule> {
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some(Rule::Unspecified),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some(Rule::Loopback),
        // fd00:ec2::/32: IMDS is ::254, DNS ::253, time ::123, pod identity ::23.
        [0xfd00, 0x0ec2, ..] => Some(Rule::Metadata),
        [0xfe80..=0xfeff, ..] => Some(Rule::LinkLocal),
        [0xff00..=0xffff, ..] => Some(Rule::Multicast),
        [0x0100, 0, 0, 0, ..] => Some(Rule::Reserved),
        _ => None,
    }
}

/// The IPv4 addresses that an IPv6 address carries: a gateway on the way may unpack them.
fn carried(ip: IpAddr) -> Vec<IpAddr> {
    let IpAddr::V6(ip) = ip else {
        return Vec::new();
    };
    let s = ip.segments();
    let v4 = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    let mut found = Vec::new();
    match s {
        // Mapped (::ffff:a.b.c.d), translated (::ffff:0:a.b.c.d), compatible (::a.b.c.d).
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0, 0, 0, 0, 0, 0, high, low] => found.push(v4(high, low)),
        // NAT64, RFC 6052: the well-known prefix.
        [0x0064, 0xff9b, 0, 0, 0, 0, high, low] => found.push(v4(high, low)),
        // NAT64, RFC 8215: local prefixes, with the address at any of RFC 6052's places.
        [0x0064, 0xff9b, 1, d, e, f, high, low] => {
            let [_, e_low] = e.to_be_bytes();
            let [f_high, f_low] = f.to_be_bytes();
            let [d_high, d_low] = d.to_be_bytes();
            let [h_high, _] = high.to_be_bytes();
            let places = [
                Ipv4Addr::new(d_high, d_low, e_low, f_high),
                Ipv4Addr::new(d_low, e_low, f_high, f_low),
                Ipv4Addr::new(e_low, f_high, f_low, h_high),
                v4(high, low),
            ];
            // What starts with a zero is padding of another form.
            found.extend(places.into_iter().filter(|ip| ip.octets()[0] != 0));
            if found.is_empty() {
                found.push(v4(high, low));
            }
        }
        // 6to4, RFC 3056.
        [0x2002, high, low, ..] => found.push(v4(high, low)),
        // Teredo, RFC 4380: the server, and the client with its bits turned.
        [0x2001, 0, server_high, server_low, _, _, high, low] => {
            found.push(v4(server_high, server_low));
            found.push(v4(!high, !low));
        }
        // ISATAP, RFC 5214, under any prefix.
        [_, _, _, _, 0 | 0x0200, 0x5efe, high, low] => found.push(v4(high, low)),
        _ => {}
    }
    found.into_iter().map(IpAddr::V4).collect()
}

/// Whether an address belongs to this machine now. Asks the kernel, which knows also addresses
/// that came after the start; an error when it does not say.
pub(super) fn is_own(ip: IpAddr) -> io::Result<bool> {
    if routes_to_itself(ip) {
        return Ok(true);
    }
    // With ip_nonlocal_bind every address can be bound, and that says nothing.
    let nobodys = match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    };
    Ok(can_bind(ip)? && !can_bind(nobodys)?)
}

/// A packet to one's own address leaves from that address. Nothing is sent: connecting UDP only
/// asks for the route.
fn routes_to_itself(ip: IpAddr) -> bool {
    let unspecified = match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let source = UdpSocket::bind(SocketAddr::new(unspecified, 0)).and_then(|socket| {
        socket.connect(SocketAddr::new(ip, DISCARD))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == ip)
}

fn can_bind(ip: IpAddr) -> io::Result<bool> {
    match UdpSocket::bind(SocketAddr::new(ip, 0)) {
        Ok(_) => Ok(true),
        // Not of this machine; or a machine without IPv6, which has no such address either.
        Err(error)
            if error.kind() == io::ErrorKind::AddrNotAvailable
                || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// The discard port: the number does not matter.
const DISCARD: u16 = 9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_lead_nowhere_good_are_forbidden_in_every_form() {
        let rows = [
            ("0.0.0.0", Rule::Unspecified),
            ("0.1.2.3", Rule::Unspecified),
            ("127.0.0.1", Rule::Loopback),
            ("127.255.255.254", Rule::Loopback),
            ("169.254.169.254", Rule::Metadata),
            ("169.254.170.2", Rule::Metadata),
            ("169.254.169.253", Rule::Metadata),
            ("169.254.169.123", Rule::Metadata),
            ("169.254.1.1", Rule::LinkLocal),
            ("224.0.0.1", Rule::Multicast),
            ("239.255.255.255", Rule::Multicast),
            ("255.255.255.255", Rule::Broadcast),
            ("240.0.0.1", Rule::Reserved),
            ("::", Rule::Unspecified),
            ("::1", Rule::Loopback),
            ("fe80::1", Rule::LinkLocal),
            ("febf::1", Rule::LinkLocal),
            ("fec0::1", Rule::LinkLocal),
            ("fd00:ec2::254", Rule::Metadata),
            ("fd00:ec2::23", Rule::Metadata),
            ("ff02::1", Rule::Multicast),
            ("100::1", Rule::Reserved),
            ("::ffff:127.0.0.1", Rule::Loopback),
            ("::ffff:169.254.169.254", Rule::Metadata),
            ("::ffff:0:127.0.0.1", Rule::Loopback),
            ("::127.0.0.1", Rule::Loopback),
            ("::169.254.169.254", Rule::Metadata),
            ("64:ff9b::127.0.0.1", Rule::Loopback),
            ("64:ff9b::a9fe:a9fe", Rule::Metadata),
            ("64:ff9b:1::169.254.169.254", Rule::Metadata),
            // The forms for prefixes of 48, 56 and 64 bits.
            ("64:ff9b:1:a9fe:a9:fe00::", Rule::Metadata),
            ("64:ff9b:1:00a9:fe:a9fe::", Rule::Metadata),
            ("64:ff9b:1:0:a9:fea9:fe00:0", Rule::Metadata),
            ("2002:7f00:1::1", Rule::Loopback),
            ("2002:a9fe:a9fe::", Rule::Metadata),
            ("2001:0:a9fe:a9fe::1", Rule::Metadata),
            ("2001:0:5db8:d822:0:0:80ff:fffe", Rule::Loopback),
            ("2001:db8::5efe:127.0.0.1", Rule::Loopback),
            ("2001:db8::200:5efe:127.0.0.1", Rule::Loopback),
        ];
        for (ip, rule) in rows {
            assert_eq!(forbids(ip.parse().unwrap()).unwrap(), Some(rule), "{ip}");
        }
    }

    #[test]
    fn private_and_public_hosts_are_not_forbidden() {
        for ip in [
            "10.0.0.1",
            "172.31.255.1",
            "192.168.1.1",
            "100.64.0.1",
            "198.51.100.7",
            "fd12:3456::1",
            "2001:db8::7",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::10.0.0.1",
            "169.253.1.1",
        ] {
            assert_eq!(forbids(ip.parse().unwrap()).unwrap(), None, "{ip}");
        }
    }

    #[test]
    fn an_address_of_this_machine_is_its_own() {
        assert!(is_own("127.0.0.1".parse().unwrap()).unwrap());
        assert!(!is_own("192.0.2.77".parse().unwrap()).unwrap());
        assert!(!is_own("2001:db8::77".parse().unwrap()).unwrap());
        // The address that this machine has in its network, where it is in one.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        if socket.connect("192.0.2.1:9").is_ok() {
            let own = socket.local_addr().unwrap().ip();
            assert!(is_own(own).unwrap(), "{own}");
            if !own.is_loopback() {
                assert_eq!(forbids(own).unwrap(), Some(Rule::Own));
            }
        }
    }
}
