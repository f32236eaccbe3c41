//! One request to a daemon that may take long: asked, waited for, and shown meanwhile.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use afterimage_contract::admin::{AdminError, Request, call};
use afterimage_contract::status::{GroupStatus, Status};
use serde::de::DeserializeOwned;

use super::{Progress, Work, interrupted};
use crate::exit::CommandError;

/// What is over before this is not shown.
const SHOWN_AFTER: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(500);

/// Sends `request` about `group` to the daemon at `socket` and waits for its answer. Meanwhile `work` says by the daemon's
/// status how far it is. Interrupted, it is an error, and what was asked for goes on: `goes_on` says so.
pub async fn ask_long<T: DeserializeOwned>(
    socket: &Path,
    request: &Request,
    group: &str,
    work: impl FnMut(Option<&GroupStatus>) -> Work,
    goes_on: impl FnOnce() -> String,
) -> Result<Result<T, AdminError>, CommandError> {
    let answer = async { call(socket, request).await.and_then(|response| response.into_answer()) };
    tokio::select! {
        biased;
        answer = answer => Ok(answer),
        never = show(socket, group, work) => match never {},
        () = interrupted() => Err(CommandError::failed(format!("interrupted: {}", goes_on()))),
    }
}

async fn show(socket: &Path, group: &str, mut work: impl FnMut(Option<&GroupStatus>) -> Work) -> Infallible {
    let mut progress = Progress::after(SHOWN_AFTER, false);
    loop {
        tokio::time::sleep(POLL).await;
        let status =
            call(socket, &Request::Status).await.and_then(|response| response.into_answer::<Status>());
        let groups = status.map(|status| status.groups).unwrap_or_default();
        progress.show(&work(groups.iter().find(|found| found.name == group)));
    }
}
