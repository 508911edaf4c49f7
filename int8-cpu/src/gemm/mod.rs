//! Stage 2: the product of codes, `q · W_qᵀ → i32`, by schedule and microkernel; and the product with 16- or 32-bit
//! weights.
//!
//! | file | what it is |
//! |---|---|
//! | [`operands`], [`microkernel`] | one tile of output, `MR × NR`: its operands, and the traits that multiply them |
//! | `group_terms` | the correction of one group of K, for microkernels that do not do it in registers |
//! | `amx`, `avx512`, `avx2`, `i8mm`, `neon`, `portable` | their implementations, one instruction set each |
//! | [`dispatch`] | from a [`Kernel`](crate::Kernel) value to its microkernel |
//! | [`schedule`] | the output in blocks, and which thread computes which |
//! | [`panel`], [`groups`] | the tiles of one panel: over all of K in blocks of KC, or group by group of K |
//! | `bf16` | products of bf16 on tile registers, for attention |
//! | [`integer`] | the product alone, i32 out |
//! | [`float`] | f32 by f32, f16 or bf16 weights |

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(any(target_arch = "x86_64", test))]
pub(crate) mod bf16;
pub(crate) mod dispatch;
pub(crate) mod float;
mod group_terms;
pub(crate) mod groups;
#[cfg(target_arch = "aarch64")]
mod i8mm;
pub(crate) mod integer;
pub(crate) mod microkernel;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(crate) mod operands;
pub(crate) mod panel;
mod portable;
pub(crate) mod schedule;
