//! Events first, but not for ever.

use std::pin::pin;

/// So many events are taken in a row before it is anybody else's turn: what happened before a deadline
/// counts as in time, and events that never end keep neither a deadline nor a look waiting.
const EVENTS_FIRST: u32 = 64;

/// Whose turn it is in an event loop that asks for events first.
#[derive(Debug, Default)]
pub(super) struct Turns {
    in_a_row: u32,
}

impl Turns {
    /// Whether events may be taken next. Where not, it is the turn of one of the others, if any is ready.
    pub(super) async fn events_next(&mut self) -> bool {
        if self.in_a_row < EVENTS_FIRST {
            return true;
        }
        self.in_a_row = 0;
        // The reactor finds out who is ready: it does not run while events are taken.
        tokio::task::yield_now().await;
        false
    }

    /// The next of `events`, counted.
    pub(super) async fn take<T>(&mut self, event: impl Future<Output = T>) -> T {
        let mut event = pin!(event);
        std::future::poll_fn(|context| {
            let polled = event.as_mut().poll(context);
            self.in_a_row = if polled.is_ready() { self.in_a_row + 1 } else { 0 };
            polled
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixDatagram;

    use super::*;

    /// Symptom: on a port whose connections ended faster than their ends were read, a look that was done and a deadline
    /// that was due were never taken notice of.
    #[test]
    fn events_that_never_end_leave_a_turn_to_others() {
        let reactor = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        reactor.block_on(async {
            let (reader, writer) = UnixDatagram::pair().unwrap();
            assert_eq!(writer.try_send(b"!").unwrap(), 1);
            let (mut turns, mut events) = (Turns::default(), 0);
            loop {
                let events_next = turns.events_next().await;
                tokio::select! {
                    biased;
                    () = turns.take(std::future::ready(())), if events_next => events += 1,
                    // Only the reactor can tell.
                    ready = reader.readable() => break ready.unwrap(),
                    () = std::future::ready(()), if !events_next => {}
                }
                assert!(events <= EVENTS_FIRST, "whoever else is ready has no turn");
            }
        });
    }

    #[test]
    fn a_pause_begins_the_count_anew() {
        let reactor = tokio::runtime::Builder::new_current_thread().build().unwrap();
        reactor.block_on(async {
            let mut turns = Turns::default();
            for round in 0..3 * EVENTS_FIRST {
                assert!(turns.events_next().await);
                if round % (EVENTS_FIRST - 1) == 0 {
                    tokio::select! {
                        biased;
                        () = turns.take(std::future::pending()) => unreachable!(),
                        () = std::future::ready(()) => {}
                    }
                }
                turns.take(std::future::ready(())).await;
            }
        });
    }
}
