//! What a guest is told to do: a file in its image, one word and its value a line.

use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Where the host puts it.
const PATH: &str = "/manifest";

/// Everything the guest is to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// Kernel modules, in the order in which they need each other.
    pub(crate) modules: Vec<String>,
    /// PID 1 becomes systemd, and a service of it runs the commands.
    pub(crate) systemd: bool,
    /// Commands, one after another.
    pub(crate) steps: Vec<Step>,
}

/// One command.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// How the report calls it.
    pub(crate) name: String,
    /// On the guest's clock.
    pub(crate) limit: Duration,
    /// A file whose lines belong into the report.
    pub(crate) collect: Option<String>,
    /// Its environment, and nothing else.
    pub(crate) environment: Vec<(String, String)>,
    /// Capabilities that it does not get, by number.
    pub(crate) without: Vec<i32>,
    /// Program and arguments.
    pub(crate) command: Vec<String>,
}

impl Manifest {
    /// Reads the file.
    pub(crate) fn read() -> Result<Self> {
        Self::parse(&std::fs::read_to_string(PATH).context(PATH)?)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut manifest = Self::default();
        for line in text.lines() {
            let (word, value) = line.split_once(' ').unwrap_or((line, ""));
            if word == "module" {
                manifest.modules.push(value.to_owned());
                continue;
            }
            if word == "systemd" {
                manifest.systemd = true;
                continue;
            }
            if word == "step" {
                manifest.steps.push(Step { name: value.to_owned(), ..Step::default() });
                continue;
            }
            let step = manifest.steps.last_mut().with_context(|| format!("{line:?} before any step"))?;
            match word {
                "limit" => step.limit = Duration::from_secs(value.parse().context("a limit in seconds")?),
                "collect" => step.collect = Some(value.to_owned()),
                "env" => {
                    let (name, value) = value.split_once('=').context("NAME=VALUE")?;
                    step.environment.push((name.to_owned(), value.to_owned()));
                }
                "without" => step.without.push(value.parse().context("the number of a capability")?),
                "argument" => step.command.push(value.to_owned()),
                _ => bail!("what does {line:?} mean?"),
            }
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_with_their_order_and_their_blanks() {
        let text = "module inet_diag\nmodule tcp_diag\nsystemd\nstep a b\nlimit 20\nenv X=1=2\nwithout 39\ncollect /tmp/x\n\
                    argument /bin/a\nargument two words\nargument\nstep c";
        let manifest = Manifest::parse(text).unwrap();
        assert_eq!(manifest.modules, ["inet_diag", "tcp_diag"]);
        assert!(manifest.systemd);
        let expected = Step {
            name: "a b".into(),
            limit: Duration::from_secs(20),
            collect: Some("/tmp/x".into()),
            environment: vec![("X".into(), "1=2".into())],
            without: vec![39],
            command: vec!["/bin/a".into(), "two words".into(), String::new()],
        };
        assert_eq!(manifest.steps, [expected, Step { name: "c".into(), ..Step::default() }]);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        assert!(Manifest::parse("limit 3").is_err());
        assert!(Manifest::parse("step a\nwhatever").is_err());
        assert!(Manifest::parse("step a\nlimit soon").is_err());
    }
}
