//! Packing of weights: rows of a checkpoint, floating-point or codes, straight into the layout that a microkernel reads.

pub(crate) mod builder;
pub(crate) mod rows;
pub(crate) mod weight;
