//! What Afterimage promises to the people and programs outside it, as code that its binaries share: the
//! configuration file ([`config`]), the units people write in it ([`units`]), the local administration
//! protocol ([`admin`]), the status document ([`status`]), the operator's hooks ([`hooks`]), and how a daemon logs
//! ([`log`]) and ends ([`daemon`]). None of it knows how replication works.

pub mod admin;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod hooks;
pub mod log;
pub mod status;
pub mod units;
