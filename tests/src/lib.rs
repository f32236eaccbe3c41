//! Everything that tests need and the product does not: the deterministic simulator's parts in [`sim`], and the
//! helpers that run and check real processes in [`real`].

pub mod real;
pub mod sim;
