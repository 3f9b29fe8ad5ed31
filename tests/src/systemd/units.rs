//! The few units that a systemd of the tests boots with.

use std::io;
use std::path::Path;

use super::{USER, open, program};

/// What a boot leads to.
pub const BOOTED: &str = "test.target";

/// Writes the system's units into this folder.
///
/// # Errors
/// When a file cannot be written.
pub fn write_system(folder: &Path) -> io::Result<()> {
    for (name, text) in [
        (BOOTED, "[Unit]\nRequires=sysinit.target dbus.socket\nAfter=sysinit.target dbus.socket\n"),
        ("sysinit.target", "[Unit]\nDefaultDependencies=no\n"),
        ("basic.target", "[Unit]\nDefaultDependencies=no\n"),
        ("sockets.target", "[Unit]\nDefaultDependencies=no\n"),
        ("shutdown.target", "[Unit]\nDefaultDependencies=no\n"),
        ("dbus.socket", DBUS_SOCKET),
        ("dbus.service", DBUS_SERVICE),
    ] {
        std::fs::write(folder.join(name), text)?;
    }
    Ok(())
}

/// Writes the unit of [`USER`]'s own manager into `system`, and that manager's units into `user`, which it makes.
pub(super) fn write_user(system: &Path, user: &Path) -> io::Result<()> {
    std::fs::write(system.join(format!("user@{USER}.service")), user_manager(user))?;
    std::fs::create_dir(user)?;
    open(user);
    for (name, text) in [
        ("default.target", "[Unit]\nRequires=dbus.socket\nAfter=dbus.socket\n"),
        ("basic.target", "[Unit]\nDefaultDependencies=no\n"),
        ("sockets.target", "[Unit]\nDefaultDependencies=no\n"),
        ("shutdown.target", "[Unit]\nDefaultDependencies=no\n"),
        ("dbus.socket", USER_DBUS_SOCKET),
        ("dbus.service", USER_DBUS_SERVICE),
    ] {
        std::fs::write(user.join(name), text)?;
    }
    Ok(())
}

const DBUS_SOCKET: &str =
    "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n";

const DBUS_SERVICE: &str = "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\nAfter=dbus.socket\n\
    [Service]\nExecStart=dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation\n";

const USER_DBUS_SOCKET: &str = "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=%t/bus\n";

const USER_DBUS_SERVICE: &str = "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\nAfter=dbus.socket\n\
    [Service]\nExecStart=dbus-daemon --session --address=systemd: --nofork --nopidfile --systemd-activation\n";

fn user_manager(units: &Path) -> String {
    let (program, units) = (program().expect("systemd is installed").display(), units.display());
    format!(
        "[Unit]\nDefaultDependencies=no\n\
         [Service]\nType=notify\nUser={USER}\nGroup={USER}\nSlice=user-{USER}.slice\nDelegate=yes\nKillMode=mixed\n\
         Environment=XDG_RUNTIME_DIR=/run/user/{USER} SYSTEMD_UNIT_PATH={units} HOME=/\n\
         ExecStart={program} --user --unit=default.target --log-target=null\n"
    )
}
