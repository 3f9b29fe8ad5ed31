//! `portguard doctor`

use std::io::Write;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::exit::Exit;
use super::options::{NetnsOptions, OutputOptions};
use crate::kernel::bpf::{Bpf, BpfError, BpfOptions, FailedBinds, Loss, OwnerLookup};
use crate::kernel::features::{self, Answer, Feature};
use crate::kernel::remedies;
use crate::runtime::{Tier, now};

/// Rehearses every feature for real and says which tier this machine gives.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    #[command(flatten)]
    pub(super) netns: NetnsOptions,
    #[command(flatten)]
    output: OutputOptions,
}

#[derive(Serialize)]
struct Report {
    v: u32,
    tier: &'static str,
    why_not_ebpf: Option<String>,
    attached_by: Option<&'static str>,
    losses: Vec<String>,
    /// How long it took to look for owners in all open files at once.
    owner_pass_us: Option<u128>,
    kernel: Option<String>,
    features: Vec<FeatureBody>,
}

#[derive(Serialize)]
struct FeatureBody {
    name: &'static str,
    used_for: &'static str,
    answer: &'static str,
    because: Option<String>,
    /// What gives it, when it is missing.
    remedy: Option<String>,
}

impl Doctor {
    pub(super) fn run(self) -> Exit {
        let report = examine();
        let text = if self.output.json {
            serde_json::to_string(&report).map(|line| line + "\n")
        } else {
            Ok(describe(&report))
        };
        match text {
            // A reader that went away wants no more.
            Ok(text) => drop(std::io::stdout().write_all(text.as_bytes())),
            Err(error) => super::complain(&format!("cannot write the report as JSON: {error}")),
        }
        Exit::Done
    }
}

fn examine() -> Report {
    let mut attached_by = None;
    let lookup;
    let (tier, why_not_ebpf, losses) =
        match Bpf::load(&BpfOptions { failed_binds: FailedBinds::AtAnyCost, ..BpfOptions::default() }) {
            Ok(mut bpf) => {
                lookup = lookup_of(&mut bpf);
                attached_by = Some(bpf.attached_by().name());
                let mut losses: Vec<String> = bpf.losses().iter().map(ToString::to_string).collect();
                losses.extend(
                    bpf.why_classic()
                        .map(|why| format!("detaching takes about 0.1 s, with classic tracepoints: {why}")),
                );
                (Tier::Ebpf, None, losses)
            }
            Err(error) => {
                // The lookup needs less than the tier does.
                lookup = OwnerLookup::load().map_err(|error| error.to_string());
                let netlink = features::destroy_announcements().is_yes();
                let mut why = error.to_string();
                if features::is_locked_down() && !why.contains(features::LOCKED_DOWN) {
                    why = format!("{}: {why}", features::LOCKED_DOWN);
                }
                (if netlink { Tier::Netlink } else { Tier::Poll }, Some(why), Vec::new())
            }
        };
    let pass = lookup.and_then(|lookup| rehearse(lookup).map_err(|error| error.to_string()));
    let mut features: Vec<FeatureBody> = features::all().into_iter().map(body).collect();
    features.push(body(Feature {
        name: "owners_by_bpf",
        used_for: "finding all owners at once, also those that /proc does not show",
        answer: match &pass {
            Ok(_) => Answer::Yes,
            Err(because) => Answer::No { because: because.clone() },
        },
    }));
    Report {
        v: 1,
        tier: tier.name(),
        why_not_ebpf,
        attached_by,
        losses,
        owner_pass_us: pass.ok().map(|took| took.as_micros()),
        kernel: features::kernel_release(),
        features,
    }
}

/// What came with the other programs, or why it did not.
fn lookup_of(bpf: &mut Bpf) -> Result<OwnerLookup, String> {
    bpf.take_owner_lookup().ok_or_else(|| {
        let of_owners = bpf.losses().iter().find(|loss| matches!(loss, Loss::OwnersFromProc { .. }));
        of_owners.map_or_else(|| "nothing is known about why".to_owned(), ToString::to_string)
    })
}

fn rehearse(mut lookup: OwnerLookup) -> Result<Duration, BpfError> {
    let begun = now();
    lookup.rehearse()?;
    Ok(now().since(begun))
}

fn body(feature: Feature) -> FeatureBody {
    let (answer, because) = match feature.answer {
        Answer::Yes => ("yes", None),
        Answer::No { because } => ("no", Some(because)),
        Answer::CouldNotTell { because } => ("could_not_tell", Some(because)),
    };
    let name = match &because {
        Some(because) if because == features::LOCKED_DOWN => "no_lockdown",
        _ => feature.name,
    };
    let remedy = if answer == "no" { remedies::remedy(name) } else { None };
    FeatureBody { name: feature.name, used_for: feature.used_for, answer, because, remedy }
}

fn describe(report: &Report) -> String {
    let mut lines = vec![format!("tier: {}", report.tier)];
    match &report.why_not_ebpf {
        None => {
            let by = report.attached_by.unwrap_or("nothing");
            lines.push(format!("  the BPF programs load and attach ({by})"));
        }
        Some(why) => lines.push(format!("  no ebpf tier: {why}")),
    }
    lines.extend(report.losses.iter().map(|loss| format!("  without: {loss}")));
    lines.extend(report.owner_pass_us.map(|took| {
        let took = took as f64 / 1e3;
        format!("  owners: one pass of the BPF iterator over all open files took {took:.1} ms")
    }));
    lines.extend(report.kernel.iter().map(|kernel| format!("kernel: {kernel}")));
    let width = report.features.iter().map(|feature| feature.name.len()).max().unwrap_or(0);
    for feature in &report.features {
        let answer = match feature.answer {
            "yes" => "yes",
            "no" => "NO",
            _ => "could not tell",
        };
        let because = feature.because.as_deref().map(|because| format!(": {because}")).unwrap_or_default();
        lines.push(format!("  {:width$}  {answer}  ({}){because}", feature.name, feature.used_for));
        lines.extend(feature.remedy.as_deref().map(|remedy| format!("  {:width$}      {remedy}", "")));
    }
    lines.join("\n") + "\n"
}
