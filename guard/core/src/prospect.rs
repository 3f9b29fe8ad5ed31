//! What a bind of either kind would meet now, and until when.
//!
//! A socket table is no proof that a bind would succeed, so what it says is an
//! expectation; where a bind probe answered, its answer stands.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::conflict::{Conflict, conflict};
use crate::model::{BindOutcome, BindSpec, Socket, TcpState};

/// What would come of a bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Expected {
    /// Nobody is in its way.
    Success,
    /// Somebody is in its way unless both set `SO_REUSEADDR`, which is not to be seen; or, with
    /// nobody in its way, somebody may be whom the table does not show.
    Unclear,
    /// `EADDRINUSE`.
    Failure,
}

/// What a bind of one kind would meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prospect {
    /// How it would bind.
    pub spec: BindSpec,
    /// What would come of it.
    pub expected: Expected,
    /// How many sockets are in its way, by state. Empty with [`Expected::Failure`]:
    /// nobody is to be seen.
    pub blockers: BTreeMap<TcpState, usize>,
    /// When all of them will have gone by themselves, counted from the look.
    pub clears: Option<Duration>,
    /// A bind probe said so.
    pub proven: bool,
}

impl Prospect {
    fn of(spec: BindSpec, sockets: &[Socket]) -> Self {
        let conflicts: Vec<(Conflict, &Socket)> =
            sockets.iter().map(|socket| (conflict(&spec, socket), socket)).collect();
        let worst = conflicts.iter().map(|(conflict, _)| *conflict).max().unwrap_or(Conflict::None);
        let expected = match worst {
            Conflict::None => Expected::Success,
            Conflict::Possible => Expected::Unclear,
            Conflict::Certain => Expected::Failure,
        };
        let mut blockers = BTreeMap::new();
        let mut expiries = Vec::new();
        for (_, socket) in
            conflicts.iter().filter(|(conflict, _)| *conflict == worst && worst > Conflict::None)
        {
            *blockers.entry(socket.state).or_default() += 1;
            expiries.push(socket.expires);
        }
        let clears = expiries.into_iter().collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max());
        Self { spec, expected, blockers, clears, proven: false }
    }

    /// The table it was read off shows no sockets that are bound and do not listen: nobody to be
    /// seen is no reason to expect success.
    pub fn doubt_what_is_not_listed(&mut self) {
        if !self.proven && self.expected == Expected::Success {
            self.expected = Expected::Unclear;
        }
    }

    /// Takes in what the kernel said to a probe. It is the truth about its own
    /// kind; and whoever sets `SO_REUSEADDR` may bind wherever one without it may.
    fn settle(&mut self, probed: &BindSpec, outcome: &BindOutcome) {
        let (ours, theirs) = (self.spec.reuse_address, probed.reuse_address);
        match outcome {
            BindOutcome::Bindable if ours >= theirs => {
                self.expected = Expected::Success;
                self.blockers.clear();
                self.clears = None;
                self.proven = true;
            }
            BindOutcome::InUse if ours <= theirs => {
                self.expected = Expected::Failure;
                self.proven = true;
            }
            _ => {}
        }
    }
}

/// What binds of `endpoint`'s address would meet: with `SO_REUSEADDR`, and without.
pub fn prospects(endpoint: &BindSpec, sockets: &[Socket]) -> [Prospect; 2] {
    [true, false].map(|reuse_address| Prospect::of(BindSpec { reuse_address, ..*endpoint }, sockets))
}

