//! A page of the documentation, typed as it stands on two hosts.
//!
//! `page` takes its code blocks apart, `expected` compares what is printed with what the page shows, and [`walk`] goes through it.
//! [`Site`] is the two hosts, which boot and are switched off as the page says.

mod expected;
mod page;
mod site;
mod walk;

pub use page::Page;
pub use site::Site;
pub use walk::{Typed, walk};
