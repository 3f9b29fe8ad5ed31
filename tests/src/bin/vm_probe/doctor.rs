//! `portguard doctor`, as it reports and as the kernel answers it.

use std::process::Command;

use anyhow::{Context, Result};
use guard_tests::portguard::binary;
use serde_json::Value;

use crate::answer;
use crate::bpf::Programs;
use crate::trace;

/// With these refused, portguard falls back on classic tracepoints and on the end of every system call:
/// that way the programs for kernels that refuse more are rehearsed too.
const FIRST_CHOICE: [&str; 2] = ["pg_raw_state", "pg_get_port"];

/// Prints the answers of this machine.
///
/// # Errors
///
/// When `doctor` fails, or cannot be traced.
pub(crate) fn examine() -> Result<()> {
    let mut usual = Programs::default();
    let report = doctor(&mut usual)?;
    let mut fallback = Programs::without(&FIRST_CHOICE);
    doctor(&mut fallback)?;
    told(&report)?;
    // Seen both times, or the second time only.
    for (name, program) in fallback.seen {
        usual.seen.entry(name).or_insert(program);
    }
    for (name, program) in usual.seen {
        let why = program.refusal.unwrap_or_default();
        answer(&name, if program.attached { "yes" } else { "no" }, &why);
        if let Some(cost) = program.cost {
            println!("cost\t{name}\t{cost}");
        } else if let Some(said) = program.silence {
            println!("the verifier did not tell the cost of {name}, but: {said:?}");
        }
    }
    Ok(())
}

fn doctor(programs: &mut Programs) -> Result<Value> {
    let mut command = Command::new(binary());
    command.args(["doctor", "--json"]);
    let report = trace::run(command, programs)?;
    serde_json::from_str(&report).with_context(|| format!("doctor printed no JSON: {report}"))
}

fn told(report: &Value) -> Result<()> {
    let text = |value: &Value| value.as_str().unwrap_or("none").to_owned();
    let why = report["why_not_ebpf"].as_str().unwrap_or_default();
    answer("tier", &text(&report["tier"]), why);
    answer("attached by", &text(&report["attached_by"]), why);
    if why.is_empty() {
        let losses = report["losses"].as_array().into_iter().flatten();
        let losses: Vec<&str> = losses.filter_map(Value::as_str).collect();
        answer("nothing is lost", if losses.is_empty() { "yes" } else { "no" }, &losses.join("; "));
    }
    for feature in report["features"].as_array().context("doctor's report has no features")? {
        let why = feature["because"].as_str().unwrap_or_default();
        answer(&text(&feature["name"]), &text(&feature["answer"]), why);
    }
    Ok(())
}
