//! Memory for weights, which are read from memory, as a whole, at every use; and for whatever is to begin on a cache line.
//!
//! A product of one row reads each byte of its weight once, at the speed of memory. With pages of 4 KiB it also waits for
//! a translation at every 4096th byte, where the processor's prefetching ends, too. Weights therefore lie side by side in
//! large regions that the system is asked to back with huge pages: one weight alone is often smaller than such a page.
//! A model generates 10 to 15 % faster for it. Where the system has none, nothing else changes.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use memmap2::MmapMut;

use crate::buffer::{Buffer, LINE, Line, Plain};

/// A huge page of x86-64, and of AArch64 with pages of 4 KiB.
const HUGE_PAGE: usize = 2 << 20;

/// What a region is made of, unless one slice needs more. Only what is touched becomes memory.
const REGION: usize = 32 << 20;

/// Slices below this gain nothing.
const SMALL: usize = 64 << 10;

/// A slice of `i8`, `i32`, `u64`, `f16`, `bf16` or `f32` that begins on a cache line, in memory with huge pages where the system has
/// them: for weights, and for results.
pub struct ArenaSlice<T> {
    first: NonNull<T>,
    length: usize,
    /// What keeps the memory.
    region: Option<Arc<Region>>,
    _values: PhantomData<T>,
}

// SAFETY: the slice is this value's own: no other one has a part of it (`Region::take`).
unsafe impl<T: Send> Send for ArenaSlice<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for ArenaSlice<T> {}

#[expect(private_bounds, reason = "sealed: the types are listed at the struct")]
impl<T: Plain> ArenaSlice<T> {
    /// `length` zeros.
    pub fn zeroed(length: usize) -> Self {
        const { assert!(align_of::<T>() <= LINE) };
        if length == 0 {
            return Self::default();
        }
        let bytes = length.checked_mul(size_of::<T>()).expect("more bytes than there are addresses");
        let (first, region) = Region::take(bytes);
        Self { first: first.cast(), length, region: Some(region), _values: PhantomData }
    }
}

impl<T: Plain> From<&[T]> for ArenaSlice<T> {
    fn from(values: &[T]) -> Self {
        let mut copy = Self::zeroed(values.len());
        copy.copy_from_slice(values);
        copy
    }
}

impl<T> Default for ArenaSlice<T> {
    fn default() -> Self {
        Self { first: NonNull::<Line>::dangling().cast(), length: 0, region: None, _values: PhantomData }
    }
}

impl<T: Plain> Clone for ArenaSlice<T> {
    fn clone(&self) -> Self {
        Self::from(&**self)
    }
}

impl<T> Deref for ArenaSlice<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `length` initialised values (zero is one, `Plain`) in memory that `region` keeps, aligned to a cache line;
        // or nothing, and a dangling pointer that is aligned.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.length) }
    }
}

