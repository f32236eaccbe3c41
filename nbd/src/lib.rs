//! The NBD server.

pub mod wire;
