//! The kernel's tracing file system: which tracepoints there are and how their
//! records are laid out.
//!
//! tracefs is not mounted everywhere. Where it is missing and the guard may
//! mount, it does so in a mount namespace of one short-lived thread: nothing is
//! left behind on the host, and what was attached meanwhile stays attached.

use std::path::{Path, PathBuf};
use std::{fs, io, panic, thread};

use guard_common::Event;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{TRACEFS_MAGIC, statfs};
use thiserror::Error;

/// Where the kernel offers a mount point for tracefs since 4.1.
const MOUNT_POINT: &str = "/sys/kernel/tracing";
/// Where it lived before, and still shows up with debugfs.
const BELOW_DEBUGFS: &str = "/sys/kernel/debug/tracing";

/// Why tracepoints cannot be looked up.
#[derive(Debug, Error)]
pub enum TracefsError {
    /// The kernel was built without tracing, or sysfs is not mounted.
    #[error(
        "cannot find tracefs at {MOUNT_POINT}: this kernel was built without tracing, or /sys is not mounted"
    )]
    Missing,
    /// It is not mounted and the guard may not mount it.
    #[error(
        "cannot mount tracefs ({step}: {source}) and it is not mounted; run `mount -t tracefs nodev {MOUNT_POINT}` \
         as root, or run portguard as root (CAP_SYS_ADMIN)"
    )]
    NotMounted {
        /// The step that was refused.
        step: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// It is mounted and the guard may not read it.
    #[error(
        "not permitted to read {}: {source}; tracefs belongs to root (CAP_DAC_READ_SEARCH), and kernel lockdown \
         (confidentiality) closes it to everybody", path.display()
    )]
    Denied {
        /// The file or folder.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Reading failed for another reason.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// This kernel does not have the tracepoint.
    #[error("this kernel has no tracepoint {category}:{event}")]
    NoEvent {
        /// Category.
        category: &'static str,
        /// Name.
        event: &'static str,
    },
    /// A field is not where the programs load it: reading on would be garbage.
    #[error(
        "tracepoint {category}:{event}: field {field} is expected {expected}, but this kernel has {found}; this \
         version of portguard does not fit this kernel"
    )]
    Mismatch {
        /// Category.
        category: &'static str,
        /// Name.
        event: &'static str,
        /// Field.
        field: &'static str,
        /// Place and size that the programs rely on.
        expected: String,
        /// Place and size on this kernel.
        found: String,
    },
}

/// A mounted tracefs.
#[derive(Clone, Debug)]
pub(super) struct Tracefs {
    root: PathBuf,
}

impl Tracefs {
    /// The tracefs that is mounted and readable here; `None` when none is mounted.
    ///
    /// # Errors
    ///
    /// [`TracefsError::Denied`] when it is mounted and may not be read.
    pub(super) fn find() -> Result<Option<Self>, TracefsError> {
        let mounted = |path: &&str| statfs(*path).is_ok_and(|fs| fs.filesystem_type() == TRACEFS_MAGIC);
        let Some(root) = [MOUNT_POINT, BELOW_DEBUGFS].into_iter().find(mounted) else {
            return Ok(None);
        };
        let this = Self { root: root.into() };
        let events = this.root.join("events");
        fs::read_dir(&events).map_err(|source| read_error(events, source))?;
        Ok(Some(this))
    }

    /// Runs `work` where tracefs is mounted: on the calling thread if it is
    /// mounted already, else on a thread with a mount namespace of its own.
    ///
    /// # Errors
    ///
    /// [`TracefsError`] when there is no tracefs and none can be mounted; then
    /// `work` did not run.
    pub(super) fn with<T: Send>(work: impl FnOnce(&Self) -> T + Send) -> Result<T, TracefsError> {
        if let Some(mounted) = Self::find()? {
            return Ok(work(&mounted));
        }
        if !Path::new(MOUNT_POINT).is_dir() {
            return Err(TracefsError::Missing);
        }
        thread::scope(|scope| {
            let inside = move || Self::mount_privately().map(|mounted| work(&mounted));
            let refused = |source| TracefsError::NotMounted { step: "starting a thread", source };
            let thread = thread::Builder::new().name("tracefs".into()).spawn_scoped(scope, inside);
            thread.map_err(refused)?.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }

    /// Mounts tracefs for the calling thread alone, for good.
    fn mount_privately() -> Result<Self, TracefsError> {
        let refused = |step| {
            move |errno: Errno| match errno {
                // The file system type is not registered.
                Errno::ENODEV => TracefsError::Missing,
                _ => TracefsError::NotMounted { step, source: errno.into() },
            }
        };
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS).map_err(refused("leaving the mount namespace"))?;
        // Without this the mount would propagate to the host.
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .map_err(refused("making mounts private"))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("nodev"), MOUNT_POINT, Some("tracefs"), flags, none)
            .map_err(refused("mounting in a private namespace"))?;
        Self::find()?.ok_or(TracefsError::Missing)
    }

    /// The layout of a tracepoint's record.
    ///
    /// # Errors
    ///
    /// [`TracefsError::NoEvent`] when this kernel has no such tracepoint.
    pub(super) fn format(&self, event: &Event) -> Result<Format, TracefsError> {
        let path = self.root.join("events").join(event.category).join(event.name).join("format");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Format::parse(&text)),
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                Err(TracefsError::NoEvent { category: event.category, event: event.name })
            }
            Err(source) => Err(read_error(path, source)),
        }
    }
}

