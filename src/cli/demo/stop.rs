//! Ctrl-C and SIGTERM: the demo is told at its next wait, so that it always cleans up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::fault::Fault;

/// Between two looks at what is waited for.
const EVERY: Duration = Duration::from_millis(20);

/// Whether the demo was told to end.
#[derive(Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Takes over both signals for the rest of the process.
    pub fn on_signals() -> Result<Stop, Fault> {
        let stop = Stop::default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(Fault::io("cannot handle signals"))?;
        let (mut interrupt, mut terminate) = {
            // Signals are registered with the runtime that is entered.
            let _inside = runtime.enter();
            let failed = |error| Fault::io("cannot handle signals")(error);
            (
                signal(SignalKind::interrupt()).map_err(failed)?,
                signal(SignalKind::terminate()).map_err(failed)?,
            )
        };
        let told = stop.clone();
        // Lives as long as the process.
        std::thread::spawn(move || {
            runtime.block_on(async {
                std::future::poll_fn(|context| {
                    let interrupted = interrupt.poll_recv(context).is_ready();
                    if interrupted || terminate.poll_recv(context).is_ready() {
                        return std::task::Poll::Ready(());
                    }
                    std::task::Poll::Pending
                })
                .await;
            });
            // The handlers stay: a second signal does not cut short the cleaning up.
            told.0.store(true, Ordering::Relaxed);
        });
        Ok(stop)
    }

    /// Ends the story when the demo was told to end.
    pub fn check(&self) -> Result<(), Fault> {
        if self.0.load(Ordering::Relaxed) {
            return Err(Fault::Interrupted);
        }
        Ok(())
    }

    /// Asks `look` until it has a result, for at most `limit`; `what` says in a failure what was
    /// waited for.
    pub fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut() -> Result<Option<T>, Fault>,
    ) -> Result<T, Fault> {
        let begin = Instant::now();
        loop {
            self.check()?;
            if let Some(found) = look()? {
                return Ok(found);
            }
            if begin.elapsed() >= limit {
                return Err(Fault::Late {
                    what: what.to_owned(),
                    seconds: limit.as_secs(),
                });
            }
            std::thread::sleep(EVERY);
        }
    }
}
