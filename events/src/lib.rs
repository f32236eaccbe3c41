//! The events that an operator may want to know of: the stable ids ([`Event`]), the one way to log them ([`event!`]), and
//! how often each has happened ([`counts`]). `docs/events.md` says of each what it means and what to do.
//!
//! A line of the log that has a field `event` is an event; other lines are for those who look into one. A repeated event is
//! logged a few times a minute at most, and what was left out is counted in the next line (`unlogged`).

mod log;
mod table;

pub use log::{Count, admit, count, counts};
pub use table::Event;

#[doc(hidden)]
pub use tracing;

/// Logs an event: its level and its id come from [`Event`], the rest is as with the macros of `tracing`.
///
/// ```
/// use afterimage_events::{Event, event};
/// event!(Event::LinkUp, group = "orders", peer = "192.0.2.2:7789", "session with the peer");
/// event!(Event::Started, "the agent starts");
/// ```
///
/// The same event of the same group is logged a few times a minute at most. Where the caller sees to that itself it says
/// `event!(limited: …)`. Nothing secret may be in a line: keys are shown by their fingerprints, tokens never.
#[macro_export]
macro_rules! event {
    (limited: $event:expr, group = $group:expr, $($rest:tt)+) => {{
        $crate::count($event, ::core::convert::AsRef::<str>::as_ref(&$group));
        const LEVEL: $crate::tracing::Level = $event.level();
        $crate::tracing::event!(LEVEL, event = $event.id(), group = ::core::convert::AsRef::<str>::as_ref(&$group), $($rest)+);
    }};
    (limited: $event:expr, $($rest:tt)+) => {{
        $crate::count($event, "");
        const LEVEL: $crate::tracing::Level = $event.level();
        $crate::tracing::event!(LEVEL, event = $event.id(), $($rest)+);
    }};
    ($event:expr, group = $group:expr, $($rest:tt)+) => {
        // A match, so that what the name is borrowed from lives on.
        match ::core::convert::AsRef::<str>::as_ref(&$group) {
            group => if let Some(unlogged) = $crate::admit($event, group) {
                const LEVEL: $crate::tracing::Level = $event.level();
                let unlogged = (unlogged > 0).then_some(unlogged);
                $crate::tracing::event!(LEVEL, event = $event.id(), unlogged, group, $($rest)+);
            }
        }
    };
    ($event:expr, $($rest:tt)+) => {{
        if let Some(unlogged) = $crate::admit($event, "") {
            const LEVEL: $crate::tracing::Level = $event.level();
            let unlogged = (unlogged > 0).then_some(unlogged);
            $crate::tracing::event!(LEVEL, event = $event.id(), unlogged, $($rest)+);
        }
    }};
}
