//! A terminal that a program runs on, and what is on its screen.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::pty::{Winsize, openpty};
use nix::sys::signal::Signal;
use nix::sys::termios::{LocalFlags, tcgetattr};

use crate::child::spawn;
use crate::process::PidFd;
use crate::{DEADLINE, wait_until};

/// A pseudo-terminal with one program on it, which is killed when this is dropped.
pub struct Terminal {
    child: std::process::Child,
    pidfd: PidFd,
    /// Our end: what is typed goes in here.
    keyboard: File,
    /// The program's end, which outlives it, so that its settings can be read.
    line: OwnedFd,
    seen: Arc<Mutex<vt100::Parser>>,
}

impl Terminal {
    /// Starts `command` on a terminal of this size.
    ///
    /// # Panics
    /// When there is no terminal, or the program cannot be started.
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).expect("a pseudo-terminal");
        let end = || pty.slave.try_clone().expect("a copy of the terminal");
        command.stdin(end()).stdout(end()).stderr(end()).env("TERM", "xterm-256color");
        // SAFETY: prctl, setsid and ioctl are async-signal-safe and are all that runs between fork and exec.
        unsafe {
            command.pre_exec(|| {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                nix::unistd::setsid()?;
                Errno::result(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
                Ok(())
            });
        }
        let child = spawn(&mut command).unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let seen = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 0)));
        let keyboard = File::from(pty.master);
        let mut screen = keyboard.try_clone().expect("a copy of our end");
        let theirs = Arc::clone(&seen);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut bytes) {
                theirs.lock().unwrap_or_else(PoisonError::into_inner).process(&bytes[..count]);
            }
        });
        let pidfd = PidFd::open(child.id().cast_signed()).expect("a child's pidfd");
        Self { child, pidfd, keyboard, line: pty.slave, seen }
    }

    fn seen(&self) -> MutexGuard<'_, vt100::Parser> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is on the screen.
    pub fn text(&self) -> String {
        self.seen().screen().contents()
    }

    /// Waits until all of these texts are on the screen.
    ///
    /// # Panics
    /// When they do not come.
    #[track_caller]
    pub fn shows(&self, texts: &[&str]) {
        let all = || {
            let screen = self.text();
            texts.iter().all(|text| screen.contains(text))
        };
        assert!(wait_until(DEADLINE, all), "not all of {texts:?} is on the screen:\n{}", self.text());
    }

    /// Some of the text has a colour.
    pub fn is_coloured(&self) -> bool {
        let seen = self.seen();
        let (rows, columns) = seen.screen().size();
        let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        places
            .filter_map(|(row, column)| seen.screen().cell(row, column))
            .any(|cell| cell.fgcolor() != vt100::Color::Default || cell.bgcolor() != vt100::Color::Default)
    }

    /// It is as a shell wants it: lines and echo, the usual screen, a cursor.
    ///
    /// # Panics
    /// When its settings cannot be read.
    pub fn is_given_back(&self) -> bool {
        let settings = tcgetattr(&self.line).expect("the terminal's settings");
        let cooked = settings.local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG);
        let seen = self.seen();
        cooked && !seen.screen().alternate_screen() && !seen.screen().hide_cursor()
    }

    /// Types these keys.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).expect("a keyboard");
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) {
        self.pidfd.signal(signal);
    }

    /// How the program ended.
    ///
    /// # Panics
    /// When it has not within `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        assert!(self.pidfd.ended_within(deadline), "it still runs:\n{}", self.text());
        self.child.wait().expect("wait for a child")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It is ours: both fail only when it has ended and was waited for.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
