//! Counters, as OpenMetrics text.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use crate::report::Body;

/// Upper bounds of the buckets, in seconds: from a gate's latency to a drain budget.
const BOUNDS: [f64; 16] = [
    25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 50e-3, 100e-3, 500e-3, 1.0, 5.0, 10.0,
    60.0,
];

#[derive(Clone, Debug, Default)]
struct Histogram {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn add(&mut self, seconds: f64) {
        for (bucket, bound) in self.buckets.iter_mut().zip(BOUNDS) {
            *bucket += u64::from(seconds <= bound);
        }
        self.count += 1;
        self.sum += seconds;
    }
}

/// What is counted. Labels are names from the configuration and fixed words.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    runs: BTreeMap<(Arc<str>, &'static str, &'static str), u64>,
    release: BTreeMap<&'static str, Histogram>,
    steps: BTreeMap<&'static str, Histogram>,
    signals: BTreeMap<(Arc<str>, &'static str), u64>,
    bind_failures: BTreeMap<Arc<str>, u64>,
    lost: u64,
    pub(super) lagged: u64,
    /// Events that the hub could not take in time.
    pub(super) overrun: u64,
    pub(super) refused: u64,
    /// When a process was last sent a signal, by run and PID.
    pending: BTreeMap<(u64, u32), (&'static str, u64)>,
}

/// A gauge's value for one service.
pub(super) struct ServiceGauge<'a> {
    pub(super) name: &'a str,
    pub(super) verdict: &'a str,
    pub(super) tier: &'a str,
}

