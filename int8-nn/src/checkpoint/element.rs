//! Turning stored little-endian bytes into numbers, without assuming any alignment: tensors begin wherever the header's
//! length puts them.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::convert::f64_to_f32;
use super::dtype::DType;

/// A number type that tensors can be read as, see [`TensorView::to_vec`](super::TensorView::to_vec).
///
/// | type | read from |
/// |---|---|
/// | `f32` | F64 (rounded to nearest even), F32, F16, BF16, and exactly: I8, U8, I16, U16, BOOL |
/// | `f16`, `bf16` | the same type only: bits as stored |
/// | `i8` | I8 |
/// | `u8` | U8, BOOL (0 or 1) |
/// | `i32` | I32, I16, I8, U16, U8, BOOL |
/// | `i64` | I64, and what `i32` is read from, U32 |
pub trait ReadAs: sealed::Decode {}

impl<T: sealed::Decode> ReadAs for T {}

pub(super) mod sealed {
    use super::DType;

    /// One element from exactly its bytes.
    pub(in crate::checkpoint) type Decoder<T> = fn(&[u8]) -> T;

    /// How a number type is read; implementing it is reserved to this module.
    pub trait Decode: Copy + Default + Send + Sync + 'static {
        /// The dtypes this is read from, for messages.
        const FROM: &'static str;
        /// The dtype with the same bits, in which a stored tensor may be borrowed.
        const SAME: DType;
        /// The decoder of one element, `None` if this type is not read from `dtype`.
        fn decoder(dtype: DType) -> Option<Decoder<Self>>;
        /// Decodes `out.len()` elements; `bytes` holds exactly these. The caller has checked `decoder`.
        fn decode_all(dtype: DType, bytes: &[u8], out: &mut [Self]) {
            if let Some(decode) = Self::decoder(dtype) {
                for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(dtype.bits() / 8)) {
                    *out = decode(bytes);
                }
            }
        }
    }
}

use sealed::{Decode, Decoder};

/// The bytes of one element. The slice always has them; a shorter one would read as zero instead of panicking.
fn le<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.first_chunk().copied().unwrap_or([0; N])
}

/// Decodes fixed-size elements with a closure that the compiler can inline and vectorise.
fn each<const N: usize, T>(bytes: &[u8], out: &mut [T], decode: impl Fn([u8; N]) -> T) {
    for (out, &element) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *out = decode(element);
    }
}

impl Decode for f32 {
    const FROM: &'static str = "F64, F32, F16, BF16, I8, U8, I16, U16 or BOOL";
    const SAME: DType = DType::F32;

    fn decoder(dtype: DType) -> Option<Decoder<Self>> {
        Some(match dtype {
            DType::F64 => |bytes| f64_to_f32(f64::from_le_bytes(le(bytes))),
            DType::F32 => |bytes| f32::from_le_bytes(le(bytes)),
            DType::F16 => |bytes| f16::from_le_bytes(le(bytes)).to_f32(),
            DType::BF16 => |bytes| bf16::from_le_bytes(le(bytes)).to_f32(),
            DType::I8 => |bytes| f32::from(i8::from_le_bytes(le(bytes))),
            DType::U8 => |bytes| f32::from(u8::from_le_bytes(le(bytes))),
            DType::I16 => |bytes| f32::from(i16::from_le_bytes(le(bytes))),
            DType::U16 => |bytes| f32::from(u16::from_le_bytes(le(bytes))),
            DType::Bool => |bytes| f32::from(truth(bytes)),
            _ => return None,
        })
    }

    fn decode_all(dtype: DType, bytes: &[u8], out: &mut [Self]) {
        match dtype {
            DType::F32 => each(bytes, out, f32::from_le_bytes),
            // A shift of the bits; NaN payloads are kept.
            DType::BF16 => each(bytes, out, |[low, high]| f32::from_le_bytes([0, 0, low, high])),
            DType::F16 => f16_to_f32(bytes, out),
            _ => {
                if let Some(decode) = Self::decoder(dtype) {
                    for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(dtype.bits() / 8)) {
                        *out = decode(bytes);
                    }
                }
            }
        }
    }
}

/// Uses the processor's conversion instruction, which works on aligned vectors of f16: bytes are moved through one.
fn f16_to_f32(bytes: &[u8], out: &mut [f32]) {
    /// 512 B of f16, a small part of the first-level cache.
    const BLOCK: usize = 256;
    let mut aligned = [f16::ZERO; BLOCK];
    for (out, bytes) in out.chunks_mut(BLOCK).zip(bytes.chunks(2 * BLOCK)) {
        let block = &mut aligned[..out.len()];
        each(bytes, block, f16::from_le_bytes);
        block.convert_to_f32_slice(out);
    }
}

impl Decode for f16 {
    const FROM: &'static str = "F16";
    const SAME: DType = DType::F16;

    fn decoder(dtype: DType) -> Option<Decoder<Self>> {
        (dtype == DType::F16).then_some(|bytes| f16::from_le_bytes(le(bytes)))
    }

    fn decode_all(_: DType, bytes: &[u8], out: &mut [Self]) {
        each(bytes, out, f16::from_le_bytes);
    }
}

impl Decode for bf16 {
    const FROM: &'static str = "BF16";
    const SAME: DType = DType::BF16;

