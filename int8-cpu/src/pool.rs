//! The thread pool: rayon's, entered once for many small products.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use rayon::{Scope, Yield};

/// How long a thread spins without work before it may park, and then stays parked until it is woken for each product: longer than
/// a gap between two products of a decode step, also when a virtual processor is taken away in it; short enough to be no load.
const PARK_AFTER: Duration = Duration::from_millis(2);

/// Attempts to steal work between two readings of the clock, when a thread also yields its processor.
const SPINS_PER_CHECK: usize = 64;

/// Runs `operation` on the current rayon pool while its other threads spin; each parks after 2 ms without work.
///
/// A decode step is some hundred products of 10 to 100 µs each. Without this, threads park between them, and waking them
/// takes as long as a product.
pub fn spin_during<R: Send>(operation: impl FnOnce() -> R + Send) -> R {
    if rayon::current_num_threads() == 1 {
        return operation();
    }
    let done = AtomicBool::new(false);
    rayon::scope(|scope| {
        let caller = rayon::current_thread_index();
        let done = &done;
        scope.spawn_broadcast(move |_, context| {
            if Some(context.index()) != caller {
                spin(done);
            }
        });
        let result = operation();
        done.store(true, Ordering::Relaxed);
        result
    })
}

fn spin(done: &AtomicBool) {
    let mut idle_since = Instant::now();
    let mut spins = 0;
    while !done.load(Ordering::Relaxed) {
        if rayon::yield_now() == Some(Yield::Executed) {
            spins = 0;
            idle_since = Instant::now();
            continue;
        }
        spins += 1;
        if spins % SPINS_PER_CHECK == 0 {
            if idle_since.elapsed() > PARK_AFTER {
                return;
            }
            std::thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

/// Runs `operation` on the current rayon pool if it `is_parallel`, or else on the calling thread.
///
/// From outside the pool, each parallel stage would wake it: it is entered once, and only for enough work. A caller inside the pool (`rayon::scope` around a whole model) never pays.
pub(crate) fn enter<R: Send>(is_parallel: bool, operation: impl FnOnce() -> R + Send) -> R {
    if is_parallel && rayon::current_thread_index().is_none() {
        return rayon::scope(|_| operation());
    }
    operation()
}

/// Partitions the numbers below `count` among `threads` threads of the pool: `work` is called once for each thread; if there
/// is only one, it is the caller.
///
/// Each thread walks its own work range front to back, which reads memory as one stream, then steals from the back of
/// others'. A late or slow thread is left with less, and none waits for it for longer than one number takes.
///
/// # Panics
/// If there are 2³² numbers or more: as blocks of an output they would be 2³⁷ values.
pub(crate) fn partition(count: usize, threads: usize, work: impl Fn(WorkItems<'_>) + Sync) {
    let ranges = work_ranges(count, threads);
    let work = |thread| work(WorkItems { ranges: &ranges, own: thread, exhausted: 0 });
    match ranges.len() {
        0 => {}
        1 => work(0),
        threads => (0..threads).into_par_iter().with_max_len(1).for_each(work),
    }
}

/// Calls `work` once with each of the items, on the threads of the pool, consecutive ones on the same thread if all are as fast;
/// `scratch` is made once for each thread.
///
/// The caller waits for the last thread spinning, for up to 2 ms: rayon's wait parks after some 20 µs, and waking takes longer than
/// that.
pub fn for_each<T: Send, S>(items: Vec<T>, scratch: impl Fn() -> S + Sync, work: impl Fn(&mut S, T) + Sync) {
    let items: Vec<_> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
    let ranges = work_ranges(items.len(), rayon::current_num_threads());
    let work = |own| {
        let mut scratch = scratch();
        for (index, _) in (WorkItems { ranges: &ranges, own, exhausted: 0 }) {
            // Never poisoned: nothing that may panic runs behind the lock.
            if let Some(item) = items[index].lock().ok().and_then(|mut item| item.take()) {
                work(&mut scratch, item);
            }
        }
    };
    if ranges.len() <= 1 {
        return (0..ranges.len()).for_each(work);
    }
    let left = AtomicUsize::new(ranges.len());
    rayon::scope(|scope| {
        hand_out(scope, 0..ranges.len(), &work, &left);
        await_departures(&left);
    });
}

/// Calls `work` for the first of these threads, and has it called for the others: each half of them hands out to its own half.
fn hand_out<'s>(
    scope: &Scope<'s>,
    mut threads: Range<usize>,
    work: &'s (impl Fn(usize) + Sync),
    left: &'s AtomicUsize,
) {
    while threads.len() > 1 {
        let middle = threads.start + threads.len() / 2;
        let others = middle..threads.end;
        scope.spawn(move |scope| hand_out(scope, others, work, left));
        threads.end = middle;
    }
    let _departure = Departure(left);
    work(threads.start);
}

/// The numbers below `count` in equal parts for at most so many threads.
fn work_ranges(count: usize, threads: usize) -> Vec<WorkRange> {
    let threads = threads.min(count);
    let edge = |thread: usize| count * thread / threads;
    (0..threads).map(|thread| WorkRange::new(edge(thread)..edge(thread + 1))).collect()
}

/// Counts a thread off, also when its work panics.
struct Departure<'a>(&'a AtomicUsize);

impl Drop for Departure<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Spins until none is `left`, but no longer than [`PARK_AFTER`].
fn await_departures(left: &AtomicUsize) {
    let begin = Instant::now();
    let mut spins = 0;
    while left.load(Ordering::Relaxed) > 0 {
        if rayon::yield_now() == Some(Yield::Executed) {
            continue;
        }
        spins += 1;
        if spins % SPINS_PER_CHECK == 0 && begin.elapsed() > PARK_AFTER {
            return;
        }
        std::hint::spin_loop();
    }
}

/// The remaining numbers of one thread: the first in the upper 32 bits, the end in the lower. Alone in the two cache lines
/// that processors load together, since its owner writes to it all the time.
#[repr(align(128))]
struct WorkRange(AtomicU64);

impl WorkRange {
    fn new(numbers: Range<usize>) -> Self {
        let half = |number: usize| u64::from(u32::try_from(number).expect("fewer than 2³² blocks"));
        Self((half(numbers.start) << 32 | half(numbers.end)).into())
    }

    /// Takes a number with `end` of the remaining ones; also the number that `end` would take next.
    #[allow(clippy::cast_possible_truncation, reason = "the upper and the lower 32 bits")]
    fn take(&self, end: impl Fn(&mut Range<u32>) -> Option<u32>) -> Option<(usize, Option<usize>)> {
        let unpack = |state: u64| (state >> 32) as u32..state as u32;
        let without = |state| {
            let mut left = unpack(state);
            end(&mut left).map(|_| u64::from(left.start) << 32 | u64::from(left.end))
        };
        let mut left = unpack(self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, without).ok()?);
        Some((end(&mut left)? as usize, end(&mut left).map(|next| next as usize)))
    }
}

/// The numbers that one thread gets, each with the one that it will probably get next.
pub(crate) struct WorkItems<'a> {
    ranges: &'a [WorkRange],
    own: usize,
    /// How many ranges are known to be exhausted, from its own one on.
    exhausted: usize,
}

