//! x

pub mod checkpoint;
