//! The host's clock as the state machines want it.

use afterimage_protocol::Time;

/// Microseconds since 1970; never goes back within the process, whatever is done to the host's clock.
pub fn now() -> Time {
    Time(afterimage_contract::clock::now_us())
}
