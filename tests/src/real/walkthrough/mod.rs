//! A page of the documentation, typed as it stands on two hosts.
//!
//! `page` takes its code blocks apart, `expected` compares what is printed with what the page shows, and [`walk`] goes through it.
//! [`Site`] is the two hosts: each a `machine` in namespaces of its own, joined by a `wire`. There is no systemd in them; [`units`]
//! is what answers to `systemctl` instead.

mod expected;
mod machine;
mod page;
mod site;
pub mod units;
mod walk;
mod wire;

pub use page::Page;
pub use site::Site;
pub use walk::{Typed, walk};