impl Metrics {
    /// Takes an event into account.
    pub(super) fn count(
        &mut self,
        service: Option<&Arc<str>>,
        run: Option<(u64, &'static str)>,
        mono_ns: u64,
        body: &Body,
    ) {
        match body {
            Body::RunFinished { outcome, .. } => {
                if let (Some(service), Some((number, command))) = (service, run) {
                    *self.runs.entry((Arc::clone(service), command, outcome)).or_default() += 1;
                    self.pending.retain(|(of, _), _| *of != number);
                }
            }
            Body::GateOpened { release_latency_us: Some(micros), tier, .. } => {
                self.release.entry(tier).or_default().add(micros / 1e6);
            }
            Body::SignalSent { pid, signal, .. } => {
                if let Some(service) = service {
                    *self.signals.entry((Arc::clone(service), signal)).or_default() += 1;
                }
                if let Some((number, _)) = run {
                    self.pending.insert((number, *pid), (signal, mono_ns));
                }
            }
            Body::OwnerExited { pid, .. } => {
                let sent = run.and_then(|(number, _)| self.pending.remove(&(number, *pid)));
                if let Some((signal, at)) = sent {
                    let nanos = mono_ns.saturating_sub(at);
                    self.steps
                        .entry(signal)
                        .or_default()
                        .add(std::time::Duration::from_nanos(nanos).as_secs_f64());
                }
            }
            Body::BindFailed(failed) => {
                if let Some(service) = service {
                    *self.bind_failures.entry(Arc::clone(service)).or_default() += failed.counted();
                }
            }
            // Each run tells of it too.
            Body::EventsLost { count } if run.is_none() => self.lost += count,
            _ => {}
        }
    }

    /// The text of `GET /metrics`, about the services that the reader may see.
    pub(super) fn text(&self, services: &[ServiceGauge<'_>], clients: usize, sees_all: bool) -> String {
        let mut out = String::new();
        let seen = |name: &str| services.iter().any(|service| service.name == name);
        family(&mut out, "portguard_runs", "counter", "Runs that ended, by command and outcome.");
        for ((service, command, outcome), count) in self.runs.iter().filter(|((name, ..), _)| seen(name)) {
            line(
                &mut out,
                "portguard_runs_total",
                &[("service", service), ("command", command), ("outcome", outcome)],
                count,
            );
        }
        family(&mut out, "portguard_signals", "counter", "Signals that were sent.");
        for ((service, signal), count) in self.signals.iter().filter(|((name, _), _)| seen(name)) {
            line(&mut out, "portguard_signals_total", &[("service", service), ("signal", signal)], count);
        }
        let help = "Binds of others that failed because the port was in use, as far as the tier shows them.";
        family(&mut out, "portguard_bind_failures", "counter", help);
        for (service, count) in self.bind_failures.iter().filter(|(name, _)| seen(name)) {
            line(&mut out, "portguard_bind_failures_total", &[("service", service)], count);
        }
        family(&mut out, "portguard_verdict", "stateset", "What the last look said of the service.");
        for service in services {
            for verdict in ["free", "busy", "unknown"] {
                let labels = [("service", service.name), ("portguard_verdict", verdict)];
                line(&mut out, "portguard_verdict", &labels, &u8::from(service.verdict == verdict));
            }
        }
        family(&mut out, "portguard_tier", "stateset", "Where facts about the service come from.");
        for service in services {
            for tier in ["ebpf", "netlink", "poll"] {
                let labels = [("service", service.name), ("portguard_tier", tier)];
                line(&mut out, "portguard_tier", &labels, &u8::from(service.tier == tier));
            }
        }
        if sees_all {
            family(
                &mut out,
                "portguard_release_latency_seconds",
                "histogram",
                "From the kernel's last event about a port's release to the open gate.",
            );
            for (tier, histogram) in &self.release {
                buckets(&mut out, "portguard_release_latency_seconds", ("tier", tier), histogram);
            }
            family(
                &mut out,
                "portguard_step_seconds",
                "histogram",
                "From the last signal to a process until its exit.",
            );
            for (signal, histogram) in &self.steps {
                buckets(&mut out, "portguard_step_seconds", ("signal", signal), histogram);
            }
            for (name, help, value) in [
                ("portguard_events_lost", "Kernel events that were lost.", self.lost),
                ("portguard_events_overrun", "Events that the hub could not take in time.", self.overrun),
                ("portguard_events_lagged", "Events that slow readers did not get.", self.lagged),
                ("portguard_requests_refused", "Requests and connections that were refused.", self.refused),
            ] {
                family(&mut out, name, "counter", help);
                line(&mut out, &format!("{name}_total"), &[], &value);
            }
            family(&mut out, "portguard_clients", "gauge", "Connections.");
            line(&mut out, "portguard_clients", &[], &clients);
        }
        out.push_str("# EOF\n");
        out
    }
}

fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string does not fail.
    let _infallible = write!(out, "# TYPE {name} {kind}\n# HELP {name} {help}\n");
}

fn line(out: &mut String, name: &str, labels: &[(&str, &str)], value: &dyn std::fmt::Display) {
    // A service's name needs no escaping: see the configuration's rule.
    let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
    let _infallible = if labels.is_empty() {
        writeln!(out, "{name} {value}")
    } else {
        writeln!(out, "{name}{{{}}} {value}", labels.join(","))
    };
}

fn buckets(out: &mut String, name: &str, (label, value): (&str, &str), histogram: &Histogram) {
    let bucket = format!("{name}_bucket");
    for (bound, count) in BOUNDS.iter().zip(histogram.buckets) {
        line(out, &bucket, &[(label, value), ("le", &bound.to_string())], &count);
    }
    line(out, &bucket, &[(label, value), ("le", "+Inf")], &histogram.count);
    line(out, &format!("{name}_count"), &[(label, value)], &histogram.count);
    line(out, &format!("{name}_sum"), &[(label, value)], &histogram.sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(pid: u32) -> Body {
        let status = guard_core::model::ExitStatus::Code(0);
        let id = guard_core::model::ProcessId {
            tgid: guard_core::model::Tgid(pid),
            start: guard_core::model::StartTime(1),
        };
        let entry = guard_core::timeline::Entry::Gone { process: id, status: Some(status), answered: None };
        Body::happened(&entry).expect("an event")
    }

    #[test]
    fn a_step_lasts_from_the_signal_to_the_exit() {
        let mut metrics = Metrics::default();
        let web: Arc<str> = "web".into();
        let sent =
            Body::SignalSent { pid: 9, start: 1, signal: "SIGTERM", class: "stale", reasons: Vec::new() };
        metrics.count(Some(&web), Some((1, "restart")), 1_000_000, &sent);
        metrics.count(Some(&web), Some((1, "restart")), 3_000_000, &exited(8));
        metrics.count(Some(&web), Some((1, "restart")), 3_000_000, &exited(9));
        let services = [ServiceGauge { name: "web", verdict: "busy", tier: "ebpf" }];
        let text = metrics.text(&services, 1, true);
        assert!(text.contains("portguard_step_seconds_count{signal=\"SIGTERM\"} 1\n"), "{text}");
        assert!(
            text.contains("portguard_step_seconds_bucket{signal=\"SIGTERM\",le=\"0.001\"} 0\n"),
            "{text}"
        );
        assert!(
            text.contains("portguard_step_seconds_bucket{signal=\"SIGTERM\",le=\"0.0025\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("portguard_verdict{service=\"web\",portguard_verdict=\"busy\"} 1\n"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn failed_binds_are_counted_and_probes_are_none() {
        use guard_core::model::{FailedBind, Port, Uid};
        let lost = |comm: &str, attempts| {
            let bind = FailedBind {
                address: [127, 0, 0, 1].into(),
                port: Port::new(80).expect("not zero"),
                by_listen: false,
                attempts,
                tgid: None,
                start: None,
                comm: comm.to_owned(),
                uid: Uid(0),
                cgroup: None,
                process: None,
            };
            let entry = guard_core::timeline::Entry::BindFailed {
                bind: Box::new(bind),
                holders: Vec::new(),
                looked: None,
            };
            Body::happened(&entry).expect("an event")
        };
        let mut metrics = Metrics::default();
        let web: Arc<str> = "web".into();
        for body in [lost("node", 3), lost("node", 2), lost("portguard", 40)] {
            metrics.count(Some(&web), None, 0, &body);
        }
        let services = [ServiceGauge { name: "web", verdict: "busy", tier: "ebpf" }];
        let text = metrics.text(&services, 1, true);
        assert!(text.contains("portguard_bind_failures_total{service=\"web\"} 5\n"), "{text}");
        assert!(!metrics.text(&[], 1, false).contains("bind_failures_total{"));
    }

    #[test]
    fn the_dashboard_asks_for_what_there_is() {
        let dashboard = include_str!("../../dist/grafana-dashboard.json");
        let text = Metrics::default().text(&[], 0, true);
        let names: Vec<&str> = dashboard
            .split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
            .filter(|word| word.starts_with("portguard_"))
            .collect();
        assert!(names.len() > 8, "{names:?}");
        for name in names {
            let family = name.strip_suffix("_total").or(name.strip_suffix("_bucket")).unwrap_or(name);
            assert!(text.contains(&format!("# TYPE {family} ")), "{name}");
        }
    }

    #[test]
    fn who_may_not_see_a_service_does_not_see_its_numbers() {
        let mut metrics = Metrics::default();
        let finished =
            Body::finished(std::time::Duration::ZERO, crate::runtime::Tier::Poll, "restarted", 0, None);
        metrics.count(Some(&"web".into()), Some((1, "restart")), 0, &finished);
        assert!(!metrics.text(&[], 1, false).contains("web"));
    }
}
