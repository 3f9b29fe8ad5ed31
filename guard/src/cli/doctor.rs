//! `portguard doctor`

use clap::Args;
use serde::Serialize;

use super::exit::Exit;
use super::options::OutputOptions;
use crate::kernel::bpf::{Bpf, BpfOptions};
use crate::kernel::features::{self, Answer, Feature};
use crate::runtime::Tier;

/// Rehearses every feature for real and says which tier this machine gives.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    #[command(flatten)]
    output: OutputOptions,
}

#[derive(Serialize)]
struct Report {
    v: u32,
    tier: &'static str,
    why_not_ebpf: Option<String>,
    losses: Vec<String>,
    kernel: Option<String>,
    features: Vec<FeatureBody>,
}

#[derive(Serialize)]
struct FeatureBody {
    name: &'static str,
    used_for: &'static str,
    answer: &'static str,
    because: Option<String>,
}

impl Doctor {
    pub(super) fn run(self) -> Exit {
        let report = examine();
        if self.output.json {
            match serde_json::to_string(&report) {
                Ok(line) => println!("{line}"),
                Err(error) => eprintln!("portguard: cannot write the report as JSON: {error}"),
            }
        } else {
            print(&report);
        }
        Exit::Done
    }
}

fn examine() -> Report {
    let (tier, why_not_ebpf, losses) = match Bpf::load(&BpfOptions::default()) {
        Ok(bpf) => (Tier::Ebpf, None, bpf.losses().iter().map(ToString::to_string).collect()),
        Err(error) if features::destroy_announcements().is_yes() => {
            (Tier::Netlink, Some(error.to_string()), Vec::new())
        }
        Err(error) => (Tier::Poll, Some(error.to_string()), Vec::new()),
    };
    Report {
        v: 1,
        tier: tier.name(),
        why_not_ebpf,
        losses,
        kernel: features::kernel_release(),
        features: features::all().into_iter().map(body).collect(),
    }
}

fn body(feature: Feature) -> FeatureBody {
    let (answer, because) = match feature.answer {
        Answer::Yes => ("yes", None),
        Answer::No { because } => ("no", Some(because)),
        Answer::CouldNotTell { because } => ("could_not_tell", Some(because)),
    };
    FeatureBody { name: feature.name, used_for: feature.used_for, answer, because }
}

fn print(report: &Report) {
    println!("tier: {}", report.tier);
    match &report.why_not_ebpf {
        None => println!("  the BPF programs load and attach"),
        Some(why) => println!("  no ebpf tier: {why}"),
    }
    for loss in &report.losses {
        println!("  without: {loss}");
    }
    if let Some(kernel) = &report.kernel {
        println!("kernel: {kernel}");
    }
    let width = report.features.iter().map(|feature| feature.name.len()).max().unwrap_or(0);
    for feature in &report.features {
        let answer = match feature.answer {
            "yes" => "yes".to_owned(),
            "no" => "NO".to_owned(),
            _ => "could not tell".to_owned(),
        };
        let because = feature.because.as_deref().map(|because| format!(": {because}")).unwrap_or_default();
        println!("  {:width$}  {answer}  ({}){because}", feature.name, feature.used_for);
    }
}
