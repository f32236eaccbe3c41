//! Everything that tests need and the product does not: the deterministic simulator's parts.

pub mod sim;
