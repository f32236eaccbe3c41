//! `afterimage demo`.

use crate::args::DemoArgs;
use crate::exit::CommandError;

/// Placeholder until the next commit.
pub async fn run(_args: &DemoArgs) -> Result<(), CommandError> {
    Err(CommandError::failed("the demo is not built in yet"))
}
