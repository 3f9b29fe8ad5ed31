//! Which ports the kernel gives clients as source ports, and what to do when the
//! service's own is among them.
//!
//! A client that connects without a `bind()` gets any free port of
//! `net.ipv4.ip_local_port_range` that is not in `net.ipv4.ip_local_reserved_ports`.
//! Both belong to the network namespace. A port that such a client has is in the way
//! of every bind (see [`crate::conflict`]).

use std::ops::RangeInclusive;

use crate::model::Port;

/// The source ports of one network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePorts {
    /// `net.ipv4.ip_local_port_range`.
    range: RangeInclusive<u16>,
    /// `net.ipv4.ip_local_reserved_ports`.
    reserved: Vec<RangeInclusive<u16>>,
}

impl SourcePorts {
    /// From the two sysctls as the kernel prints them; `None` when it prints something else.
    pub fn parse(range: &str, reserved: &str) -> Option<Self> {
        let (first, last) = range.trim().split_once(char::is_whitespace)?;
        let range = first.parse().ok()?..=last.trim().parse().ok()?;
        let ranges = reserved.trim().split(',').filter(|part| !part.is_empty()).map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        });
        Some(Self { range, reserved: ranges.collect::<Option<_>>()? })
    }

    /// How to keep `port` for the service; `None` when no client can be given it.
    pub fn advice(&self, port: Port) -> Option<Reservation> {
        let port = port.get();
        let exposed = self.range.contains(&port) && !self.reserved.iter().any(|range| range.contains(&port));
        exposed.then(|| {
            let mut ranges = self.reserved.clone();
            ranges.push(port..=port);
            Reservation { port, range: self.range.clone(), reserved: joined(ranges) }
        })
    }
}

/// Neighbours become one range, as the kernel itself prints them.
fn joined(mut ranges: Vec<RangeInclusive<u16>>) -> Vec<RangeInclusive<u16>> {
    ranges.sort_unstable_by_key(|range| (*range.start(), *range.end()));
    let mut joined: Vec<RangeInclusive<u16>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if *range.start() <= last.end().saturating_add(1) => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// A port that any client may be given, and how to reserve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    port: u16,
    range: RangeInclusive<u16>,
    /// What is to be reserved: what is already, and the port.
    reserved: Vec<RangeInclusive<u16>>,
}

impl Reservation {
    /// What is wrong.
    pub fn finding(&self) -> String {
        format!(
            "port {} lies in net.ipv4.ip_local_port_range ({}-{}) and is not reserved, so the kernel may give it to \
             any client as its source port",
            self.port,
            self.range.start(),
            self.range.end()
        )
    }

    /// The command that reserves the port and keeps what is reserved already. It
    /// concerns the network namespace that it is run in.
    pub fn command(&self) -> String {
        format!("sysctl -w net.ipv4.ip_local_reserved_ports={}", self.list())
    }

    /// The line for a file in `/etc/sysctl.d`, which the machine applies at boot to
    /// its initial network namespace.
    pub fn line(&self) -> String {
        format!("net.ipv4.ip_local_reserved_ports = {}", self.list())
    }

    fn list(&self) -> String {
        let parts: Vec<String> = self
            .reserved
            .iter()
            .map(|range| match (range.start(), range.end()) {
                (first, last) if first == last => first.to_string(),
                (first, last) => format!("{first}-{last}"),
            })
            .collect();
        parts.join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn port(number: u16) -> Port {
        Port::new(number).expect("not zero")
    }

    fn advice(reserved: &str, number: u16) -> Option<Reservation> {
        SourcePorts::parse("32768\t60999\n", reserved).expect("as the kernel prints it").advice(port(number))
    }

    #[test]
    fn a_port_outside_of_the_range_needs_no_advice() {
        assert_eq!(advice("\n", 18789), None);
        assert_eq!(advice("\n", 61000), None);
        assert!(advice("\n", 32768).is_some() && advice("\n", 60999).is_some());
    }

    #[test]
    fn a_reserved_port_needs_no_advice() {
        assert_eq!(advice("40000\n", 40000), None);
        assert_eq!(advice("1,39990-40010,50000\n", 40000), None);
    }

    #[test]
    fn what_is_reserved_stays_reserved() {
        let advice = advice("8080,9148-9150,50000\n", 40000).expect("it is not reserved");
        assert_eq!(advice.command(), "sysctl -w net.ipv4.ip_local_reserved_ports=8080,9148-9150,40000,50000");
        assert_eq!(advice.line(), "net.ipv4.ip_local_reserved_ports = 8080,9148-9150,40000,50000");
        assert!(advice.finding().contains("port 40000 lies in net.ipv4.ip_local_port_range (32768-60999)"));
    }

    #[test]
    fn neighbours_are_joined() {
        let list = |reserved, number| advice(reserved, number).expect("it is not reserved").list();
        assert_eq!(list("39999,40001-40002\n", 40000), "39999-40002");
        assert_eq!(list("", 40000), "40000");
    }

    #[test]
    fn what_the_kernel_does_not_print_is_refused() {
        for (range, reserved) in [("", ""), ("32768", ""), ("a b", ""), ("1 2", "x"), ("1 2", "1-")] {
            assert_eq!(SourcePorts::parse(range, reserved), None, "{range:?} {reserved:?}");
        }
    }

    proptest! {
        #[test]
        fn following_the_advice_ends_it_and_loses_nothing(
            ranges in prop::collection::vec((any::<u16>(), 0..500_u16), 0..20),
            number in 32768..=60999_u16,
        ) {
            let before: Vec<String> = ranges
                .iter()
                .map(|(first, more)| format!("{first}-{}", first.saturating_add(*more)))
                .collect();
            let before = SourcePorts::parse("32768 60999", &before.join(",")).expect("well formed");
            let Some(advice) = before.advice(port(number)) else { return Ok(()) };
            let after = SourcePorts::parse("32768 60999", &advice.list()).expect("well formed");
            prop_assert_eq!(after.advice(port(number)), None);
            let reserved = |ports: &SourcePorts, port| ports.reserved.iter().any(|range| range.contains(&port));
            for other in 0..=u16::MAX {
                prop_assert_eq!(reserved(&after, other), reserved(&before, other) || other == number);
            }
        }
    }
}