/// As [`prospects`] said, corrected by a probe of `endpoint`.
pub fn settled(mut prospects: [Prospect; 2], endpoint: &BindSpec, outcome: &BindOutcome) -> [Prospect; 2] {
    for prospect in &mut prospects {
        prospect.settle(endpoint, outcome);
    }
    prospects
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Port, Uid};

    fn endpoint() -> BindSpec {
        BindSpec::reusable([127, 0, 0, 1].into(), Port::new(18789).expect("not zero"))
    }

    fn socket(state: TcpState, expires: Option<u64>) -> Socket {
        Socket {
            address: endpoint().address,
            mapped: false,
            port: endpoint().port,
            remote: None,
            v6only: None,
            device: 0,
            state,
            uid: Uid(0),
            inode: None,
            cookie: None,
            expires: expires.map(Duration::from_secs),
            reuse_address: None,
            reuse_port: None,
            accept_queue: None,
            backlog: None,
        }
    }

    fn counts(prospect: &Prospect) -> Vec<(TcpState, usize)> {
        prospect.blockers.iter().map(|(&state, &count)| (state, count)).collect()
    }

    #[test]
    fn nobody_hinders_nobody() {
        let [reusing, strict] = prospects(&endpoint(), &[]);
        assert_eq!((reusing.expected, strict.expected), (Expected::Success, Expected::Success));
        assert_eq!((reusing.clears, strict.clears), (None, None));
    }

    #[test]
    fn time_wait_blocks_a_strict_bind_until_the_last_has_expired() {
        let sockets = [12, 41, 7].map(|left| socket(TcpState::TimeWait, Some(left)));
        let [reusing, strict] = prospects(&endpoint(), &sockets);
        assert_eq!(reusing.expected, Expected::Unclear, "the listener's flag is not to be seen");
        assert_eq!(strict.expected, Expected::Failure);
        assert_eq!(counts(&strict), [(TcpState::TimeWait, 3)]);
        assert_eq!(strict.clears, Some(Duration::from_secs(41)));
        let [reusing, strict] = settled([reusing, strict], &endpoint(), &BindOutcome::Bindable);
        assert_eq!((reusing.expected, strict.expected), (Expected::Success, Expected::Failure));
        assert!(reusing.blockers.is_empty());
    }

    #[test]
    fn what_does_not_go_by_itself_has_no_end() {
        let sockets = [socket(TcpState::TimeWait, Some(3)), socket(TcpState::Established, None)];
        let [_, strict] = prospects(&endpoint(), &sockets);
        assert_eq!(counts(&strict), [(TcpState::Established, 1), (TcpState::TimeWait, 1)]);
        assert_eq!(strict.clears, None);
    }

    #[test]
    fn a_listener_is_the_only_one_to_blame_for_a_reusing_bind() {
        let sockets = [socket(TcpState::TimeWait, Some(3)), socket(TcpState::Listen, None)];
        let [reusing, strict] = prospects(&endpoint(), &sockets);
        assert_eq!(counts(&reusing), [(TcpState::Listen, 1)]);
        assert_eq!(counts(&strict), [(TcpState::TimeWait, 1), (TcpState::Listen, 1)]);
    }

    /// Before Linux 6.8 the table shows no bound-only sockets.
    #[test]
    fn a_strict_bind_is_not_foretold_to_succeed_where_its_blocker_would_not_be_listed() {
        let probed = settled(prospects(&endpoint(), &[]), &endpoint(), &BindOutcome::Bindable);
        let [reusing, strict] = probed.map(|mut prospect| {
            prospect.doubt_what_is_not_listed();
            prospect.expected
        });
        assert_eq!((reusing, strict), (Expected::Success, Expected::Unclear));
    }

    #[test]
    fn a_probe_of_one_kind_settles_what_it_can_of_the_other() {
        let both = || prospects(&endpoint(), &[]);
        let strict = BindSpec { reuse_address: false, ..endpoint() };
        let expected = |settled: [Prospect; 2]| settled.map(|prospect| prospect.expected);
        let in_use = BindOutcome::InUse;
        assert_eq!(expected(settled(both(), &endpoint(), &in_use)), [Expected::Failure; 2]);
        assert_eq!(expected(settled(both(), &strict, &in_use)), [Expected::Success, Expected::Failure]);
        let waiting = prospects(&endpoint(), &[socket(TcpState::TimeWait, Some(3))]);
        assert_eq!(expected(settled(waiting, &strict, &BindOutcome::Bindable)), [Expected::Success; 2]);
    }
}
