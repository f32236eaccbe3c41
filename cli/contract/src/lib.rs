//! What Afterimage promises to the people and programs outside it, as code that its binaries share: the
//! configuration file ([`config`]), the units people write in it ([`units`]), the local administration
//! protocol ([`admin`]), the status document ([`status`]), the operator's hooks ([`hooks`]), how a daemon logs ([`log`])
//! and ends ([`daemon`]), what it tells the service manager
//! ([`service`]), how its configuration is read again ([`reload`]), how fast its work goes ([`meter`]), and what keeps
//! processors awake while clients wait ([`low_latency`]). None of it knows how replication works.

pub mod admin;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod hooks;
pub mod log;
pub mod low_latency;
pub mod meter;
pub mod reload;
pub mod service;
pub mod status;
pub mod units;
