//! Page tables of a KV cache: which pages hold the positions of each sequence. Bookkeeping alone; a backend stores the pages.

use std::ops::Range;

use super::CacheCapacity;
use crate::{Error, convert};

/// Page tables with reference counts: pages are reserved as a sequence grows, shared when it is forked, copied before one of
/// their owners writes to them, and free again when the last owner releases them.
#[derive(Debug, Clone)]
pub struct PageTables {
    page_positions: usize,
    max_positions: usize,
    /// The pages of each sequence, in the order of their positions.
    tables: Vec<Vec<u32>>,
    /// How many tables hold each page.
    owners: Vec<u32>,
    /// Pages without an owner; the last is taken first.
    free: Vec<u32>,
}

/// A page whose content the storage must copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageCopy {
    /// The shared page.
    pub from: u32,
    /// The page that takes its place in the table.
    pub to: u32,
}

impl PageTables {
    /// Empty tables over pages of `page_positions` positions.
    ///
    /// # Panics
    /// If `page_positions` is 0.
    pub fn new(capacity: CacheCapacity, page_positions: usize) -> Self {
        let pages = Self::pages_for(capacity, page_positions);
        Self {
            page_positions,
            max_positions: capacity.max_positions,
            tables: vec![Vec::new(); capacity.sequences],
            owners: vec![0; pages],
            free: (0..pages).rev().map(convert::place).collect(),
        }
    }

    /// Number of pages for this capacity.
    pub fn pages_for(capacity: CacheCapacity, page_positions: usize) -> usize {
        let all = capacity.sequences.saturating_mul(capacity.max_positions.div_ceil(page_positions));
        capacity.total_positions.map_or(all, |total| total.div_ceil(page_positions).min(all))
    }

    /// Pages of `sequence`, in the order of their positions.
    ///
    /// # Panics
    /// If there is no such sequence; so for all that follow.
    pub fn table(&self, sequence: usize) -> &[u32] {
        &self.tables[sequence]
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.tables.len()
    }

    /// Positions of a page.
    pub fn page_positions(&self) -> usize {
        self.page_positions
    }

    /// Pages with an owner.
    pub fn used(&self) -> usize {
        self.owners.len() - self.free.len()
    }

    /// Pages without one.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Pages without an owner.
    pub fn free_pages(&self) -> &[u32] {
        &self.free
    }

    /// Pages in all.
    pub fn pages(&self) -> usize {
        self.owners.len()
    }

    /// Free pages that [`reserve`](Self::reserve) takes for these positions of different sequences.
    pub fn needed(&self, ranges: &[(usize, Range<usize>)]) -> usize {
        let pages = |(sequence, positions): &(usize, Range<usize>)| {
            self.shared(*sequence, positions).count() + self.added(*sequence, positions)
        };
        ranges.iter().map(pages).sum()
    }

    /// Makes positions of different sequences writable: adds pages up to their end, and replaces pages among them that another
    /// sequence shares. Returns the copies that the storage must make before it writes.
    ///
    /// # Errors
    /// [`Error::Input`] when a sequence would exceed its largest length, or too few pages are free for all. Nothing has changed
    /// then.
    pub fn reserve(&mut self, ranges: &[(usize, Range<usize>)]) -> Result<Vec<PageCopy>, Error> {
        for (sequence, positions) in ranges {
            if positions.end > self.max_positions {
                return Err(Error::Input(format!(
                    "sequence {sequence} would hold {} tokens; its KV cache was made for {}",
                    positions.end, self.max_positions
                )));
            }
        }
        let needed = self.needed(ranges);
        if needed > self.free.len() {
            return Err(Error::Input(format!(
                "the KV cache is full: {needed} more pages of {} positions are needed, and {} of {} are free",
                self.page_positions,
                self.free.len(),
                self.owners.len()
            )));
        }
        let mut copies = Vec::new();
        for (sequence, positions) in ranges {
            // Anew: a page that two of the sequences shared has one owner once the first has its copy.
            for at in self.shared(*sequence, positions).collect::<Vec<_>>() {
                let (from, to) = (self.tables[*sequence][at], self.take());
                self.owners[convert::index(from)] -= 1;
                self.tables[*sequence][at] = to;
                copies.push(PageCopy { from, to });
            }
            for _ in 0..self.added(*sequence, positions) {
                let page = self.take();
                self.tables[*sequence].push(page);
            }
        }
        Ok(copies)
    }

    /// Places in a sequence's table of the pages of these positions that another sequence shares.
    fn shared(&self, sequence: usize, positions: &Range<usize>) -> impl Iterator<Item = usize> {
        let table = &self.tables[sequence];
        let (first, end) =
            (positions.start / self.page_positions, positions.end.div_ceil(self.page_positions));
        let written = first.min(table.len())..end.min(table.len());
        written.filter(|at| self.owners[convert::index(table[*at])] > 1)
    }

    /// Pages that a sequence lacks for these positions.
    fn added(&self, sequence: usize, positions: &Range<usize>) -> usize {
        positions.end.div_ceil(self.page_positions).saturating_sub(self.tables[sequence].len())
    }

