//! Sixteen lanes of f32 or i32: vector code written once and compiled for the instructions of every kernel.

pub(crate) mod functions;
pub(crate) mod instructions;
pub(crate) mod vectorize;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use instructions::{FloatLane, Instructions, LANES, Lane};
pub(crate) use vectorize::{Dispatch, Vectorize, Vectorized, run};
