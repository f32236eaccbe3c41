//! Everything that tests need and the product does not: the deterministic simulator's parts in [`sim`], the helpers
//! that run and check real processes in [`real`], and the bodies of the fuzz targets in [`fuzz`].

pub mod fuzz;
pub mod real;
pub mod sim;
