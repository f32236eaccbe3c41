//! Waiting for something outside, with an end to it: a deadline, or the user's Ctrl-C.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Set by the first signal that asks to end. Everything then unwinds in order: processes end, files go.
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes the signals over, for the rest of this process.
    pub fn install() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&flag)).context("install a signal handler")?;
        }
        Ok(Self(flag))
    }

    /// An error once a signal has come.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }
}

/// Asks `poll` until it has an answer. `what` completes the sentence "gave up waiting for".
pub fn until<T>(
    what: &str,
    timeout: Duration,
    interrupt: &Interrupt,
    mut poll: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        interrupt.check()?;
        if let Some(answer) = poll()? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("gave up waiting for {what} after {timeout:?}");
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Like [`until`], for what may fail at first: the inner error means "not yet", and the last one is told if the
/// time is over.
pub fn until_ok<T>(
    what: &str,
    timeout: Duration,
    interrupt: &Interrupt,
    mut attempt: impl FnMut() -> Result<Result<T>>,
) -> Result<T> {
    let mut last = None;
    let outcome = until(what, timeout, interrupt, || match attempt()? {
        Ok(answer) => Ok(Some(answer)),
        Err(error) => {
            last = Some(error);
            Ok(None)
        }
    });
    outcome.map_err(|error| match last {
        Some(last) => last.context(format!("{error:#}")),
        None => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(30);

    fn never() -> Interrupt {
        Interrupt(Arc::default())
    }

    #[test]
    fn an_answer_ends_the_waiting() {
        let mut asked = 0;
        let answer = until("it", Duration::from_secs(10), &never(), || {
            asked += 1;
            Ok((asked == 3).then_some(asked))
        });
        assert_eq!(answer.expect("an answer"), 3);
    }

    #[test]
    fn the_time_ends_it_and_the_last_reason_is_told() {
        let error = until_ok("it", SOON, &never(), || Ok(Err::<(), _>(anyhow::anyhow!("not there"))));
        assert_eq!(
            format!("{:#}", error.expect_err("it is over")),
            "gave up waiting for it after 30ms: not there"
        );
    }

    #[test]
    fn a_signal_ends_it() {
        let interrupt = Interrupt(Arc::new(AtomicBool::new(true)));
        let error = until::<()>("it", Duration::from_secs(10), &interrupt, || Ok(None));
        assert_eq!(error.expect_err("it is over").to_string(), "interrupted");
    }
}
