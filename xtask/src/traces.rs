//! Looks for traces of somebody's machine in the tree: home directories, scratch folders, registry mirrors.

use crate::layer_check::File;

/// Beginnings of absolute paths that exist on one machine only. Written in two
/// halves, so that this file does not find itself.
const PATHS: &[&str] = &[
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/Us", "ers/"),
    concat!("/wo", "rk/"),
    concat!("/tmp/", "target"),
];

/// What a file says when it sends cargo somewhere else for its crates.
const REGISTRIES: &[&str] = &[
    concat!("sparse", "+"),
    concat!("replace", "-with"),
    concat!("registry", " = \""),
    concat!("registry", "+"),
    concat!("CARGO_REGISTR", "IES_"),
];

/// The one registry that a lock file may name.
const PUBLIC: &str = concat!("registry", "+https://github.com/rust-lang/crates.io-index\"");

/// Every trace, one line each.
pub(crate) fn traces(files: &[File]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        for (index, line) in file.text.lines().enumerate() {
            let mut say = |what: &str| found.push(format!("{}:{}: {what}", file.path, index + 1));
            if let Some(path) = PATHS.iter().find(|path| begins_a_path(line, path)) {
                say(&format!("a path of one machine ({path}…)"));
            }
            let line = line.replace(PUBLIC, "");
            if let Some(registry) = REGISTRIES.iter().find(|registry| line.contains(**registry)) {
                say(&format!("another registry than the public one ({registry}…)"));
            }
        }
    }
    found
}

/// Whether the path begins here, rather than being the tail of a longer one (`docs/work/`).
fn begins_a_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | '}' | '~'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> usize {
        traces(&[File { path: "a.md".into(), text: text.into() }]).len()
    }

    #[test]
    fn paths_of_a_machine_are_found_where_they_begin() {
        assert_eq!(said(concat!("see /ho", "me/someone/x")), 1);
        assert_eq!(said(concat!("(/wo", "rk/main)")), 1);
        assert_eq!(said(concat!("docs/wo", "rk/main and {dir}/ho", "me/")), 0);
    }

    #[test]
    fn only_the_public_registry_is_named() {
        assert_eq!(
            said(concat!("source = \"regis", "try+https://github.com/rust-lang/crates.io-index\"")),
            0
        );
        assert_eq!(said(concat!("source = \"regis", "try+https://mirror.example/index\"")), 1);
        assert_eq!(said(concat!("replace", "-with = \"mirror\"")), 1);
    }
}
