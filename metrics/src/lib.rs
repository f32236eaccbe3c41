//! What a daemon shows over HTTP: metrics for Prometheus, and pages for load balancers. `docs/monitoring/` lists the metrics,
//! and has alert rules and a dashboard that are made of them.
//!
//! | module | noun |
//! |---|---|
//! | `families` | the metrics: name, kind, meaning, and where each value comes from |
//! | `sample` | the values of one metric |
//! | `scrape` | what a daemon knows when it is asked, and its text |
//! | `health` | the answers to load balancers |
//! | `pages` | which path shows what |
//! | `server` | the open port: connections, and their limits |
//!
//! A daemon gives a [`Daemon`] and calls [`serve`]. Nothing here is on the way of a write: values are read when somebody asks.

mod families;
mod health;
mod pages;
mod sample;
mod scrape;
mod server;

pub use families::{Kind, described};
pub use pages::{Daemon, Pages};
pub use scrape::{Checkpoints, Numbers, Scrape, VolumeNumbers};
pub use server::serve;