impl<T> DerefMut for ArenaSlice<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; nobody else has the slice, and the borrow of `self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.length) }
    }
}

impl<T> Drop for ArenaSlice<T> {
    fn drop(&mut self) {
        if let Some(region) = &self.region {
            region.give_back(self.first.cast(), size_of_val(&**self));
        }
    }
}

impl<T> std::fmt::Debug for ArenaSlice<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ArenaSlice({} × {})", self.length, std::any::type_name::<T>())
    }
}

/// An arena with a bump offset: slices lie one behind the other. The last slice's memory is used again: a weight that
/// is made for a moment, on the way to another, leaves no hole. The rest is given back with the last slice of the region.
struct Region {
    /// Never empty, aligned to a cache line.
    first: NonNull<u8>,
    _memory: Memory,
}

/// Held for its memory alone.
#[expect(dead_code, reason = "see above")]
enum Memory {
    Mapped(MmapMut),
    Allocated(Buffer),
}

// SAFETY: the pointer is to memory that the region owns; what is read and written through it is the slices'.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// The region that slices are cut from now.
struct Open {
    region: Weak<Region>,
    /// Bytes that slices have, and how many ever had: beyond, all is zero.
    taken: usize,
    used: usize,
}

static OPEN: Mutex<Open> = Mutex::new(Open { region: Weak::new(), taken: 0, used: 0 });

impl Region {
    /// `bytes` zero bytes that begin on a cache line, which nobody else gets, and the region that keeps them.
    fn take(bytes: usize) -> (NonNull<u8>, Arc<Self>) {
        let bytes = bytes.next_multiple_of(LINE);
        if bytes < SMALL || cfg!(miri) {
            return Self::allocated(bytes).whole();
        }
        // Small ones share a region; a large one would waste the rest of it.
        if bytes > REGION / 4 {
            return Self::mapped(bytes).whole();
        }
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let region = match open.region.upgrade() {
            Some(region) if open.taken + bytes <= REGION => region,
            _ => {
                let region = Arc::new(Self::mapped(REGION));
                *open = Open { region: Arc::downgrade(&region), taken: 0, used: 0 };
                region
            }
        };
        let (at, end) = (open.taken, open.taken + bytes);
        // SAFETY: end ≤ REGION, the length of the region, and no slice has anything from `at` on.
        let first = unsafe {
            let first = region.first.add(at);
            first.write_bytes(0, end.min(open.used).saturating_sub(at));
            first
        };
        (open.taken, open.used) = (end, open.used.max(end));
        (first, region)
    }

    /// A slice of this region is gone.
    fn give_back(&self, first: NonNull<u8>, bytes: usize) {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if std::ptr::eq(open.region.as_ptr(), self) {
            let at = first.addr().get() - self.first.addr().get();
            if at + bytes.next_multiple_of(LINE) == open.taken {
                open.taken = at;
            }
        }
    }

    fn whole(self) -> (NonNull<u8>, Arc<Self>) {
        (self.first, Arc::new(self))
    }

    fn allocated(bytes: usize) -> Self {
        let mut buffer = Buffer::zeroed(bytes);
        let first = NonNull::new(buffer.as_mut_ptr().cast()).unwrap_or(NonNull::dangling());
        Self { first, _memory: Memory::Allocated(buffer) }
    }

    /// As many bytes, on a huge page; allocated in the usual way where the system maps none.
    fn mapped(bytes: usize) -> Self {
        // A mapping begins on some small page: the first huge one begins behind it.
        let Ok(mut map) = MmapMut::map_anon(bytes + HUGE_PAGE) else { return Self::allocated(bytes) };
        let before = map.as_ptr().align_offset(HUGE_PAGE).min(HUGE_PAGE);
        #[cfg(target_os = "linux")]
        {
            // A wish: a system without huge pages refuses it, and serves small ones.
            let _ = map.advise_range(memmap2::Advice::HugePage, before, bytes);
        }
        // SAFETY: before ≤ HUGE_PAGE, and so many bytes more were mapped.
        let first = unsafe { NonNull::new_unchecked(map.as_mut_ptr().add(before)) };
        Self { first, _memory: Memory::Mapped(map) }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    /// Sizes below, at and above those that take a region of their own.
    #[test]
    fn slices_are_zero_aligned_and_apart() {
        let sizes = if cfg!(miri) {
            vec![0, 1, 65, 5000]
        } else {
            vec![0, 1, 65, SMALL, SMALL + 1, REGION / 4, REGION / 4 + 1, 3 << 20, SMALL]
        };
        let mut slices: Vec<ArenaSlice<i8>> = sizes.iter().map(|size| ArenaSlice::zeroed(*size)).collect();
        for (slice, (size, mark)) in slices.iter_mut().zip(sizes.iter().zip(1..)) {
            assert_eq!((slice.len(), slice.as_ptr().align_offset(LINE)), (*size, 0));
            assert!(slice.iter().all(|value| *value == 0), "{size}");
            slice.fill(mark);
        }
        for (slice, mark) in slices.iter().zip(1..) {
            assert!(slice.iter().all(|value| *value == mark), "{slice:?}");
        }
        let copy = slices[3 % sizes.len()].clone();
        drop(slices);
        assert!(copy.iter().all(|value| *value == 4));
    }

    #[test]
    fn every_type_is_aligned() {
        fn check<T: Plain + PartialEq + std::fmt::Debug>(value: T) {
            for length in [1, 40_000] {
                let slice = ArenaSlice::from(&vec![value; length][..]);
                assert_eq!(slice.as_ptr().align_offset(LINE), 0);
                assert_eq!(*slice, vec![value; length]);
            }
        }
        check(1.5_f32);
        check(f16::ONE);
        check(bf16::ONE);
        check(7_u64);
        check(-7_i32);
        check(-3_i8);
    }

    /// The place of a slice that is gone is used again, and zero again.
    #[test]
    fn the_last_slice_leaves_no_hole() {
        if cfg!(miri) {
            return;
        }
        // Other tests take slices at the same time: it happens in one of a few tries.
        let reused = (0..1000).any(|_| {
            // Its region outlives the slice behind it.
            let _first = ArenaSlice::<i8>::zeroed(SMALL);
            let mut slice = ArenaSlice::<i8>::zeroed(3 << 20);
            slice.fill(5);
            let place = slice.as_ptr().addr();
            drop(slice);
            let next = ArenaSlice::<i8>::zeroed(2 << 20);
            assert!(next.iter().all(|value| *value == 0));
            next.as_ptr().addr() == place
        });
        assert!(reused);
    }

    /// A region lives as long as one of its slices, and slices are taken and given back by several threads at once.
    #[test]
    fn regions_are_shared_by_threads() {
        std::thread::scope(|scope| {
            for mark in 1..=4_i8 {
                scope.spawn(move || {
                    let mut kept: Vec<ArenaSlice<i8>> = Vec::new();
                    for round in 0..if cfg!(miri) { 4 } else { 60 } {
                        let mut slice =
                            ArenaSlice::zeroed(if cfg!(miri) { 100 } else { SMALL + 4096 * round });
                        assert!(slice.iter().all(|value| *value == 0));
                        slice.fill(mark);
                        kept.push(slice);
                        if round % 3 == 0 {
                            kept.remove(0);
                        }
                    }
                    assert!(kept.iter().flat_map(|slice| slice.iter()).all(|value| *value == mark));
                });
            }
        });
    }
}
