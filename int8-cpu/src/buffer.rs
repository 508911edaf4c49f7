//! Memory that starts on a cache line, so that no vector load of a panel row crosses one.

use half::{bf16, f16};

/// One cache line. Its size is that of a zmm register and of an AMX tile row.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; LINE]);

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Numbers without padding that are valid, and zero, as all bits zero.
///
/// # Safety
/// Both must be true of the type, and it needs no more than the alignment of a cache line.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: integers and IEEE floats, as are those below.
unsafe impl Plain for i8 {}
// SAFETY: see above.
unsafe impl Plain for i32 {}
// SAFETY: see above.
unsafe impl Plain for u64 {}
// SAFETY: see above.
unsafe impl Plain for f32 {}
// SAFETY: `half` declares it a transparent u16.
unsafe impl Plain for f16 {}
// SAFETY: `half` declares it a transparent u16.
unsafe impl Plain for bf16 {}

/// A zero-initialised byte buffer whose first byte is 64-byte aligned.
#[derive(Clone, Default)]
pub(crate) struct Buffer {
    lines: Vec<Line>,
}

impl Buffer {
    /// At least `bytes` zero bytes, rounded up to whole lines.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        Self { lines: vec![Line([0; LINE]); bytes.div_ceil(LINE)] }
    }

    /// Makes room for `bytes` bytes; what they hold is whatever was there before (initialised, not meaningful).
    pub(crate) fn reserve(&mut self, bytes: usize) {
        let lines = bytes.div_ceil(LINE);
        if self.lines.len() < lines {
            // Not `resize`: the old contents need not be copied.
            self.lines = vec![Line([0; LINE]); lines];
        }
    }

    pub(crate) fn as_ptr(&self) -> *const i8 {
        self.lines.as_ptr().cast()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut i8 {
        self.lines.as_mut_ptr().cast()
    }

    /// All bytes, as codes.
    pub(crate) fn codes(&self) -> &[i8] {
        // SAFETY: `Line` is `repr(C)` over initialised bytes without padding, and i8 has no invalid pattern.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.lines.len() * LINE) }
    }

    /// All bytes, as codes.
    pub(crate) fn codes_mut(&mut self) -> &mut [i8] {
        // SAFETY: as in `codes`; the borrow of `self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), self.lines.len() * LINE) }
    }

    /// All bytes, as f32.
    pub(crate) fn floats(&self) -> &[f32] {
        self.elements()
    }

    /// All bytes, as f32.
    pub(crate) fn floats_mut(&mut self) -> &mut [f32] {
        self.elements_mut()
    }

    /// All bytes, as numbers of a type.
    pub(crate) fn elements<T: Plain>(&self) -> &[T] {
        let count = self.lines.len() * (LINE / size_of::<T>());
        // SAFETY: as in `elements_mut`; the borrow of `self` is shared.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), count) }
    }

    /// All bytes, as numbers of a type.
    pub(crate) fn elements_mut<T: Plain>(&mut self) -> &mut [T] {
        let count = self.lines.len() * (LINE / size_of::<T>());
        // SAFETY: 64-byte aligned initialised bytes, whole numbers of elements, of which `Plain` has no invalid
        // pattern.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), count) }
    }
}
