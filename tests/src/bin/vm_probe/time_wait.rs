//! Destroying TIME_WAIT, by portguard itself.

use std::io::Read;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;

use anyhow::{Context, Result};
use guard_tests::portguard::binary;

/// Whether `portguard free --evict` gives back a port that only a TIME_WAIT socket keeps from a strict bind.
///
/// # Errors
///
/// When there is no such socket.
pub(crate) fn destroy() -> Result<std::result::Result<(), String>> {
    let port = leave_one().context("leave a TIME_WAIT socket")?;
    let port = port.to_string();
    let arguments =
        ["free", "--address", "127.0.0.1", "--port", &port, "--any-owner", "--strict-bind", "--evict"];
    let mut command = Command::new(binary());
    let output = command.args(arguments).args(["--timeout", "5s"]).output().context("run portguard")?;
    if output.status.success() {
        return Ok(Ok(()));
    }
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    Ok(Err(said.trim().to_owned()))
}

/// The port of a listener whose connection was closed from here first.
fn leave_one() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let mut client = TcpStream::connect(address)?;
    let (server, _) = listener.accept()?;
    server.shutdown(Shutdown::Write)?;
    client.read_to_end(&mut Vec::new())?;
    drop(client);
    (&server).read_to_end(&mut Vec::new())?;
    Ok(address.port())
}
