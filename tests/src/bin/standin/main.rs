//! A process that can play every part around a TCP port: the polite server, the
//! stubborn one, its forked children, its clients, and whatever else keeps a
//! port from being bound.
//!
//! It reports on stdout, one JSON object per line with the key `standin`:
//! `bind_failed` for each attempt that lost, `ready` once the asked-for state is
//! reached, `term` when SIGTERM arrives, `command_exited` after `-- CMD`. Tests wait
//! for those lines and never for time. It ends by itself when the other end of
//! its standard input closes, so it cannot outlive the test.

#![expect(clippy::disallowed_methods, reason = "a process of its own, in which no test runs")]

mod churn;
mod crowd;
mod disguise;
mod leave;
mod options;
mod say;
mod serve;
mod sockets;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::json;

use crate::options::{Left, Options};
use crate::sockets::{Bound, Held};

/// Exit code after the last bind attempt lost: the number of `EADDRINUSE`.
const EXIT_IN_USE: u8 = 98;

fn main() -> ExitCode {
    match play(&Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("standin: {error:#}");
            ExitCode::from(70)
        }
    }
}

fn play(options: &Options) -> Result<ExitCode> {
    if options.supervise {
        return serve::supervise();
    }
    if let Some(title) = &options.title {
        disguise::wear(title).with_context(|| format!("hide the arguments behind the title {title:?}"))?;
    }
    let Some((mut listeners, attempts)) = bind_all(options)? else {
        return Ok(ExitCode::from(EXIT_IN_USE));
    };

    // What a listener does to its port besides listening.
    let mut held: Vec<Held> = Vec::new();
    if options.time_wait {
        for listener in &listeners {
            leave::on_listener(listener, Left::TimeWait).context("leave a TIME_WAIT socket behind")?;
        }
    }
    if options.move_away {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .context("move to a network namespace of its own")?;
    }
    let described: Vec<_> = listeners.iter().map(Bound::describe).collect::<Result<_>>()?;
    if options.inflight {
        for listener in listeners.drain(..) {
            held.push(sockets::put_in_flight(listener).context("send the listener over a Unix socket")?);
        }
    }
    if options.io_uring {
        for listener in listeners.drain(..) {
            held.push(sockets::register(listener).context("register the listener with an io_uring")?);
        }
    }
    match (options.client_from, options.leave) {
        (Some(port), Some(left)) => {
            held.extend(leave::on_client(port, left).with_context(|| format!("connect from port {port}"))?);
        }
        (Some(port), None) => {
            let (stream, server) =
                sockets::client_from(port).with_context(|| format!("connect from port {port}"))?;
            held.push(Held::Client { _stream: stream, _server: server });
        }
        (None, Some(left)) => {
            for listener in &listeners {
                held.extend(leave::on_listener(listener, left).context("leave a connection behind")?);
            }
        }
        (None, None) => {}
    }
    if options.close_listeners {
        listeners.clear();
    }
    if let Some(to) = options.connect {
        held.extend(
            sockets::connect_many(to, options.hold_connections)
                .with_context(|| format!("connect to {to}"))?,
        );
    }

    serve::choose_signals(options.on_term, options.leader_exits)?;
    crowd::keep_open(options.descriptors).context("open the descriptors asked for")?;
    // Forks come before threads: a child of a process with threads has only one.
    let children = match crowd::fork_sharers(options)? {
        crowd::Role::Parent(children) => children,
        crowd::Role::Child => {
            serve::choose_signals(options.sharer_on_term, false)?;
            return serve::until_told(listeners, held, options.sharer_on_term, options.accept);
        }
    };
    crowd::follow_leash();
    crowd::start_threads(options.threads);
    churn::start(&listeners, options.churn).context("start the churn")?;
    crowd::touch_memory(options.rss).context("touch the memory asked for")?;

    say::line(&json!({
        "standin": "ready",
        "pid": std::process::id(),
        "tag": options.tag,
        "listeners": described,
        "bind_attempts": attempts,
        "children": children,
        "connections": held.iter().map(Held::connections).sum::<usize>(),
    }));
    if !options.command.is_empty() {
        serve::run_command(&options.command)?;
    }
    if options.orphan || options.exit_when_ready {
        return Ok(ExitCode::SUCCESS);
    }
    if options.vfork {
        crowd::wait_as_vfork_does(listeners);
        return Ok(ExitCode::SUCCESS);
    }
    if options.leader_exits {
        crowd::leave_as_leader();
    }
    serve::until_told(listeners, held, options.on_term, options.accept)
}

/// The listeners and the number of the attempt that bound them all; `None` when
/// every attempt lost.
fn bind_all(options: &Options) -> Result<Option<(Vec<Bound>, u32)>> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match sockets::open_all(options, attempt)? {
            Some(listeners) => return Ok(Some((listeners, attempt))),
            None if attempt >= options.bind_attempts => return Ok(None),
            None => std::thread::yield_now(),
        }
    }
}