impl Iterator for WorkItems<'_> {
    type Item = (usize, Option<usize>);

    #[inline]
    fn next(&mut self) -> Option<(usize, Option<usize>)> {
        while self.exhausted < self.ranges.len() {
            let range = &self.ranges[(self.own + self.exhausted) % self.ranges.len()];
            let is_own = self.exhausted == 0;
            let items = if is_own { range.take(Range::next) } else { range.take(Range::next_back) };
            if items.is_some() {
                return items;
            }
            self.exhausted += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_pool<R: Send>(threads: usize, test: impl FnOnce() -> R + Send) -> R {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool").install(test)
    }

    /// Each number is items once, and a thread alone is told what it takes next.
    #[test]
    fn numbers_are_shared() {
        for threads in [1, 2, 3, 8] {
            for count in [0, 1, 2, 7, 100] {
                let seen: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                in_pool(threads, || {
                    partition(count, threads, |items| {
                        let mut announced = None;
                        for (number, next) in items {
                            assert!(threads > 1 || announced.is_none_or(|announced| announced == number));
                            assert!(next.is_none_or(|next| next < count));
                            announced = next;
                            seen[number].fetch_add(1, Ordering::Relaxed);
                        }
                        assert!(threads > 1 || announced.is_none());
                    });
                });
                assert!(seen.iter().all(|times| times.load(Ordering::Relaxed) == 1), "{threads} {count}");
            }
        }
    }

    /// From outside and inside, nested, and from several threads at once, each with parallel work: all come to an end.
    #[test]
    fn work_done_awake_is_done() {
        let sum = || (0..1000_usize).into_par_iter().sum::<usize>();
        for threads in [1, 2, 4] {
            in_pool(threads, || {
                std::thread::scope(|scope| {
                    for _ in 0..3 {
                        scope.spawn(|| (0..50).for_each(|_| assert_eq!(spin_during(sum), 499_500)));
                    }
                });
                assert_eq!(spin_during(|| spin_during(sum)), 499_500);
                let all: Vec<usize> = (0..16).into_par_iter().map(|_| spin_during(sum)).collect();
                assert!(all.iter().all(|sum| *sum == 499_500));
            });
        }
    }

    #[test]
    fn each_item_is_worked_on_once() {
        for threads in [1, 2, 3] {
            for count in [0, 1, 3, 50] {
                let seen = Mutex::new(Vec::new());
                in_pool(threads, || {
                    for_each(
                        (0..count).collect(),
                        || (),
                        |(), item: usize| seen.lock().expect("no panic").push(item),
                    );
                });
                let mut seen = seen.into_inner().expect("no panic");
                seen.sort_unstable();
                assert!(seen.into_iter().eq(0..count), "{threads} threads, {count} items");
            }
        }
    }

    #[test]
    fn a_panic_of_any_thread_gets_through() {
        for bad in 0..3 {
            let result = std::panic::catch_unwind(|| {
                in_pool(3, || for_each((0..3).collect(), || (), |(), item: usize| assert_ne!(item, bad)));
            });
            assert!(result.is_err(), "{bad}");
        }
    }

    #[test]
    fn a_panic_gets_through() {
        let panicked = std::panic::catch_unwind(|| in_pool(2, || spin_during(|| panic!("on purpose"))));
        assert!(panicked.is_err());
    }
}
