//! A collector of traces, as OTLP over HTTP wants one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use serde_json::Value;

use crate::DEADLINE;

/// The `portguard` that was built with the feature `otlp`, unless there is none.
pub fn exporting() -> Option<PathBuf> {
    std::env::var_os("PORTGUARD_OTLP_BIN").map(PathBuf::from)
}

/// Listens in the calling thread's network namespace until it is dropped.
#[derive(Debug)]
pub struct Collector {
    /// Where.
    pub address: SocketAddr,
    posted: Receiver<Posted>,
    over: Arc<AtomicBool>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Its thread waits for the next one. When that cannot be, it ends with the tests.
        let _last = TcpStream::connect(self.address);
    }
}

/// One request.
#[derive(Debug)]
pub struct Posted {
    /// `POST /v1/traces HTTP/1.1`
    pub request: String,
    /// In lower case.
    pub headers: Vec<String>,
    /// The body.
    pub body: Value,
}

/// What a collector does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// It answers.
    Takes,
    /// It reads it and says nothing.
    Hangs,
}

impl Collector {
    /// Starts one on this port of `127.0.0.1`.
    ///
    /// # Panics
    /// When it cannot listen.
    pub fn start(port: u16, manner: Manner) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a listener");
        let address = listener.local_addr().expect("its address");
        let (sender, posted) = channel();
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        thread::spawn(move || {
            let mut hanging = Vec::new();
            let alive = |_: &TcpStream| !ended.load(Ordering::Relaxed);
            for stream in listener.incoming().map_while(Result::ok).take_while(alive) {
                let Some(mut stream) = take(stream, &sender) else { continue };
                match manner {
                    Manner::Takes => {
                        let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
                        // Whoever went away is missed by nobody.
                        let _gone = stream.write_all(answer.as_bytes());
                    }
                    Manner::Hangs => hanging.push(stream),
                }
            }
        });
        Self { address, posted, over }
    }

    /// The next request.
    ///
    /// # Panics
    /// When none comes in time.
    pub fn next(&self) -> Posted {
        self.posted.recv_timeout(DEADLINE).expect("a request")
    }
}

fn take(stream: TcpStream, posted: &Sender<Posted>) -> Option<TcpStream> {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let request = lines.first()?.clone();
    let headers: Vec<String> = lines[1..].iter().map(|line| line.to_ascii_lowercase()).collect();
    let length = headers.iter().find_map(|line| line.strip_prefix("content-length:"))?.trim().parse().ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{error} in {body:?}"));
    // Nobody asks any more: the test is over.
    let _over = posted.send(Posted { request, headers, body });
    Some(reader.into_inner())
}