    fn decoder(dtype: DType) -> Option<Decoder<Self>> {
        (dtype == DType::BF16).then_some(|bytes| bf16::from_le_bytes(le(bytes)))
    }

    fn decode_all(_: DType, bytes: &[u8], out: &mut [Self]) {
        each(bytes, out, bf16::from_le_bytes);
    }
}

impl Decode for i8 {
    const FROM: &'static str = "I8";
    const SAME: DType = DType::I8;

    fn decoder(dtype: DType) -> Option<Decoder<Self>> {
        (dtype == DType::I8).then_some(|bytes| i8::from_le_bytes(le(bytes)))
    }

    fn decode_all(_: DType, bytes: &[u8], out: &mut [Self]) {
        each(bytes, out, i8::from_le_bytes);
    }
}

impl Decode for u8 {
    const FROM: &'static str = "U8 or BOOL";
    const SAME: DType = DType::U8;

    fn decoder(dtype: DType) -> Option<Decoder<Self>> {
        match dtype {
            DType::U8 => Some(|bytes| u8::from_le_bytes(le(bytes))),
            DType::Bool => Some(truth),
            _ => None,
        }
    }
}

impl Decode for i32 {
    const FROM: &'static str = "I32, I16, I8, U16, U8 or BOOL";
    const SAME: DType = DType::I32;

    fn decoder(dtype: DType) -> Option<Decoder<Self>> {
        Some(match dtype {
            DType::I32 => |bytes| i32::from_le_bytes(le(bytes)),
            DType::I16 => |bytes| i32::from(i16::from_le_bytes(le(bytes))),
            DType::I8 => |bytes| i32::from(i8::from_le_bytes(le(bytes))),
            DType::U16 => |bytes| i32::from(u16::from_le_bytes(le(bytes))),
            DType::U8 => |bytes| i32::from(u8::from_le_bytes(le(bytes))),
            DType::Bool => |bytes| i32::from(truth(bytes)),
            _ => return None,
        })
    }
}

impl Decode for i64 {
    const FROM: &'static str = "I64, I32, I16, I8, U32, U16, U8 or BOOL";
    const SAME: DType = DType::I64;

    fn decoder(dtype: DType) -> Option<Decoder<Self>> {
        Some(match dtype {
            DType::I64 => |bytes| i64::from_le_bytes(le(bytes)),
            DType::I32 => |bytes| i64::from(i32::from_le_bytes(le(bytes))),
            DType::I16 => |bytes| i64::from(i16::from_le_bytes(le(bytes))),
            DType::I8 => |bytes| i64::from(i8::from_le_bytes(le(bytes))),
            DType::U32 => |bytes| i64::from(u32::from_le_bytes(le(bytes))),
            DType::U16 => |bytes| i64::from(u16::from_le_bytes(le(bytes))),
            DType::U8 => |bytes| i64::from(u8::from_le_bytes(le(bytes))),
            DType::Bool => |bytes| i64::from(truth(bytes)),
            _ => return None,
        })
    }
}

/// A stored BOOL as 0 or 1; any other byte counts as true, as in C.
fn truth(bytes: &[u8]) -> u8 {
    u8::from(le::<1>(bytes) != [0])
}

/// Elements one task decodes: 256 kB of f32, which stays in a core's second-level cache until it is written back.
const TASK_ELEMENTS: usize = 64 << 10;

/// Decodes a whole run of elements, on several threads when it is longer than one task.
pub(super) fn decode<T: Decode>(dtype: DType, bytes: &[u8], out: &mut [T]) {
    if out.len() <= TASK_ELEMENTS {
        return T::decode_all(dtype, bytes, out);
    }
    let element = dtype.bits() / 8;
    out.par_chunks_mut(TASK_ELEMENTS)
        .zip(bytes.par_chunks(TASK_ELEMENTS * element))
        .for_each(|(out, bytes)| T::decode_all(dtype, bytes, out));
}

/// Elements one task gathers. Each costs a cache line from memory (about 0.1 µs), so a task outweighs the few
/// microseconds that handing it to another thread costs by far.
const TASK_GATHERED: usize = 4 << 10;

/// Reads the given columns of a row-major matrix: `out` is `T [rows, columns.len()]` row-major. Every column lies inside
/// a row of `row_bytes`, every row inside `bytes`.
pub(super) fn gather<T: Decode>(
    decode: Decoder<T>,
    element: usize,
    bytes: &[u8],
    row_bytes: usize,
    columns: &[usize],
    out: &mut [T],
) {
    let gather_rows = |bytes: &[u8], out: &mut [T]| {
        for (out, row) in out.chunks_exact_mut(columns.len()).zip(bytes.chunks_exact(row_bytes)) {
            for (out, &column) in out.iter_mut().zip(columns) {
                *out = decode(&row[column * element..][..element]);
            }
        }
    };
    if columns.is_empty() || row_bytes == 0 {
        return;
    }
    if out.len() <= TASK_GATHERED {
        return gather_rows(bytes, out);
    }
    let rows = (TASK_GATHERED / columns.len()).max(1);
    out.par_chunks_mut(rows * columns.len())
        .zip(bytes.par_chunks(rows * row_bytes))
        .for_each(|(out, bytes)| gather_rows(bytes, out));
}