fn read_error(path: PathBuf, source: io::Error) -> TracefsError {
    match source.kind() {
        io::ErrorKind::PermissionDenied => TracefsError::Denied { path, source },
        _ => TracefsError::Read { path, source },
    }
}

/// Place of one field, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Offset from the beginning of the record.
    pub offset: usize,
    /// Size.
    pub size: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "at offset {} with {} bytes", self.offset, self.size)
    }
}

/// Layout of a tracepoint's record, from its `format` file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Format {
    fields: Vec<(String, Place)>,
}

impl Format {
    /// Reads the `field:` lines; every other line is for people.
    pub(super) fn parse(text: &str) -> Self {
        Self { fields: text.lines().filter_map(parse_field).collect() }
    }

    /// Where `field` is, or `None` when the record has none of that name.
    pub(super) fn field(&self, field: &str) -> Option<Place> {
        self.fields.iter().find(|(name, _)| name == field).map(|&(_, place)| place)
    }

    /// Compares the fields that the programs load directly with this layout.
    ///
    /// # Errors
    ///
    /// [`TracefsError::Mismatch`] for the first field that differs.
    pub(super) fn check(&self, event: &Event) -> Result<(), TracefsError> {
        for field in event.fields {
            self.expect(event, field.name, field.offset, &[field.size])?;
        }
        Ok(())
    }

    /// Compares one field whose size may be any of `sizes`, and gives its size.
    ///
    /// # Errors
    ///
    /// [`TracefsError::Mismatch`]
    pub(super) fn expect(
        &self,
        event: &Event,
        field: &'static str,
        offset: usize,
        sizes: &[usize],
    ) -> Result<usize, TracefsError> {
        let found = self.field(field);
        match found {
            Some(place) if place.offset == offset && sizes.contains(&place.size) => Ok(place.size),
            _ => {
                let sizes: Vec<String> = sizes.iter().map(ToString::to_string).collect();
                Err(TracefsError::Mismatch {
                    category: event.category,
                    event: event.name,
                    field,
                    expected: format!("at offset {offset} with {} bytes", sizes.join(" or ")),
                    found: found.map_or_else(|| "no such field".into(), |place| format!("it {place}")),
                })
            }
        }
    }
}

/// `field:DECLARATION; offset:N; size:N; signed:N;`, where the declaration ends
/// in the name, with `[…]` after it for an array.
fn parse_field(line: &str) -> Option<(String, Place)> {
    let mut parts = line.trim().split(';').map(str::trim);
    let declaration = parts.next()?.strip_prefix("field:")?;
    let (mut offset, mut size) = (None, None);
    for part in parts {
        match part.split_once(':') {
            Some(("offset", value)) => offset = value.parse().ok(),
            Some(("size", value)) => size = value.parse().ok(),
            _ => {}
        }
    }
    let name = declaration.rsplit([' ', '*']).next()?.split('[').next()?;
    Some((name.into(), Place { offset: offset?, size: size? }))
}

#[cfg(test)]
mod tests {
    use guard_common::inet_sock_set_state::{EVENT, PROTOCOL_OFFSET};

    use super::*;

    fn layout(sport: usize) -> String {
        format!(
            "name: inet_sock_set_state\nID: 7\nformat:\n\
             \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\
             \tfield:const void * skaddr;\toffset:8;\tsize:8;\tsigned:0;\n\
             \tfield:int oldstate;\toffset:16;\tsize:4;\tsigned:1;\n\
             \tfield:int newstate;\toffset:20;\tsize:4;\tsigned:1;\n\
             \tfield:__u16 sport;\toffset:{sport};\tsize:2;\tsigned:0;\n\
             \tfield:__u16 dport;\toffset:26;\tsize:2;\tsigned:0;\n\
             \tfield:__u16 family;\toffset:28;\tsize:2;\tsigned:0;\n\
             \tfield:__u8 protocol;\toffset:30;\tsize:1;\tsigned:0;\n\
             \tfield:__u8 saddr_v6[16];\toffset:40;\tsize:16;\tsigned:0;\n\
             \tfield:__data_loc char[] comm;\toffset:60;\tsize:4;\tsigned:0;\n\n\
             print fmt: \"field: %d;\", REC->family\n"
        )
    }

    #[test]
    fn names_lose_types_stars_and_array_lengths() {
        let format = Format::parse(&layout(24));
        assert_eq!(format.field("skaddr"), Some(Place { offset: 8, size: 8 }));
        assert_eq!(format.field("saddr_v6"), Some(Place { offset: 40, size: 16 }));
        assert_eq!(format.field("comm"), Some(Place { offset: 60, size: 4 }));
        assert_eq!(format.field("daddr_v6"), None);
    }

    #[test]
    fn the_one_byte_protocol_of_old_kernels_is_accepted() {
        let format = Format::parse(&layout(24));
        format.check(&EVENT).unwrap();
        assert_eq!(format.expect(&EVENT, "protocol", PROTOCOL_OFFSET, &[1, 2]).unwrap(), 1);
    }

    #[test]
    fn a_moved_field_is_named_with_what_was_expected_and_found() {
        let error = Format::parse(&layout(32)).check(&EVENT).unwrap_err().to_string();
        for part in
            ["sock:inet_sock_set_state", "sport", "at offset 24 with 2 bytes", "at offset 32 with 2 bytes"]
        {
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
    }

    #[test]
    fn a_missing_field_is_refused() {
        let error = Format::parse("").check(&EVENT).unwrap_err().to_string();
        assert!(error.contains("skaddr") && error.contains("no such field"), "{error}");
    }
}
