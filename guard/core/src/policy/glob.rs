//! Globs over cgroup paths.

use std::fmt;

/// A pattern for a whole cgroup path: `*` stands for any text without a slash,
/// `**` for any text, `?` for one character that is no slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupGlob(String);

impl CgroupGlob {
    /// The glob, when it is one.
    ///
    /// # Errors
    ///
    /// When it does not begin with a slash, as every cgroup path does, or when
    /// it would recognise every path.
    pub fn new(glob: &str) -> Result<Self, &'static str> {
        if !glob.starts_with(['/', '*']) {
            return Err("a cgroup path begins with a slash, as in /proc/PID/cgroup");
        }
        if matches(glob.as_bytes(), b"/") {
            return Err("it recognises the root cgroup, and so everybody where nothing divides processes");
        }
        Ok(Self(glob.to_owned()))
    }

    /// Whether the whole path fits.
    pub fn is_match(&self, path: &str) -> bool {
        matches(self.0.as_bytes(), path.as_bytes())
    }
}

impl fmt::Display for CgroupGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where the glob goes on after a star, and where in the path the star ends so far.
type Star = Option<(usize, usize)>;

/// Tries the last star again one byte further along for as long as that helps:
/// the time is bounded by the product of the two lengths.
fn matches(glob: &[u8], path: &[u8]) -> bool {
    let (mut g, mut p) = (0, 0);
    let (mut star, mut double): (Star, Star) = (None, None);
    loop {
        match (glob.get(g), path.get(p)) {
            (Some(b'*'), _) if glob.get(g + 1) == Some(&b'*') => {
                g += 2;
                (star, double) = (None, Some((g, p)));
                continue;
            }
            (Some(b'*'), _) => {
                g += 1;
                star = Some((g, p));
                continue;
            }
            (Some(b'?'), Some(byte)) if *byte != b'/' => {
                (g, p) = (g + 1, p + 1);
                continue;
            }
            (Some(wanted), Some(byte)) if wanted == byte && *wanted != b'?' => {
                (g, p) = (g + 1, p + 1);
                continue;
            }
            (None, None) => return true,
            _ => {}
        }
        if let Some((after, end)) = star
            && path.get(end).is_some_and(|byte| *byte != b'/')
        {
            star = Some((after, end + 1));
            (g, p) = (after, end + 1);
        } else if let Some((after, end)) = double
            && end < path.len()
        {
            (star, double) = (None, Some((after, end + 1)));
            (g, p) = (after, end + 1);
        } else {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stop_at_slashes_and_double_stars_do_not() {
        for (glob, path, fits) in [
            ("/system.slice/x.service", "/system.slice/x.service", true),
            ("/system.slice/x.service", "/system.slice/x.service/part", false),
            ("/system.slice/*.service", "/system.slice/x.service", true),
            ("/system.slice/*", "/system.slice/x.service/part", false),
            ("/system.slice/**", "/system.slice/x.service/part", true),
            ("**/openclaw*.service", "/user.slice/u/app.slice/openclaw-gateway.service", true),
            ("**/openclaw*.service", "/user.slice/openclaw.service/part", false),
            ("**/a*b/**c", "/x/aac/b/c", false),
            ("**/a*b/**c", "/x/aab/a/b/c", true),
            ("/?.scope", "/a.scope", true),
            ("/?a.scope", "//a.scope", false),
            ("/a", "/ab", false),
            ("/ab", "/a", false),
        ] {
            assert_eq!(CgroupGlob::new(glob).expect("a glob").is_match(path), fits, "{glob} {path}");
        }
    }

    #[test]
    fn a_glob_for_everybody_is_refused() {
        for glob in ["", "system.slice", "/", "/*", "**", "/**"] {
            assert!(CgroupGlob::new(glob).is_err(), "{glob}");
        }
    }

    #[test]
    fn a_glob_full_of_stars_ends() {
        let glob = CgroupGlob::new(&format!("/a{}b", "*a".repeat(40))).expect("a glob");
        assert!(!glob.is_match(&format!("/{}", "a".repeat(4_000))));
    }
}
