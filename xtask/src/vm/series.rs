//! The kernels that people run, and how Debian's packages of them are called.

/// One kernel series, and the Debian suite that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Series {
    /// `major.minor`.
    pub(crate) name: &'static str,
    /// The suite of Debian's archive.
    pub(crate) suite: &'static str,
}

/// Every series that is tested, oldest first.
pub(crate) const ALL: [Series; 5] = [
    Series { name: "5.10", suite: "bullseye" },
    Series { name: "6.1", suite: "bookworm" },
    Series { name: "6.12", suite: "trixie" },
    Series { name: "6.18", suite: "trixie-backports" },
    Series { name: "7.2", suite: "sid" },
];

/// The flavour: small, quick to boot, and what virtual machines run.
const FLAVOUR: &str = "-cloud-amd64";

/// The regular expression that asks apt for every package of interest.
pub(crate) const PATTERN: &str = "^linux-(image|binary|modules|base)-[0-9].*-cloud-amd64$";

/// Packages that together are one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packages {
    /// `uname -r`.
    pub(crate) release: String,
    /// Their names.
    pub(crate) names: Vec<String>,
}

impl Series {
    /// The newest kernel of this series among the names of packages.
    pub(crate) fn newest(&self, names: &[String]) -> Option<Packages> {
        let release = |name: &str| {
            let rest = name.strip_prefix("linux-image-").or_else(|| name.strip_prefix("linux-binary-"))?;
            let numbers = numbers(rest.strip_suffix(FLAVOUR)?)?;
            self.has(&numbers).then(|| (numbers, rest.to_owned()))
        };
        let (_, release) = names.iter().filter_map(|name| release(name)).max()?;
        let known = |kind: &str| {
            let name = format!("linux-{kind}-{release}");
            names.contains(&name).then_some(name)
        };
        // Since 7.1 the image is an empty package that depends on its parts.
        let parts: Vec<String> =
            ["binary", "modules", "base"].iter().filter_map(|kind| known(kind)).collect();
        let names = if parts.is_empty() { known("image").into_iter().collect() } else { parts };
        Some(Packages { release, names })
    }

    fn has(&self, numbers: &[u32]) -> bool {
        let own: Vec<u32> = self.name.split('.').filter_map(|part| part.parse().ok()).collect();
        numbers.starts_with(&own)
    }
}

/// `6.12.107+deb13` → 6, 12, 107, 13: what decides which one is newer. A release candidate is none.
fn numbers(version: &str) -> Option<Vec<u32>> {
    let plain = |c: char| c.is_ascii_digit() || matches!(c, '.' | '-');
    let (kernel, build) = version.split_once("+deb").unwrap_or((version, "0"));
    if !kernel.chars().all(plain) {
        return None;
    }
    let build = build.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
    let kernel = kernel.split(['.', '-']).map(|part| part.parse().ok());
    kernel.chain([Some(build)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest(series: &str, names: &[&str]) -> Option<Packages> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        ALL.iter().find(|known| known.name == series).unwrap().newest(&names)
    }

    #[test]
    fn numbers_decide_and_not_letters() {
        let names = ["linux-image-6.12.94+deb13-cloud-amd64", "linux-image-6.12.107+deb13-cloud-amd64"];
        assert_eq!(newest("6.12", &names).unwrap().release, "6.12.107+deb13-cloud-amd64");
        let names = ["linux-image-5.10.0-9-cloud-amd64", "linux-image-5.10.0-32-cloud-amd64"];
        assert_eq!(newest("5.10", &names).unwrap().release, "5.10.0-32-cloud-amd64");
    }

    #[test]
    fn another_series_a_debug_package_and_a_candidate_are_passed_over() {
        let names = [
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-6.12.94+deb13-cloud-amd64-unsigned",
            "linux-image-6.18~rc3-cloud-amd64",
        ];
        assert_eq!(newest("6.12", &names), None);
        assert_eq!(newest("6.18", &names), None);
        assert_eq!(newest("6.1", &names).unwrap().names, ["linux-image-6.1.0-50-cloud-amd64"]);
    }

    #[test]
    fn a_kernel_in_parts_is_fetched_in_parts() {
        let names = [
            "linux-base-7.2.13+deb14-cloud-amd64",
            "linux-image-7.2.13+deb14-cloud-amd64",
            "linux-binary-7.2.13+deb14-cloud-amd64",
            "linux-modules-7.2.13+deb14-cloud-amd64",
            "linux-binary-unsigned-7.2.13+deb14-cloud-amd64",
        ];
        let expected: Vec<_> = [2, 3, 0].iter().map(|index| names[*index].to_owned()).collect();
        assert_eq!(newest("7.2", &names).unwrap().names, expected);
    }
}
