//! Number types of device memory, and their memory as bytes.

use half::{bf16, f16};
use int8_cuda_sys as sys;

mod sealed {
    pub trait Sealed {}
}

/// A number that device memory can hold: plain, without padding, valid for every bit pattern.
pub trait Scalar: sealed::Sealed + Copy + Default + Send + Sync + std::fmt::Debug + 'static {}

/// An element type of activations and weights.
pub trait Float: Scalar + int8_core::Element {
    /// The kernels' number of the type.
    const ELEMENT: i32;
}

macro_rules! scalars {
    ($($scalar:ty),*) => { $(impl sealed::Sealed for $scalar {} impl Scalar for $scalar {})* };
}
scalars!(u8, i8, u32, i32, f32, f16, bf16);

impl Float for f16 {
    const ELEMENT: i32 = sys::INT8_CUDA_F16;
}
impl Float for bf16 {
    const ELEMENT: i32 = sys::INT8_CUDA_BF16;
}
impl Float for f32 {
    const ELEMENT: i32 = sys::INT8_CUDA_F32;
}

/// The memory of numbers as bytes.
pub(crate) fn as_bytes<T: Scalar>(values: &[T]) -> &[u8] {
    // SAFETY: `Scalar` is implemented for plain numbers without padding; every byte of them is initialised.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The memory of numbers as bytes to write to.
pub(crate) fn as_bytes_mut<T: Scalar>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as above, and every bit pattern is a valid number.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

/// Numbers that lie in bytes, in order; a rest of fewer bytes than a number has is ignored.
pub(crate) fn from_bytes<T: Scalar>(bytes: &[u8]) -> impl Iterator<Item = T> + '_ {
    bytes.chunks_exact(size_of::<T>()).map(|bytes| {
        let mut value = [T::default()];
        as_bytes_mut(&mut value).copy_from_slice(bytes);
        value[0]
    })
}
