//! Ctrl-C and SIGTERM while a command waits.
//!
//! A daemon finishes what it was asked for, whether or not somebody waits for the answer. So the command leaves it to that, and
//! says what goes on, and how it is seen and ended.

use std::future::Future;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::CommandError;

/// Ends when the command is interrupted. From the first poll on, that does not end the process any more.
pub async fn interrupted() {
    let (interrupt, terminate) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    tokio::select! {
        () = receive(interrupt) => {}
        () = receive(terminate) => {}
    }
}

/// Where no handler could be set, the signal ends the process as ever.
async fn receive(signal: std::io::Result<Signal>) {
    match signal {
        Ok(mut signal) => drop(signal.recv().await),
        Err(_) => std::future::pending().await,
    }
}

/// The outcome of `work`; when the command is interrupted before, an error that says what goes on.
pub async fn or_interrupted<T>(
    work: impl Future<Output = Result<T, CommandError>>,
    goes_on: impl FnOnce() -> String,
) -> Result<T, CommandError> {
    tokio::select! {
        biased;
        outcome = work => outcome,
        () = interrupted() => Err(CommandError::failed(format!("interrupted: {}", goes_on()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_done_counts_and_an_interruption_says_what_goes_on() {
        let done = or_interrupted(async { Ok(7) }, || "it goes on".to_owned()).await;
        assert_eq!(done, Ok(7));
        let asked = async {
            tokio::task::yield_now().await;
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::INT).unwrap();
            std::future::pending::<Result<(), CommandError>>().await
        };
        let stopped = or_interrupted(asked, || "it goes on".to_owned()).await;
        assert_eq!(stopped, Err(CommandError::failed("interrupted: it goes on")));
    }
}
