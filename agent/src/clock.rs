//! Time as the source wants it.

use std::time::Duration;

use afterimage_contract::clock;
use afterimage_protocol::Time;

/// The clock of this process, and when it was started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Time,
}

impl Clock {
    pub fn start() -> Self {
        Self { origin: Time(clock::now_us()) }
    }

    pub fn now(&self) -> Time {
        Time(clock::now_us())
    }

    /// How long it is until `at`; zero when that has passed.
    pub fn until(&self, at: Time) -> Duration {
        Duration::from_micros(at.since_us(self.now()))
    }

    /// When the clock was started.
    pub fn origin(&self) -> Time {
        self.origin
    }
}
