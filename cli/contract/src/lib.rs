//! What Afterimage promises to the people and programs outside it, as code that its binaries share: the
//! configuration file ([`config`]), the units people write in it ([`units`]), the local administration
//! protocol ([`admin`]) and the status document ([`status`]). None of it knows how replication works.

pub mod admin;
pub mod config;
pub mod status;
pub mod units;