    /// Empties a sequence. Returns the pages that nobody owns any more.
    pub fn release(&mut self, sequence: usize) -> Vec<u32> {
        let mut released = Vec::new();
        for page in std::mem::take(&mut self.tables[sequence]) {
            let owners = &mut self.owners[convert::index(page)];
            *owners -= 1;
            if *owners == 0 {
                released.push(page);
            }
        }
        // The first page of the sequence is taken next.
        self.free.extend(released.iter().rev());
        released
    }

    /// Makes `to` begin with the first `positions` positions of `from`, on the same pages. Returns the pages that `to` held
    /// and nobody owns any more.
    ///
    /// # Errors
    /// [`Error::Input`] when `from` has fewer pages than that, or the two are one sequence.
    pub fn fork(&mut self, from: usize, to: usize, positions: usize) -> Result<Vec<u32>, Error> {
        let pages = positions.div_ceil(self.page_positions);
        if from == to || pages > self.tables[from].len() {
            return Err(Error::Input(format!(
                "sequence {to} cannot begin with {positions} positions of sequence {from}, which has pages for {}",
                self.tables[from].len() * self.page_positions
            )));
        }
        let released = self.release(to);
        let table = self.tables[from][..pages].to_vec();
        table.iter().for_each(|page| self.owners[convert::index(*page)] += 1);
        self.tables[to] = table;
        Ok(released)
    }

    /// A free page, which gets one owner.
    fn take(&mut self) -> u32 {
        let page = self.free.pop().expect("the caller has counted the free pages");
        self.owners[convert::index(page)] = 1;
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(total_positions: Option<usize>) -> PageTables {
        PageTables::new(CacheCapacity { sequences: 3, max_positions: 20, total_positions }, 8)
    }

    #[test]
    fn sequences_grow_and_their_pages_come_back() {
        let mut tables = tables(None);
        assert_eq!((tables.free(), tables.used()), (9, 0));
        assert_eq!(tables.reserve(&[(1, 0..8)]).expect("room"), []);
        assert_eq!(tables.reserve(&[(1, 8..9)]).expect("room"), []);
        assert_eq!(tables.table(1), [0, 1]);
        tables.reserve(&[(1, 9..16)]).expect("nothing to do");
        assert_eq!(tables.used(), 2);
        assert!(tables.reserve(&[(1, 16..21)]).expect_err("too long").to_string().contains("made for 20"));
        assert_eq!(tables.release(1), [0, 1]);
        tables.reserve(&[(0, 0..1)]).expect("room");
        assert_eq!(tables.table(0), [0]);
    }

    #[test]
    fn a_fork_shares_until_it_writes() {
        let mut tables = tables(None);
        tables.reserve(&[(0, 0..18)]).expect("room");
        tables.reserve(&[(2, 0..1)]).expect("room");
        assert_eq!(tables.fork(0, 2, 10).expect("a fork"), [3]);
        assert_eq!((tables.table(2), tables.used()), (&[0, 1][..], 3));
        // Position 10 lies in the second, shared page.
        let copies = tables.reserve(&[(2, 10..17)]).expect("room");
        assert_eq!(copies, [PageCopy { from: 1, to: 3 }]);
        assert_eq!(tables.table(2), [0, 3, 4]);
        // Its other owner is the only one now.
        assert_eq!(tables.reserve(&[(0, 8..18)]).expect("room"), []);
        assert_eq!(tables.release(0), [1, 2]);
        assert_eq!(tables.release(2), [0, 3, 4]);
        assert_eq!(tables.free(), 9);
        assert!(tables.fork(0, 1, 1).is_err() && tables.fork(1, 1, 0).is_err());
    }

    #[test]
    fn sequences_are_reserved_together_or_not_at_all() {
        let mut tables = tables(Some(24));
        assert!(tables.reserve(&[(0, 0..9), (1, 0..16)]).is_err());
        assert_eq!((tables.used(), tables.table(0)), (0, &[][..]));
        tables.reserve(&[(0, 0..9), (1, 0..8)]).expect("three pages");
        // Two owners of one page write to it: one copy is enough.
        tables.release(0);
        tables.fork(1, 0, 8).expect("a fork");
        assert_eq!(tables.reserve(&[(0, 3..8), (1, 7..8)]).expect("room").len(), 1);
    }

    #[test]
    fn a_full_pool_changes_nothing() {
        let mut tables = tables(Some(17));
        assert_eq!(tables.free(), 3);
        tables.reserve(&[(0, 0..16)]).expect("two pages");
        tables.fork(0, 1, 16).expect("a fork");
        let before = tables.clone();
        let error = tables.reserve(&[(1, 7..20)]).expect_err("two copies and a page of one");
        assert!(
            error.to_string().contains("3 more pages of 8 positions are needed, and 1 of 3 are free"),
            "{error}"
        );
        assert_eq!((tables.table(1), tables.free()), (before.table(1), before.free()));
    }
}
